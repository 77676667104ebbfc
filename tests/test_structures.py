"""The padded structures move as one."""

import dataclasses

import pytest
import torch

from detector.structures import Batch, Polygons, Targets


def make_batch() -> Batch:
    polygons = Polygons(torch.zeros(2, 4, 4), torch.zeros(2, 4).long(), max_edges=16)
    targets = Targets(
        torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3).bool(), polygons
    )
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sizes = torch.tensor([[8, 8], [6, 4]])
    return Batch(images, sizes, sizes, torch.tensor([7, 9]), targets)


def test_moving_reaches_nested_tensors_and_keeps_dtypes_and_the_rest():
    batch = make_batch()
    moved = batch.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.targets.boxes.device.type == "meta"
    assert moved.targets.polygons.edges.device.type == "meta"
    assert moved.targets.polygons.max_edges == 16
    assert moved.images.dtype == torch.uint8
    assert moved.targets.valid.dtype == torch.bool
    assert batch.images.device.type == "cpu", "the original stays where it was"


def test_absent_parts_stay_absent():
    batch = make_batch()
    inference = dataclasses.replace(batch, targets=None)
    assert inference.to("meta").targets is None
    boxes_only = dataclasses.replace(batch.targets, polygons=None)
    assert boxes_only.to("meta").polygons is None


def test_structures_are_read_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_batch().images = torch.zeros(1)
