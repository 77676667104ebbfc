"""RoI pooling against torchvision, a loop over bins, numbers by hand and numerical gradients."""

import math

import pytest
import torch
import torchvision

from detector.ops.roi_pool import pool_rois, roi_pool


def random_rois(num_rois: int = 200, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Over a picture of 88 x 72, of two images: inside, across the border, outside, reversed."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(num_rois, 4, generator=generator, dtype=dtype) * 160 - 40
    corners[:50, 2:] = corners[:50, :2] + 3 * torch.rand(50, 2, generator=generator, dtype=dtype)
    corners[50:150, 2:] = corners[50:150, :2] + corners[50:150, 2:].abs()
    corners[150] = 0
    images = torch.randint(0, 2, (num_rois, 1), generator=generator)
    return torch.cat((images.to(dtype), corners), 1)


def random_features(dtype: torch.dtype = torch.float32, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 9, 11, generator=generator, dtype=dtype)


def loop(features, rois, size, scale, mode):
    """Bin by bin, in Python's integers and slices."""

    def nearest(value):
        return int(math.copysign(math.floor(abs(value) + 0.5), value))

    rows = []
    for roi in rois.tolist():
        x1, y1, x2, y2 = (nearest(value * scale) for value in roi[1:])
        width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        feature = features[int(roi[0])]
        cells = []
        for i in range(size[0]):
            for j in range(size[1]):
                top = max(y1 + i * height // size[0], 0)
                left = max(x1 + j * width // size[1], 0)
                bottom = max(y1 - (-(i + 1) * height // size[0]), 0)
                right = max(x1 - (-(j + 1) * width // size[1]), 0)
                part = feature[:, top:bottom, left:right].flatten(1)
                if not part.shape[1]:
                    cells.append(part.sum(1))
                else:
                    cells.append(part.amax(1) if mode == "max" else part.mean(1))
        rows.append(torch.stack(cells, 1).unflatten(1, size))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (7, 2), (20, 15)])
@pytest.mark.parametrize("scale", [1 / 8, 0.1])
def test_equals_torchvision(dtype, size, scale):
    rois = random_rois(dtype=dtype)
    ours, theirs = random_features(dtype), random_features(dtype)
    pooled = roi_pool(ours.requires_grad_(), rois, size, scale)
    expected = torchvision.ops.roi_pool(theirs.requires_grad_(), rois, size, scale)
    assert torch.equal(pooled, expected)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (4, 2)])
def test_equals_a_loop_over_bins(mode, size):
    features, rois = random_features(torch.float64), random_rois(dtype=torch.float64)
    pooled = roi_pool(features, rois, size, 1 / 8, mode)
    torch.testing.assert_close(pooled, loop(features, rois, size, 1 / 8, mode))


def test_by_hand():
    """A 5 x 4 map of 0..19; the RoI (1, 0)..(4, 2) in bins of 2 x 2 shares row 1 and no column."""
    features = torch.arange(20.0).view(1, 1, 4, 5)
    rois = torch.tensor([[0, 1.0, 0, 4, 2]])
    assert roi_pool(features, rois, 2).tolist() == [[[[7, 9], [12, 14]]]]
    # Rows 0-1 and 1-2, columns 1-2 and 3-4.
    assert roi_pool(features, rois, 2, mode="avg").tolist() == [[[[4, 6], [9, 11]]]]


def test_argmax_is_the_first_of_equals_and_none_without_cells():
    features = torch.zeros(1, 1, 4, 5)
    boxes = torch.tensor([[1.0, 2, 4, 3], [-9, -9, -5, -5]])
    pooled, argmax = pool_rois(features, boxes, torch.tensor([0, 0]), 1, 2, "max")
    assert argmax.dtype == torch.int32
    assert argmax.flatten(1).tolist() == [[11, 13], [-1, -1]]
    assert pooled.flatten(1).tolist() == [[0, 0], [0, 0]]


def test_gradients_of_overlapping_rois_add_up():
    features = torch.arange(20.0).view(1, 1, 4, 5).requires_grad_()
    rois = torch.tensor([[0, 0.0, 0, 4, 3], [0, 2, 1, 4, 3], [0, 0, 0, 1, 1]])
    pooled = roi_pool(features, rois, 1)
    (pooled * torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1)).sum().backward()
    expected = torch.zeros(4, 5)
    expected[3, 4], expected[1, 1] = 11, 100
    assert torch.equal(features.grad[0, 0], expected)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_numerical_gradient(mode):
    features = random_features(torch.float64, channels=1).requires_grad_()
    rois = random_rois(dtype=torch.float64)[45:53]
    torch.autograd.gradcheck(lambda x: roi_pool(x, rois, (3, 2), 1 / 8, mode), features)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_boxes_that_are_not_finite_pool_nothing(mode, value, column):
    rois = torch.tensor([[0, 8.0, 8, 60, 60]])
    features = random_features().requires_grad_()
    assert roi_pool(features, rois, 2, 1 / 8, mode).ne(0).all()
    rois[0, column] = value
    pooled = roi_pool(features, rois, 2, 1 / 8, mode)
    assert not pooled.any()
    pooled.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_a_huge_box_is_pooled_like_the_map_and_nothing_around(mode):
    features = random_features()
    rois = torch.tensor([[1, -1e12, -1e12, 1e12, 1e12]])
    pooled = roi_pool(features, rois, 1, mode=mode)[0, :, 0, 0]
    whole = features[1].flatten(1)
    torch.testing.assert_close(pooled, whole.amax(1) if mode == "max" else whole.mean(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_16_bit_features_are_pooled_in_float32(dtype, mode):
    features, rois = random_features().to(dtype), random_rois()
    pooled = roi_pool(features, rois, 3, 1 / 8, mode)
    expected = roi_pool(features.float(), rois, 3, 1 / 8, mode)
    assert torch.equal(pooled, expected.to(dtype))


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_layouts_agree(mode):
    features, rois = random_features(), random_rois()
    pooled = roi_pool(features.to(memory_format=torch.channels_last), rois, 3, 1 / 8, mode)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, roi_pool(features, rois, 3, 1 / 8, mode))


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_no_rois_give_no_rows_and_zero_gradients(mode):
    features = random_features().requires_grad_()
    pooled = roi_pool(features, [torch.zeros(0, 4)] * 2, (3, 2), mode=mode)
    assert pooled.shape == (0, 3, 3, 2)
    pooled.sum().backward()
    assert features.grad.eq(0).all()
    assert roi_pool(random_features()[:0], [], (3, 2), mode=mode).shape == (0, 3, 3, 2)


def test_wrong_arguments_are_named():
    features, rois = random_features(), random_rois()
    with pytest.raises(ValueError, match=r"mode must be one of .* not 'sum'"):
        roi_pool(features, rois, 3, mode="sum")
    with pytest.raises(ValueError, match="output_size must be"):
        roi_pool(features, rois, 0)
    with pytest.raises(ValueError, match="spatial_scale must be"):
        roi_pool(features, rois, 3, spatial_scale=0.0)
    with pytest.raises(ValueError, match=r"features must be \(B, C, H, W\)"):
        roi_pool(features[0], rois, 3)
