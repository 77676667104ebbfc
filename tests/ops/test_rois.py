"""The arguments of the RoI ops: both forms of boxes, sizes, and what is refused."""

import pytest
import torch

from detector.ops.crop_and_resize import crop_and_resize
from detector.ops.roi_align import roi_align
from detector.ops.roi_pool import roi_pool
from detector.ops.roi_warp import roi_warp
from detector.ops.rois import (
    as_height_width,
    check_features,
    check_mode,
    check_scale,
    flatten_boxes,
    memory_format_of,
    park_unusable,
    quantise_boxes,
)

FEATURES = torch.zeros(3, 2, 5, 6)
ROWS = torch.tensor([[0, 1.0, 2, 3, 4], [2, 5, 6, 7, 8], [2, 9, 10, 11, 12]])


def test_rows_and_lists_are_the_same_boxes():
    boxes, image_index = flatten_boxes(FEATURES, ROWS)
    lists = [ROWS[:1, 1:], ROWS[:0, 1:], ROWS[1:, 1:]]
    boxes_of_lists, index_of_lists = flatten_boxes(FEATURES, lists)
    assert boxes.tolist() == boxes_of_lists.tolist() == ROWS[:, 1:].tolist()
    assert image_index.tolist() == index_of_lists.tolist() == [0, 2, 2]
    assert image_index.dtype == index_of_lists.dtype == torch.int64


@pytest.mark.parametrize(
    ("features", "boxes", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_boxes_are_computed_with_in_float32_and_float64_with_float64_features(
    features, boxes, expected
):
    for form in (ROWS.to(boxes), [ROWS[:, 1:].to(boxes)] * 3):
        flat, _ = flatten_boxes(FEATURES.to(features), form)
        assert flat.dtype == expected


def test_boxes_get_no_gradient():
    rows = ROWS.clone().requires_grad_()
    assert not flatten_boxes(FEATURES, rows)[0].requires_grad
    assert not flatten_boxes(FEATURES, [rows[:, 1:]] * 3)[0].requires_grad


def test_no_boxes_and_no_images():
    for form in (ROWS[:0], [ROWS[:0, 1:]] * 3):
        boxes, image_index = flatten_boxes(FEATURES, form)
        assert (boxes.shape, image_index.shape) == ((0, 4), (0,))
    boxes, image_index = flatten_boxes(FEATURES[:0], [])
    assert (boxes.shape, image_index.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (ROWS[:, 1:], r"boxes must be \(N, 5\), not \(3, 4\)"),
        (ROWS[0], r"boxes must be \(N, 5\), not \(5,\)"),
        (ROWS.long(), "boxes must be floating point, not torch.int64"),
        ([ROWS[:, 1:]] * 2, "boxes are for 2 images, features have 3"),
        ([ROWS[:, 1:], ROWS, ROWS[:, 1:]], r"boxes\[1\] must be \(N, 4\), not \(3, 5\)"),
        ([ROWS[:, 1:].int()] * 3, r"boxes\[0\] must be floating point"),
        (ROWS.to("meta"), "boxes are on meta, features on cpu"),
        (ROWS + torch.tensor([1.0, 0, 0, 0, 0]), r"boxes\[1, 0\] is not one of the 3 images"),
        (ROWS - torch.tensor([1.0, 0, 0, 0, 0]), r"boxes\[0, 0\] is not one of the 3 images"),
        (ROWS * torch.tensor([torch.nan, 1, 1, 1, 1]), r"boxes\[0, 0\] is not one of"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        flatten_boxes(FEATURES, boxes)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[0], r"features must be \(B, C, H, W\), not \(2, 5, 6\)"),
        (FEATURES.long(), "features must be one of .* not torch.int64"),
        (FEATURES[:, :, :0], r"features \(3, 2, 0, 6\) have no cell"),
        (FEATURES[:, :0], r"features \(3, 0, 5, 6\) have no cell or no channel"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        check_features(features)


def test_output_sizes():
    assert as_height_width(7) == (7, 7)
    assert as_height_width((2, 3)) == as_height_width([2, 3]) == (2, 3)
    for wrong in (0, (2, 0), (1, 2, 3), (2.0, 3), ()):
        with pytest.raises(ValueError, match="output_size must be one or two positive integers"):
            as_height_width(wrong)


def test_modes_and_scales():
    for mode in ("max", "avg"):
        check_mode(mode)
    with pytest.raises(ValueError, match=r"mode must be one of .* not 'mean'"):
        check_mode("mean")
    check_scale(1 / 16)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="spatial_scale must be finite and positive"):
            check_scale(wrong)


def test_corners_are_rounded_away_from_zero_at_halves():
    """As C's round(); adding a half and cutting would turn the second number into 1."""
    boxes = torch.tensor([[0.5, 0.49999997, 1.5, 2.5], [-0.5, -1.5, -0.4999, 3.4999]])
    assert quantise_boxes(boxes).tolist() == [[1, 0, 2, 3], [-1, -2, 0, 3]]


def test_a_quantised_roi_has_a_cell_and_stays_within_integers():
    boxes = torch.tensor([[5.0, 6, 2, 1], [-1e30, -4e9, 4e9, 1e30]])
    far = 2.0**24
    assert quantise_boxes(boxes).tolist() == [[5, 6, 5, 6], [-far, -far, far, far]]


def test_what_cannot_be_cast_to_a_cell_is_parked_outside():
    boxes = torch.tensor([[1.0, 2, 3, 4], [torch.nan, 2, 3, 4], [1, 2, torch.inf, 4]])
    boxes = torch.cat((boxes, boxes[:1], boxes[:1]))
    index = torch.tensor([1, 0, 0, 2, -1])
    parked, images = park_unusable(boxes, index, num_images=2)
    assert parked[0].tolist() == [1, 2, 3, 4]
    assert images.tolist() == [1, 0, 0, 0, 0]
    assert (parked[1:] < -2).all()


def test_layout_of_the_output_is_that_of_the_features():
    last = FEATURES.to(memory_format=torch.channels_last)
    assert memory_format_of(FEATURES) == torch.contiguous_format
    assert memory_format_of(last) == torch.channels_last
    assert memory_format_of(FEATURES[:, :, :, ::2]) == torch.contiguous_format
    # One cell, one channel: both at once.
    assert memory_format_of(FEATURES[:, :, :1, :1].contiguous()) == torch.contiguous_format


@pytest.mark.parametrize("op", [crop_and_resize, roi_align, roi_pool, roi_warp])
def test_an_exported_op_takes_any_number_of_rois(op):
    class Pool(torch.nn.Module):
        def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
            return op(features, rois, 2)

    features = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    shapes = {"features": None, "rois": {0: torch.export.Dim("n", min=2, max=1000)}}
    exported = torch.export.export(Pool(), (features, ROWS), dynamic_shapes=shapes).module()
    rois = torch.cat((ROWS, ROWS.flip(0), ROWS / 4))
    rois[:, 0] = 1
    torch.testing.assert_close(exported(features, rois), op(features, rois, 2))
