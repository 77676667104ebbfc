"""Real annotations and images against pycocotools and PIL."""

import contextlib
import io
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from detector.data.coco import read_coco
from detector.data.dataset import DetectionDataset
from detector.data.loader import build_eval_loader, build_train_loader
from detector.data.rings import ring_areas

_DATASETS = {
    "coco train": ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017"),
    "coco val": ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017"),
    "nuclei train": ("nuclei/annotations/train.json", "nuclei/train"),
    "nuclei val": ("nuclei/annotations/val.json", "nuclei/val"),
    "fruits and nuts": ("fruits_nuts/trainval.json", "fruits_nuts/images"),
}
_AUGMENT = Path(__file__).parents[2] / "configs" / "augment"


@pytest.fixture(params=_DATASETS)
def paths(request, test_data):
    annotations, images = _DATASETS[request.param]
    return test_data / annotations, test_data / images


def read_with_pycocotools(path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_every_annotation_is_the_same(paths):
    index, coco = read_coco(*paths), read_with_pycocotools(paths[0])
    assert sorted(index.image_ids.tolist()) == sorted(coco.imgs)
    assert index.category_ids.tolist() == sorted(coco.cats)
    assert index.category_names == [coco.cats[c]["name"] for c in sorted(coco.cats)]
    assert sorted(index.annotation_ids.tolist()) == sorted(coco.anns)
    assert not index.skipped and index.has_masks
    for position in range(len(index)):
        image = coco.imgs[int(index.image_ids[position])]
        assert index.file_name(position) == image["file_name"]
        assert (index.widths[position], index.heights[position]) == (
            image["width"],
            image["height"],
        )
        for row in range(*index.annotation_offsets[position : position + 2]):
            annotation = coco.anns[int(index.annotation_ids[row])]
            assert annotation["image_id"] == image["id"]
            assert index.category_ids[index.labels[row]] == annotation["category_id"]
            assert index.crowd[row] == annotation["iscrowd"]
            x, y, width, height = annotation["bbox"]
            np.testing.assert_allclose(
                index.boxes[row], [x, y, x + width, y + height], rtol=1e-6, atol=1e-4
            )


def test_masks_are_those_of_pycocotools(paths, rasterize):
    index, coco = read_coco(*paths), read_with_pycocotools(paths[0])
    rows = np.random.default_rng(0).permutation(index.num_annotations)[:200]
    position_of = np.repeat(np.arange(len(index)), np.diff(index.annotation_offsets))
    overlaps = []
    for row in np.union1d(rows, np.flatnonzero(index.crowd)):
        height = int(index.heights[position_of[row]])
        width = int(index.widths[position_of[row]])
        offsets = index.vertex_offsets
        rings = [
            index.vertices[offsets[ring] : offsets[ring + 1]]
            for ring in range(*index.ring_offsets[row : row + 2])
        ]
        mask = rasterize(rings, height, width)
        annotation = coco.anns[int(index.annotation_ids[row])]
        expected = coco.annToMask(annotation).astype(bool)
        if isinstance(annotation["segmentation"], dict):
            np.testing.assert_array_equal(mask, expected)
            continue
        # pycocotools rounds vertices to a fifth of a pixel and has a rule of its own for pixels on
        # the outline, so only about as many pixels as the outline has may differ.
        padded = np.pad(expected, 1)
        around = [padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
        outline = expected & ~np.logical_and.reduce(around)
        assert (mask ^ expected).sum() <= outline.sum() + 1, annotation["id"]
        overlaps.append((mask & expected).sum() / (mask | expected).sum())
    assert not overlaps or np.mean(overlaps) > 0.98


def test_polygons_have_one_orientation(paths):
    index = read_coco(*paths)
    areas = ring_areas(index.vertices, index.vertex_offsets)
    owner = np.repeat(np.arange(index.num_annotations), np.diff(index.ring_offsets))
    total = np.bincount(owner, weights=areas, minlength=index.num_annotations)
    assert (total > 0).all()


def test_images_are_read_as_pil_shows_them(paths):
    dataset = DetectionDataset(*paths)
    for position in range(0, len(dataset), max(1, len(dataset) // 25)):
        with Image.open(dataset.index.path(position)) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(dataset.read(position).image, expected)


@pytest.mark.parametrize("augment", ["default", "small"])
def test_batches_of_the_configured_augmentations(test_data, augment):
    config = OmegaConf.load(_AUGMENT / f"{augment}.yaml")
    transforms = hydra.utils.instantiate(config, _convert_="all")
    annotations, images = _DATASETS["coco val"]
    options = {"root": test_data, "seed": 1}
    dataset = DetectionDataset(annotations, images, transforms["train"], **options)
    buckets = [[800, 1344], [1344, 800]] if augment == "default" else None
    loader = build_train_loader(dataset, 2, buckets=buckets)
    for batch, _ in zip(loader, range(3), strict=False):
        check_batch(batch)
        if buckets:
            assert list(batch.images.shape[2:]) in buckets
    dataset = DetectionDataset(annotations, images, transforms["val"], **options)
    batch = next(iter(build_eval_loader(dataset, 2, buckets=buckets)))
    check_batch(batch)
    if augment == "default":
        assert (batch.image_sizes.amin(dim=1) == 800).all() or batch.image_sizes.amax() == 1333
    else:
        assert torch.equal(batch.image_sizes, batch.original_sizes)


def check_batch(batch) -> None:
    height, width = batch.images.shape[2:]
    assert height % 32 == width % 32 == 0
    targets = batch.targets
    sizes = batch.image_sizes.flip(1).repeat(1, 2)[:, None]
    assert (targets.boxes <= sizes).all() and (targets.boxes >= 0).all()
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    assert (sides[targets.valid] >= 1).all()
    edges, offsets = targets.polygons.edges, targets.polygons.offsets
    for b in range(len(batch.images)):
        for g in torch.nonzero(targets.valid[b]).flatten().tolist():
            own = edges[b, offsets[b, g] : offsets[b, g + 1]]
            # A closed outline returns to where it began, and its extent is the box.
            assert torch.allclose((own[:, 2:] - own[:, :2]).sum(dim=0), torch.zeros(2), atol=1e-2)
            extent = torch.cat([own[:, :2].amin(dim=0), own[:, :2].amax(dim=0)])
            assert torch.allclose(extent, targets.boxes[b, g], atol=1e-2)
