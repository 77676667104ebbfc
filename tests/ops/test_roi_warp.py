"""RoI warping by hand, against crop-and-resize and pooling, and by numerical gradients."""

import pytest
import torch
import torch.nn.functional as F

from detector.ops.crop_and_resize import crop_and_resize
from detector.ops.roi_warp import roi_warp


def random_features(dtype: torch.dtype = torch.float32, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 9, 11, generator=generator, dtype=dtype)


# (image, x1, y1, x2, y2) on a picture of 88 x 72: ordinary, the whole, across the border, outside,
# of one cell, inverted.
ROIS = torch.tensor(
    [
        [0, 8.3, 11.7, 61.1, 33.9],
        [1, 0, 0, 80, 64],
        [1, -22, -13, 31, 40],
        [0, 50, 40, 130, 110],
        [0, 200, 200, 260, 260],
        [1, 33, 22, 34, 23],
        [0, 40, 40, 30, 30],
    ]
)


def test_by_hand():
    """The corners (0.6, 0.5) and (3.4, 0.9) are the cells (1, 1) and (3, 1)."""
    features = torch.tensor([[[[9.0, 9, 9, 9, 9], [0, 3, 6, 0, 9], [9, 9, 9, 9, 9]]]])
    rois = torch.tensor([[0, 0.6, 0.5, 3.4, 0.9]])
    # Four points between the centres of cells 1 and 3, two rows that coincide: 3, 5, 4, 0.
    for mode, expected in (("max", [5.0, 4]), ("avg", [4.0, 2])):
        pooled = roi_warp(features, rois, (1, 2), mode=mode)
        torch.testing.assert_close(pooled, torch.tensor([[[expected]]]))


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (2, 5)])
def test_equals_a_crop_of_twice_the_size_that_is_pooled(mode, size):
    features = random_features(torch.float64)
    # Halves of cells do not occur, so that Python's rounding is the one meant.
    corners = (ROIS[:, 1:].double() / 8).round()
    corners[:, 2:] = torch.maximum(corners[:, :2], corners[:, 2:])
    boxes = corners / torch.tensor([10, 8, 10, 8])
    rois = torch.cat((ROIS[:, :1].double(), boxes), 1)
    crop = crop_and_resize(features, rois, (2 * size[0], 2 * size[1]))
    expected = F.max_pool2d(crop, 2) if mode == "max" else F.avg_pool2d(crop, 2)
    torch.testing.assert_close(roi_warp(features, ROIS.double(), size, 1 / 8, mode), expected)


@pytest.mark.parametrize("width", range(2, 40))
def test_the_last_cell_of_the_map_is_read_whatever_the_rounding(width):
    """Were the last of the points rounded off the map, it would be 0."""
    features = torch.ones(1, 1, 1, width)
    for size in range(1, 17):
        pooled = roi_warp(features, [torch.tensor([[0.0, 0, width - 1, 0]])], (1, size), mode="avg")
        torch.testing.assert_close(pooled, torch.ones(1, 1, 1, size))


def test_a_part_outside_the_map_is_zero():
    features = -torch.ones(1, 1, 4, 4)
    rois = torch.tensor([[0, -4.0, 0, 3, 3]])
    pooled = roi_warp(features, rois, (1, 4))
    assert pooled.tolist() == [[[[0, 0, -1, -1]]]]
    average = roi_warp(features, rois, (1, 4), mode="avg")
    assert average.tolist() == [[[[0, 0, -1, -1]]]]


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_numerical_gradient(mode):
    features = random_features(torch.float64, channels=1).requires_grad_()
    torch.autograd.gradcheck(lambda x: roi_warp(x, ROIS.double(), (2, 1), 1 / 8, mode), features)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_boxes_that_are_not_finite_give_nothing(mode, value, column):
    features = random_features().requires_grad_()
    rois = ROIS[:1].clone()
    assert roi_warp(features, rois, 2, 1 / 8, mode).ne(0).all()
    rois[0, column] = value
    pooled = roi_warp(features, rois, 2, 1 / 8, mode)
    assert not pooled.any()
    pooled.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_layouts_agree_and_no_rois_give_no_rows(mode):
    features = random_features()
    pooled = roi_warp(features.to(memory_format=torch.channels_last), ROIS, 3, 1 / 8, mode)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, roi_warp(features, ROIS, 3, 1 / 8, mode))
    features.requires_grad_()
    nothing = roi_warp(features, ROIS[:0], (3, 2), mode=mode)
    assert nothing.shape == (0, 3, 3, 2)
    nothing.sum().backward()
    assert features.grad.eq(0).all()


def test_wrong_arguments_are_named():
    features = random_features()
    with pytest.raises(ValueError, match="mode must be one of"):
        roi_warp(features, ROIS, 3, mode="sum")
    with pytest.raises(ValueError, match="spatial_scale must be"):
        roi_warp(features, ROIS, 3, spatial_scale=-1.0)
    with pytest.raises(ValueError, match="output_size must be"):
        roi_warp(features, ROIS, (3, 3, 3))
