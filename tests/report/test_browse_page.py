"""Mask targets on the page are those that the mask branch learns from a box."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.report.browse_page import look_at


def test_mask_targets_are_the_masks_inside_their_boxes(shapes_root):
    file = shapes_root / "annotations/instances_val.json"
    dataset = DetectionDataset(file, shapes_root / "val")
    look = look_at(dataset, 0, 0, Collate(), 28)
    sample = dataset[0]
    assert (
        look.masks.shape == (len(sample), 28, 28) and look.labels.tolist() == sample.labels.tolist()
    )
    for mask, box, place in zip(look.masks, sample.boxes, range(len(sample)), strict=True):
        x1, y1, x2, y2 = box
        rings = [((ring - (x1, y1)) * 280 / (x2 - x1, y2 - y1)).ravel().tolist()
                 for ring in sample.rings(place)]  # fmt: skip
        fine = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, 280, 280)))
        centres = fine[5::10, 5::10] > 0
        # A cell's centre may lie within a hair of the boundary.
        assert (centres != mask).mean() < 0.02
        assert 0.1 < mask.mean() <= 1
    assert "padded to" in look.title and look.picture.dtype == np.uint8
