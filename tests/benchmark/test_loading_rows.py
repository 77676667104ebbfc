"""Both sides of the data worker's row give the same images and targets, so that times compare."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from rich.console import Console

from detector.benchmark import measure
from detector.benchmark.coco_sized import write_coco_sized, write_photos
from detector.benchmark.loading_rows import OurPipeline, measure_loading, torchvision_pipeline

NUM_IMAGES = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three generated photographs with twelve objects."""
    folder = tmp_path_factory.mktemp("photos")
    write_coco_sized(folder / "a.json", NUM_IMAGES, 12, seed=1, suffix=".jpg")
    write_photos(folder / "images", NUM_IMAGES, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTOR_CACHE", str(folder / "cache"))
        yield folder / "a.json", folder / "images"


@pytest.mark.parametrize("backend", ["pil", "tensor"])
def test_both_sides_see_the_same(dataset, backend):
    ours = OurPipeline(*dataset, flip=0)
    index = ours.dataset.index
    positions = range(len(index))
    batch = ours(positions)
    theirs = torchvision_pipeline(*dataset, index.image_ids.tolist(), backend, flip=0)
    images, targets = theirs(positions)
    assert len(images) == len(batch.images) == NUM_IMAGES
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        height, width = batch.image_sizes[i].tolist()
        # They cut sizes off to whole pixels, we round.
        assert abs(image.shape[1] - height) <= 1 and abs(image.shape[2] - width) <= 1
        assert min(height, width) == 800
        height, width = min(height, image.shape[1]), min(width, image.shape[2])
        ours_there = batch.images[i, :, :height, :width].float() / 255
        assert (ours_there - image[:, :height, :width]).abs().mean() < 0.01

        valid = batch.targets.valid[i]
        assert int(batch.image_ids[i]) == target["image_id"] and valid.sum() == len(target["boxes"])
        boxes, labels = batch.targets.boxes[i][valid], batch.targets.labels[i][valid]
        torch.testing.assert_close(boxes, target["boxes"].float(), atol=1, rtol=0)
        assert index.category_ids[labels.numpy()].tolist() == target["labels"].tolist()
        for gt, mask in enumerate(target["masks"].numpy()):
            mine = _rasterize(batch.targets.polygons, i, gt, mask.shape)
            both, either = (mine & (mask > 0)).sum(), (mine | (mask > 0)).sum()
            # Theirs is rasterised before it is enlarged: some pixels along the outline.
            assert either > 0 and either - both <= 4 * np.sqrt(either) + 4 * _outline(mine)


def _rasterize(polygons, image: int, gt: int, size: tuple[int, int]) -> np.ndarray:
    start, stop = polygons.offsets[image, gt : gt + 2].tolist()
    edges = polygons.edges[image, start:stop]
    # Where an edge does not begin where the one before ended, another part begins.
    begins = [0, *(np.flatnonzero((edges[1:, :2] != edges[:-1, 2:]).any(1).numpy()) + 1)]
    rings = np.split(edges[:, :2].double().numpy(), begins[1:])
    parts = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def _outline(mask: np.ndarray) -> int:
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_half_of_the_images_are_flipped(dataset):
    flipped = OurPipeline(*dataset, flip=1)([0])
    upright = OurPipeline(*dataset, flip=0)([0])
    height, width = upright.image_sizes[0].tolist()
    torch.testing.assert_close(
        flipped.images[0, :, :height, :width], upright.images[0, :, :height, :width].flip(2)
    )
    (image,), _ = torchvision_pipeline(*dataset, [1], "tensor", flip=1)([0])
    other = flipped.images[0, :, : image.shape[1], : image.shape[2]].float() / 255
    assert (other - image).abs().mean() < 0.02


def test_the_report_has_a_row_for_each_side(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path))
    text = StringIO()
    threads = torch.get_num_threads()
    report = measure_loading(1, Console(file=text, width=120), *dataset, num_images=1)
    assert torch.get_num_threads() == threads
    assert report["images"] == 1 and len(report["rows"]) == 3
    fastest = max(row["images_per_second"] for row in report["rows"][1:])
    assert report["ratio"] == pytest.approx(report["rows"][0]["images_per_second"] / fastest)
    assert set(report["stages"]) == {"read and decode", "augment", "collate"}
    assert json.loads(json.dumps(report)) == report
    assert "images/s" in text.getvalue() and "torchvision" in text.getvalue()


def test_generated_photographs_are_as_large_as_cocos(dataset):
    sizes = [path.stat().st_size for path in dataset[1].iterdir()]
    assert len(sizes) == NUM_IMAGES and 100_000 < np.mean(sizes) < 220_000


def test_half_a_dataset_is_refused(dataset):
    with pytest.raises(ValueError, match="give both"):
        measure_loading(1, Console(file=StringIO()), annotations=dataset[0])
