"""Pasting masks: against grid_sample over the whole image, and against pycocotools' encoder."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from detector.ops import masks as masks_module
from detector.ops.masks import box_patches, masks_to_rle, paste_masks
from detector.ops.reference.masks import paste_masks as reference_paste_masks
from tests.ops.cases_masks import extreme_boxes, random_boxes, smooth_masks


def grid_sampled(masks, boxes, height, width):
    """The meaning: every pixel centre of the image looked up in the mask, zeros outside it."""
    x1, y1, x2, y2 = boxes.double().unbind(1)
    x = (torch.arange(width).double() + 0.5 - x1[:, None]) / (x2 - x1)[:, None] * 2 - 1
    y = (torch.arange(height).double() + 0.5 - y1[:, None]) / (y2 - y1)[:, None] * 2 - 1
    shape = (len(boxes), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks.double()[:, None], grid, align_corners=False)[:, 0]


def encoded(pasted):
    fortran = np.asfortranarray(pasted.numpy().transpose(1, 2, 0).astype(np.uint8))
    return [rle["counts"].decode() for rle in coco_mask.encode(fortran)]


@pytest.mark.parametrize("side", [14, 28])
def test_pasting_is_grid_sampling_cut_at_one_half(side):
    height, width = 61, 83
    masks = torch.rand(60, side, side, generator=torch.Generator().manual_seed(side))
    boxes = random_boxes(60, height, width, seed=side)
    expected = grid_sampled(masks, boxes, height, width)
    pasted = paste_masks(masks, boxes, height, width)
    # The products are rounded to float32: probabilities that close to the threshold may flip.
    clear = (expected - 0.5).abs() > 1e-5
    assert clear.float().mean() > 0.999
    assert torch.equal(pasted[clear], (expected >= 0.5)[clear])
    assert pasted.any(), "the boxes must reach into the image for the test to mean something"


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_any_threshold_sees_the_half_cell_of_fading_around_the_box(threshold):
    masks, boxes = torch.ones(1, 4, 4), torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    expected = grid_sampled(masks, boxes, 40, 40) >= threshold
    assert torch.equal(paste_masks(masks, boxes, 40, 40, threshold), expected)


def test_full_mask_covers_exactly_the_pixels_whose_centres_lie_in_the_box():
    boxes = torch.tensor([[2.0, 3.0, 7.0, 5.0], [2.4, 3.6, 7.6, 5.4], [0.0, 0.0, 9.0, 8.0]])
    pasted = paste_masks(torch.ones(3, 28, 28), boxes, 8, 9)
    expected = torch.zeros(3, 8, 9, dtype=torch.bool)
    expected[0, 3:5, 2:7] = True
    # 2.4 excludes no centre from 2.5 on, 7.6 reaches the centre 7.5; 3.6 excludes 3.5.
    expected[1, 4:5, 2:8] = True
    expected[2] = True
    assert torch.equal(pasted, expected)


def test_translating_box_by_whole_pixels_translates_the_mask():
    masks = torch.rand(8, 28, 28, generator=torch.Generator().manual_seed(1))
    boxes = random_boxes(8, 40, 40, seed=2, reach=0.0)
    still = paste_masks(masks, boxes, 50, 60)
    moved = paste_masks(masks, boxes + torch.tensor([15.0, 7.0, 15.0, 7.0]), 50, 60)
    assert torch.equal(moved[:, 7:, 15:], still[:, :-7, :-15])


@pytest.mark.parametrize("height, width", [(61, 83), (7, 5), (1, 1)])
def test_rle_is_the_encoding_of_the_pasted_mask(height, width):
    masks = torch.rand(80, 28, 28, generator=torch.Generator().manual_seed(3))
    boxes = random_boxes(80, height, width, seed=4)
    encodings = masks_to_rle(masks, boxes, height, width)
    assert [rle["counts"] for rle in encodings] == encoded(paste_masks(masks, boxes, height, width))
    assert all(rle["size"] == [height, width] for rle in encodings)


def test_rle_joins_columns_that_run_from_top_to_bottom():
    # Full columns in the middle, at both ends, and the whole image.
    boxes = torch.tensor([[2, -9, 5, 19], [0, -9, 3, 19], [4, -9, 8, 19], [-9, -9, 19, 19.0]])
    encodings = masks_to_rle(torch.ones(4, 28, 28), boxes, 6, 8)
    assert [rle["counts"] for rle in encodings] == encoded(
        paste_masks(torch.ones(4, 28, 28), boxes, 6, 8)
    )
    assert [int(coco_mask.area(rle)) for rle in encodings] == [18, 18, 24, 48]


def test_boxes_that_hold_no_pixel_give_empty_masks():
    boxes = torch.tensor(
        [
            [3.0, 3.0, 3.0, 9.0],  # no width
            [5.0, 5.0, 4.0, 6.0],  # turned inside out
            [20.0, 20.0, 30.0, 30.0],  # outside
            [-9.0, -9.0, -1.0, -1.0],  # outside
            [2.6, 2.6, 3.4, 3.4],  # between the centres of pixels
        ]
    )
    assert not paste_masks(torch.ones(5, 28, 28), boxes, 10, 10).any()
    encodings = masks_to_rle(torch.ones(5, 28, 28), boxes, 10, 10)
    assert [int(coco_mask.area(rle)) for rle in encodings] == [0] * 5
    assert [rle["counts"] for rle in encodings] == encoded(torch.zeros(5, 10, 10))


def test_no_detections():
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert masks_to_rle(*nothing, 10, 12) == []
    assert paste_masks(*nothing, 10, 12).shape == (0, 10, 12)


@pytest.mark.parametrize("side", [1, 2, 7, 28, 112])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_crossings_give_the_same_bits_as_sampling_every_pixel(side, threshold):
    for height, width, seed in [(37, 41, 0), (1, 50, 1), (300, 3, 2)]:
        boxes = torch.cat([random_boxes(60, height, width, seed, reach=2.0), extreme_boxes()])
        # Boxes on whole and half pixels, and values of eighths: crossings exactly at centres.
        boxes = torch.cat([boxes, (boxes[:60] * 2).round() / 2])
        noise = torch.rand(len(boxes), side, side, generator=torch.Generator().manual_seed(seed))
        for masks in (noise, (noise * 8).round() / 8, smooth_masks(len(boxes), side, seed)):
            expected = reference_paste_masks(masks, boxes, height, width, threshold)
            assert torch.equal(paste_masks(masks, boxes, height, width, threshold), expected)
            encodings = masks_to_rle(masks, boxes, height, width, threshold)
            assert [rle["counts"] for rle in encodings] == encoded(expected)
        assert expected.any()


def test_centres_of_cells_on_centres_of_pixels():
    """Cells exactly at the threshold, looked up exactly at their centres: the last bit decides."""
    generator = torch.Generator().manual_seed(0)
    for side in (14, 28):
        masks = torch.randint(0, 3, (400, side, side), generator=generator) / 2
        corner = torch.randint(-9, 30, (400, 2), generator=generator)
        extent = torch.randint(1, 60, (400, 2), generator=generator)
        boxes = torch.cat([corner, corner + extent], dim=1) / 2
        expected = reference_paste_masks(masks, boxes, 31, 29)
        assert torch.equal(paste_masks(masks, boxes, 31, 29), expected)
        encodings = masks_to_rle(masks, boxes, 31, 29)
        assert [rle["counts"] for rle in encodings] == encoded(expected)


def test_nothing_is_lost_or_doubled_between_groups_of_masks(monkeypatch):
    masks, boxes = smooth_masks(30, 28, 0), random_boxes(30, 40, 50, seed=7)
    boxes[[0, 9, 10, 29]] = -5.0  # no column at all
    whole = masks_to_rle(masks, boxes, 40, 50), paste_masks(masks, boxes, 40, 50)
    for columns in (1, 30, 77):
        monkeypatch.setattr(masks_module, "COLUMNS", columns)
        assert masks_to_rle(masks, boxes, 40, 50) == whole[0]
        assert torch.equal(paste_masks(masks, boxes, 40, 50), whole[1])


def test_nan_and_infinite_boxes_give_empty_masks():
    boxes = extreme_boxes()
    broken = ~boxes.isfinite().all(1)
    pasted = paste_masks(torch.ones(len(boxes), 28, 28), boxes, 33, 35)
    assert not pasted[broken].any()
    # A box from -1e17 to 1e17 covers the image.
    assert pasted[(boxes[:, 2] == 1e17)].all()


def test_nan_probabilities_are_outside():
    masks = torch.full((1, 4, 4), 0.9)
    masks[0, 1, 2] = float("nan")
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    pasted = paste_masks(masks, boxes, 40, 40)
    assert torch.equal(pasted, reference_paste_masks(masks, boxes, 40, 40))
    assert not pasted[0, 10:20, 20:30].any() and pasted[0, 30:36, 4:36].all()
    assert masks_to_rle(masks, boxes, 40, 40)[0]["counts"] == encoded(pasted)[0]


def test_equals_torchvision_where_the_conventions_agree():
    """torchvision pads the mask by a cell, widens the box as much, cuts its corners to whole
    numbers and counts the last pixel in: boxes a little short of M pixels have a cell on each."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks = torch.rand(20, 28, 28, generator=torch.Generator().manual_seed(8))
    corner = torch.randint(1, 60, (20, 2), generator=torch.Generator().manual_seed(9)).float()
    boxes = torch.cat([corner, corner + 28], dim=1)
    little = torch.tensor([0, 0, 0.01, 0.01])
    theirs = paste_masks_in_image(masks[:, None], boxes - little, (64, 70))[:, 0]
    assert torch.equal(paste_masks(masks, boxes, 64, 70), theirs >= 0.5)


