"""The kernel that rasterises polygons, run on the CPU, against counting crossings."""

import pytest
import torch

from detector.ops.cuda import polygons as kernels
from detector.ops.reference.polygons import rasterize_polygons as reference_rasterize_polygons
from detector.structures import Polygons
from tests.ops.cases_masks import SHAPES, circle, extreme_boxes, pack, random_scene


def both(polygons: Polygons, boxes, image_index, gt_index, size):
    arguments = polygons.edges, polygons.offsets, boxes, image_index, gt_index
    masks = kernels.rasterize_polygons(*arguments, polygons.max_edges, size)
    assert masks.dtype == torch.float32 and masks.shape == (len(boxes), size, size)
    return masks, reference_rasterize_polygons(*arguments, size)


@pytest.mark.parametrize("size", [1, 7, 14, 28, 56])
def test_same_bits_as_the_reference(host_kernels, size):
    masks, expected = both(*random_scene(seed=size), size)
    assert torch.equal(masks, expected)
    assert 0.05 < expected.mean() < 0.95


def test_in_any_order_of_threads(host_kernels_any_order):
    masks, expected = both(*random_scene(seed=99, num_rois=30), 33)
    assert torch.equal(masks, expected)


@pytest.mark.parametrize("size", [112, 160])
def test_masks_in_bands_where_shared_memory_is_too_small(host_kernels, size):
    masks, expected = both(*random_scene(seed=size, num_rois=20), size)
    assert 4 * size * size > 48 * 1024
    assert torch.equal(masks, expected)


def test_more_edges_than_threads(host_kernels):
    polygons = pack([[[circle(25, 25, 22.2, 700), circle(24, 26, 9.4, 555, clockwise=True)]]])
    boxes = torch.tensor([[0.0, 0.0, 50.0, 50.0], [10.3, 7.9, 37.7, 41.2]])
    index = torch.zeros(2).long()
    masks, expected = both(polygons, boxes, index, index, 28)
    assert torch.equal(masks, expected)
    assert expected.any()


def test_boxes_of_no_or_any_size_and_nan(host_kernels):
    boxes = extreme_boxes()
    for rings in (SHAPES["covers everything"], SHAPES["hole"]):
        index = torch.zeros(len(boxes)).long()
        masks, expected = both(pack([[rings]]), boxes, index, index, 28)
        assert torch.equal(masks, expected)
        assert not masks[~boxes.isfinite().all(1)].any()


def test_indices_without_an_image_or_gt_give_zeros(host_kernels):
    polygons = pack([[SHAPES["hole"]], [SHAPES["triangle"]]])
    indices = torch.tensor([[-1, 0], [2, 0], [0, -1], [0, 1], [2**40, 0], [0, -(2**40)], [1, 0]])
    boxes = torch.tensor([[0.0, 0.0, 50.0, 50.0]]).repeat(len(indices), 1)
    masks = kernels.rasterize_polygons(
        polygons.edges, polygons.offsets, boxes, *indices.T, polygons.max_edges, 14
    )
    assert not masks[:-1].any()
    assert masks[-1].any()


def test_no_rois_and_no_edges(host_kernels):
    nothing = torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long()
    masks, expected = both(pack([[SHAPES["hole"]]]), *nothing, 14)
    assert torch.equal(masks, expected)
    without_edges = Polygons(torch.zeros(1, 0, 4), torch.zeros(1, 2).long(), max_edges=0)
    index = torch.zeros(1).long()
    masks, _ = both(without_edges, torch.tensor([[0.0, 0.0, 9.0, 9.0]]), index, index, 14)
    assert not masks.any()


def test_views_that_do_not_begin_on_16_bytes(host_kernels):
    polygons, *rois = random_scene(seed=3, num_rois=10)
    storage = torch.empty(polygons.edges.numel() + 1)
    edges = storage[1:].view(polygons.edges.shape).copy_(polygons.edges)
    masks, expected = both(Polygons(edges, polygons.offsets, polygons.max_edges), *rois, 14)
    assert torch.equal(masks, expected)
