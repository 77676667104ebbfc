"""Masks on their whole way: COCO JSON, index, sample, batch, mask target."""

import json

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.ops.polygons import rasterize_polygons

SIDE = 48


def blobs(seed: int) -> np.ndarray:
    """Ragged regions with holes, islands and pixels that touch at corners."""
    noise = np.random.default_rng(seed).random((SIDE, SIDE))
    for _ in range(2):
        noise = sum(np.roll(noise, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))) / 4
    mask = noise > np.quantile(noise, 0.6)
    mask[:8] = False
    return mask


def all_targets(batch) -> torch.Tensor:
    """Every gt slot at one cell per pixel of the whole padded image."""
    images, gts = batch.targets.valid.shape
    height, width = batch.images.shape[2:]
    assert height == width
    index = torch.arange(images * gts)
    boxes = torch.tensor([[0.0, 0, width, height]]).expand(images * gts, -1)
    masks = rasterize_polygons(batch.targets.polygons, boxes, index // gts, index % gts, width)
    return masks.view(images, gts, height, width)


def test_run_lengths_come_back_bit_for_bit(tmp_path):
    masks = {identifier: blobs(identifier) for identifier in range(1, 6)}
    annotations = []
    for identifier, mask in masks.items():
        encoded = coco_mask.encode(np.asfortranarray(mask))
        area, box = coco_mask.area(encoded), coco_mask.toBbox(encoded)
        counts = encoded["counts"].decode()
        if identifier % 2:  # the uncompressed form too
            flat = mask.flatten(order="F")
            turns = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *([0] if flat[0] else []), *turns, flat.size]).tolist()
        annotations.append(
            {
                "id": identifier,
                "image_id": 1 + identifier % 2,
                "category_id": 1,
                "bbox": box.tolist(),
                "area": float(area),
                "iscrowd": 0,
                "segmentation": {"size": [SIDE, SIDE], "counts": counts},
            }
        )
    for image in (1, 2):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{image}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in (1, 2)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "blob"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    dataset = DetectionDataset("instances.json", ".", root=tmp_path)
    batch = Collate(size_divisor=16)([dataset[0], dataset[1]])
    assert batch.targets.valid.sum(1).tolist() == [2, 3]
    targets = all_targets(batch)
    for image, identifiers in enumerate(((2, 4), (1, 3, 5))):
        for gt, identifier in enumerate(identifiers):
            assert (targets[image, gt].numpy() == masks[identifier]).all()
    assert targets[~batch.targets.valid].eq(0).all()


def test_polygons_of_the_shapes_agree_with_pycocotools(shapes_root):
    """pycocotools draws outlines a little wider: it rounds on a finer grid."""
    annotations = shapes_root / "annotations" / "instances_val.json"
    coco = COCO(annotations)
    dataset = DetectionDataset(annotations, shapes_root / "val")
    batch = Collate()([dataset[i] for i in range(len(dataset))])
    targets = all_targets(batch)
    compared = 0
    for image, identifier in enumerate(batch.image_ids.tolist()):
        own = [a for a in coco.imgToAnns[identifier] if not a["iscrowd"]]
        for target, box in zip(
            targets[image][batch.targets.valid[image]],
            batch.targets.boxes[image][batch.targets.valid[image]],
            strict=True,
        ):
            # Records may stand in another order: the same box is the same object.
            corner = [box[0].item(), box[1].item()]
            (annotation,) = (
                a for a in own if np.allclose(a["bbox"][:2], corner, atol=1e-3)
                and np.allclose(a["bbox"][2:], (box[2:] - box[:2]).tolist(), atol=1e-3)
            )  # fmt: skip
            expected = coco.annToMask(annotation).astype(bool)
            ours = target.numpy()[: expected.shape[0], : expected.shape[1]] > 0
            if expected.sum() > 100:
                assert (ours & expected).sum() / (ours | expected).sum() > 0.85
                compared += 1
    assert compared >= 4
