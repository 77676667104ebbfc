"""The kernels that put masks into an image, run on the CPU, against sampling every pixel."""

import pytest
import torch

from detector.ops.cuda import masks as kernels
from detector.ops.masks import _rle_by_kernel as rle_by_kernel
from detector.ops.masks import masks_to_rle, paste_masks
from detector.ops.reference.masks import paste_masks as reference_paste_masks
from tests.ops.cases_masks import extreme_boxes, random_boxes, smooth_masks

SIZES = [(37, 41), (1, 50), (60, 3), (1, 1), (16, 32)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("side", [1, 7, 28])
def test_same_bits_as_the_reference(host_kernels, side, height, width):
    boxes = torch.cat([random_boxes(40, height, width, side, reach=1.0), extreme_boxes()])
    # Boxes on whole and half pixels, and values of eighths: crossings exactly at centres.
    boxes = torch.cat([boxes, (boxes[:40] * 2).round() / 2])
    noise = torch.rand(len(boxes), side, side, generator=torch.Generator().manual_seed(side))
    for masks in ((noise * 8).round() / 8, smooth_masks(len(boxes), side, 1)):
        for threshold in (0.5, 0.3):
            arguments = (masks, boxes, height, width, threshold)
            expected = reference_paste_masks(*arguments)
            assert torch.equal(kernels.paste_masks(*arguments), expected)
            assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)
    assert expected.any()


def test_centres_of_cells_on_centres_of_pixels(host_kernels):
    """Cells exactly at the threshold, looked up exactly at their centres: the last bit decides."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (300, 14, 14), generator=generator) / 2
    corner = torch.randint(-9, 30, (300, 2), generator=generator)
    extent = torch.randint(1, 60, (300, 2), generator=generator)
    arguments = (masks, torch.cat([corner, corner + extent], dim=1) / 2, 31, 29, 0.5)
    assert torch.equal(kernels.paste_masks(*arguments), reference_paste_masks(*arguments))
    assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(host_kernels, dtype):
    masks, boxes = smooth_masks(20, 28, 2).to(dtype), random_boxes(20, 50, 61, seed=3)
    arguments = (masks, boxes.double(), 50, 61, 0.5)
    assert torch.equal(kernels.paste_masks(*arguments), paste_masks(*arguments))
    assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)


def test_masks_in_any_strides(host_kernels):
    masks, boxes = smooth_masks(20, 14, 2).transpose(1, 2)[::2], random_boxes(20, 30, 31, 4)[::2]
    arguments = (masks, boxes, 30, 31, 0.5)
    assert torch.equal(kernels.paste_masks(*arguments), paste_masks(*arguments))
    assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)


def test_more_columns_than_a_block_and_many_blocks_a_mask(host_kernels_any_order):
    masks, boxes = smooth_masks(4, 28, 5), random_boxes(4, 90, 301, seed=5)
    arguments = (masks, boxes, 90, 301, 0.5)
    assert torch.equal(kernels.paste_masks(*arguments), paste_masks(*arguments))
    assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)


def test_nan_probabilities(host_kernels):
    masks = smooth_masks(5, 8, 6)
    masks[:, 2:4, 3] = float("nan")
    arguments = (masks, random_boxes(5, 40, 40, seed=6), 40, 40, 0.5)
    assert torch.equal(kernels.paste_masks(*arguments), reference_paste_masks(*arguments))
    assert rle_by_kernel(*arguments) == masks_to_rle(*arguments)


def test_no_masks_and_no_borders(host_kernels):
    nothing = (torch.zeros(0, 28, 28), torch.zeros(0, 4), 10, 12, 0.5)
    assert kernels.paste_masks(*nothing).shape == (0, 10, 12)
    assert rle_by_kernel(*nothing) == []
    outside = (torch.ones(2, 28, 28), torch.full((2, 4), 99.0), 10, 12, 0.5)
    assert not kernels.paste_masks(*outside).any()
    assert rle_by_kernel(*outside) == masks_to_rle(*outside)
