"""RoIAlign against torchvision, a loop over samples, numbers by hand and numerical gradients."""

import math

import pytest
import torch
import torchvision

from detector.ops import sampled_pooling
from detector.ops.reference.roi_align import roi_align as reference_roi_align
from detector.ops.roi_align import align_samples, roi_align

ALIGNED = pytest.mark.parametrize("aligned", [False, True])
RATIOS = pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3])


def random_rois(num_rois: int = 100, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Over a picture of 88 x 72, of two images: inside, across the border, outside, reversed."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(num_rois, 4, generator=generator, dtype=torch.float64) * 160 - 40
    half = num_rois // 2
    corners[:half, 2:] = corners[:half, :2] + corners[:half, 2:].abs()
    corners[0] = 0
    corners[1] = torch.tensor([-300.0, -300, 400, 400])
    images = torch.randint(0, 2, (num_rois, 1), generator=generator)
    return torch.cat((images, corners), 1).to(dtype)


def random_features(dtype: torch.dtype = torch.float64, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    return features.to(dtype)


def gradient_of(function, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = features.detach().requires_grad_()
    pooled = function(features)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    (pooled * weight.to(pooled.dtype)).sum().backward()
    return pooled.detach(), features.grad


def sampled(features, rois, size, scale, ratio, aligned, mode):
    """What a GPU computes: all of it by the op that pools samples."""
    grid, samples = align_samples(rois[:, 1:] * scale, size, ratio, aligned)
    index, ratio = rois[:, 0].long(), max(ratio, 0)
    return sampled_pooling.pool_samples(
        features, index, grid, samples, *size, ratio, "clamp", mode
    )[0]


def torchvisions(features, rois, size, scale, ratio, aligned):
    """torchvision, which for reversed boxes has no table of adaptive samples: they have none."""
    pooled = torch.zeros(len(rois), features.shape[1], *size, dtype=features.dtype)
    rows = torch.ones(len(rois), dtype=torch.bool)
    if ratio <= 0 and aligned:
        rows = (rois[:, 3:] > rois[:, 1:3]).all(1)
    rows = rows.nonzero()[:, 0]
    part = torchvision.ops.roi_align(features, rois[rows], size, scale, ratio, aligned)
    return pooled.index_copy(0, rows, part)


@ALIGNED
@RATIOS
@pytest.mark.parametrize("size", [(3, 3), (1, 4)])
def test_equals_torchvision(size, ratio, aligned):
    features, rois = random_features(), random_rois()
    arguments = (rois, size, 0.11, ratio, aligned)
    expected, expected_grad = gradient_of(lambda x: torchvisions(x, *arguments), features)
    assert expected.any()
    for function in (
        lambda x: roi_align(x, *arguments),
        lambda x: sampled(x, *arguments, "avg"),
        lambda x: reference_roi_align(x, *arguments),
    ):
        pooled, grad = gradient_of(function, features)
        torch.testing.assert_close(pooled, expected)
        torch.testing.assert_close(grad, expected_grad)


@ALIGNED
@pytest.mark.parametrize("ratio", [-1, 2])
def test_float32_has_the_bits_of_torchvision(ratio, aligned):
    """For scales that are powers of two: with others, theirs may be fused with the next sum."""
    features, rois = random_features(torch.float32), random_rois(dtype=torch.float32)
    pooled = roi_align(features, rois, (3, 3), 1 / 8, ratio, aligned)
    assert torch.equal(pooled, torchvisions(features, rois, (3, 3), 1 / 8, ratio, aligned))


def loop_max(features, roi, size, ratio, aligned):
    """The largest bilinear sample of every cell, one sample after another."""
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (value - offset for value in roi[1:].tolist())
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    rows, columns = features.shape[2:]
    across = ratio if ratio > 0 else math.ceil(width / size[1])
    down = ratio if ratio > 0 else math.ceil(height / size[0])
    pooled = torch.zeros(features.shape[1], *size, dtype=features.dtype)
    if across < 1 or down < 1:
        return pooled
    for i in range(size[0]):
        for j in range(size[1]):
            values = []
            for iy in range(down):
                for ix in range(across):
                    y = y1 + height / size[0] * (i + (iy + 0.5) / down)
                    x = x1 + width / size[1] * (j + (ix + 0.5) / across)
                    if not (-1 <= y <= rows and -1 <= x <= columns):
                        values.append(torch.zeros(features.shape[1], dtype=features.dtype))
                        continue
                    y, x = min(max(y, 0.0), rows - 1), min(max(x, 0.0), columns - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                    feature = features[int(roi[0])]
                    upper = feature[:, top, left] * (1 - x + left) + feature[:, top, right] * (
                        x - left
                    )
                    lower = feature[:, bottom, left] * (1 - x + left) + feature[
                        :, bottom, right
                    ] * (x - left)
                    values.append(upper * (1 - y + top) + lower * (y - top))
            pooled[:, i, j] = torch.stack(values).amax(0)
    return pooled


@ALIGNED
@pytest.mark.parametrize("ratio", [-1, 1, 2])
def test_max_equals_a_loop_over_samples(ratio, aligned):
    features = random_features()
    rois = torch.cat((random_rois(60)[:12] / 3, random_rois(60)[-12:]))
    rois[:, 0] = rois[:, 0].ceil()
    pooled = roi_align(features, rois, (2, 3), 1 / 8, ratio, aligned, "max")
    scaled = torch.cat((rois[:, :1], rois[:, 1:] / 8), 1)
    expected = [loop_max(features, roi, (2, 3), ratio, aligned) for roi in scaled]
    torch.testing.assert_close(pooled, torch.stack(expected))


@ALIGNED
@RATIOS
def test_gradient_of_max_is_that_of_the_reference(ratio, aligned):
    features, rois = random_features(), random_rois()
    arguments = (rois, (3, 2), 0.11, ratio, aligned, "max")
    pooled, grad = gradient_of(lambda x: roi_align(x, *arguments), features)
    expected, expected_grad = gradient_of(lambda x: reference_roi_align(x, *arguments), features)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_by_hand():
    """A cell with samples at (.75, .75), (1.25, .75), (.75, 1.25), (1.25, 1.25) of x + 10 y."""
    features = (torch.arange(4)[None, :] + 10.0 * torch.arange(4)[:, None])[None, None]
    rois = torch.tensor([[0, 0.5, 0.5, 1.5, 1.5]])
    assert roi_align(features, rois, 1, 1.0, 2).tolist() == [[[[11]]]]
    assert roi_align(features, rois, 1, 1.0, 2, mode="max").tolist() == [[[[13.75]]]]
    # Aligned, it is half a cell to the left and above.
    assert roi_align(features, rois, 1, 1.0, 2, True).tolist() == [[[[5.5]]]]
    assert roi_align(features, rois, 1, 1.0, 2, True, "max").tolist() == [[[[8.25]]]]


@ALIGNED
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_numerical_gradient(mode, ratio, aligned):
    features = random_features(channels=1).requires_grad_()
    rois = torch.tensor([[0, -9.0, 5, 30, 43], [1, 20, 8, 60, 30], [1, 70, 60, 110, 90]]).double()
    torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (2, 3), 1 / 8, ratio, aligned, mode), features
    )


@ALIGNED
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_boxes_that_are_not_finite_pool_nothing(value, mode, ratio, aligned):
    good = torch.tensor([[0, 8.0, 8, 60, 60]])
    for column in range(1, 5):
        features = random_features(torch.float32).requires_grad_()
        rois = good.clone()
        rois[0, column] = value
        pooled = roi_align(features, torch.cat((rois, good)), 2, 1 / 8, ratio, aligned, mode)
        assert not pooled[0].any()
        assert pooled[1].all()
        pooled[0].sum().backward()
        assert not features.grad.any()


@ALIGNED
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_rois_far_larger_than_the_map_visit_what_lies_on_it(mode, aligned):
    """Their adaptive samples are far more than those on the map, which alone are computed."""
    features = random_features()
    rois = torch.tensor([[0, -150.0, -170, 160, 140], [1, -180.3, 2, 0.7, 300], [0, 7, 8, 9, 220]])
    arguments = (rois.double(), (2, 3), 1.0, -1, aligned)
    expected, expected_grad = gradient_of(
        lambda x: reference_roi_align(x, *arguments, mode), features
    )
    pooled, grad = gradient_of(lambda x: sampled(x, *arguments, mode), features)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(grad, expected_grad)


@ALIGNED
@pytest.mark.parametrize("extent", [6e3, 1e9, 1e30])
def test_huge_boxes_do_not_exhaust_the_memory(extent, aligned):
    features = random_features(torch.float32).abs()
    rois = torch.tensor([[1, -extent, -extent, extent, extent]])
    average = roi_align(features, rois, 2, 1.0, -1, aligned)
    # The map is less than a millionth of a cell.
    assert average.isfinite().all()
    assert average.max() < 1e-4
    largest = roi_align(features, rois, 2, 1.0, -1, aligned, "max")
    assert largest.isfinite().all()
    assert largest.max() <= features[1].max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_16_bit_features_are_pooled_in_float32(dtype, mode):
    features, rois = random_features().to(dtype), random_rois(dtype=torch.float32)
    pooled = roi_align(features, rois, 3, 1 / 8, 2, True, mode)
    expected = roi_align(features.float(), rois, 3, 1 / 8, 2, True, mode)
    assert torch.equal(pooled, expected.to(dtype))


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_layouts_agree_and_no_rois_give_no_rows(ratio, mode):
    features, rois = random_features(torch.float32), random_rois(dtype=torch.float32)
    last = features.to(memory_format=torch.channels_last)
    pooled = roi_align(last, rois, 3, 1 / 8, ratio, True, mode)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, roi_align(features, rois, 3, 1 / 8, ratio, True, mode))
    features.requires_grad_()
    nothing = roi_align(features, rois[:0], (3, 2), 1.0, ratio, mode=mode)
    assert nothing.shape == (0, 3, 3, 2)
    nothing.sum().backward()
    assert features.grad.eq(0).all()
    assert roi_align(features[:0], [], (3, 2), 1.0, ratio, mode=mode).shape == (0, 3, 3, 2)


def test_wrong_arguments_are_named():
    features, rois = random_features(), random_rois()
    with pytest.raises(ValueError, match="mode must be one of"):
        roi_align(features, rois, 3, mode="sum")
    with pytest.raises(ValueError, match="sampling_ratio must be an integer up to 4096, not 5000"):
        roi_align(features, rois, 3, sampling_ratio=5000)
    with pytest.raises(ValueError, match="sampling_ratio must be an integer"):
        roi_align(features, rois, 3, sampling_ratio=2.0)
    with pytest.raises(ValueError, match="spatial_scale must be"):
        roi_align(features, rois, 3, spatial_scale=0.0)
    with pytest.raises(ValueError, match="output_size must be"):
        roi_align(features, rois, -1)
    with pytest.raises(ValueError, match="image"):
        roi_align(features, [rois[:, 1:]], 3)