def test_patches_hold_all_of_the_mask():
    masks, boxes = smooth_masks(20, 28, 1), random_boxes(20, 40, 50, seed=10)
    pasted = paste_masks(masks, boxes, 40, 50)
    for (top, left, patch), whole in zip(
        box_patches(masks, boxes, 40, 50), pasted.numpy(), strict=True
    ):
        bottom, right = top + patch.shape[0], left + patch.shape[1]
        assert (whole[top:bottom, left:right] == patch).all()
        assert whole.sum() == patch.sum()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"masks": torch.zeros(2, 3, 4)}, "masks must be"),
        ({"masks": torch.zeros(2, 3, 3).long()}, "masks must be floating point"),
        ({"boxes": torch.zeros(3, 4)}, "boxes must be"),
        ({"boxes": torch.zeros(2, 4).int()}, "boxes must be floating point"),
        ({"height": 0}, "height 0"),
        ({"width": 2**28}, "width 268435456"),
        ({"threshold": 0.0}, "threshold must be more than 0"),
        ({"threshold": float("nan")}, "threshold must be more than 0"),
    ],
)
def test_what_cannot_be_pasted_is_refused(change, message):
    arguments = {"masks": torch.zeros(2, 3, 3), "boxes": torch.zeros(2, 4)}
    arguments = {**arguments, "height": 8, "width": 8, "threshold": 0.5, **change}
    for function in (paste_masks, masks_to_rle):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


def test_half_precision_masks_are_taken_as_they_are():
    masks = (torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(5)) * 255).bfloat16()
    masks, boxes = masks / 255, random_boxes(5, 30, 30, seed=6)
    assert torch.equal(paste_masks(masks, boxes, 30, 30), paste_masks(masks.float(), boxes, 30, 30))


def test_memory_does_not_grow_with_the_image():
    """Bitmaps of these detections would take 107 MB, their float values four times as much."""
    masks, boxes = smooth_masks(100, 28, 3), random_boxes(100, 800, 1333, seed=11)
    masks_to_rle(masks[:1], boxes[:1], 800, 1333)
    tracemalloc.start()
    masks_to_rle(masks, boxes, 800, 1333)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 800 * 1333 / 10
