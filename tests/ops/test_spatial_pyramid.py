"""The spatial pyramid by hand and against torchvision's RoI pooling."""

import pytest
import torch
import torchvision

from detector.ops.roi_pool import roi_pool
from detector.ops.spatial_pyramid import spatial_pyramid_pool

ROIS = torch.tensor([[0, 0.0, 0, 40, 30], [1, 16, 8, 60, 60], [1, -20, -30, 200, 200]])


def random_features() -> torch.Tensor:
    return torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def test_by_hand():
    """Two channels, the second ten times the first; levels 2 and 1 in this order."""
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    features = torch.cat((feature, 10 * feature), 1)
    pooled = spatial_pyramid_pool(features, [torch.tensor([[0.0, 0, 3, 3]])], (2, 1))
    assert pooled.tolist() == [[5, 7, 13, 15, 50, 70, 130, 150, 15, 150]]


def test_the_papers_50_bins():
    """Section 4.1: (1x1, 2x2, 3x3, 6x6) give a vector of 12 800 for 256 filters."""
    features = torch.zeros(1, 256, 13, 13)
    pooled = spatial_pyramid_pool(features, [torch.zeros(2, 4)], [1, 2, 3, 6])
    assert pooled.shape == (2, 12800)


def test_levels_equal_torchvisions_pooling_in_the_order_given():
    features = random_features()
    pooled = spatial_pyramid_pool(features, ROIS, (3, 1, 4), 1 / 8)
    parts = pooled.split([3 * 9, 3, 3 * 16], 1)
    for level, part in zip((3, 1, 4), parts, strict=True):
        expected = torchvision.ops.roi_pool(features, ROIS, level, 1 / 8)
        assert torch.equal(part.view(-1, 3, level, level), expected)


def test_one_level_is_roi_pooling_in_either_layout():
    for layout in (torch.contiguous_format, torch.channels_last):
        features = random_features().to(memory_format=layout)
        pooled = spatial_pyramid_pool(features, ROIS, [3], 1 / 8, "avg")
        expected = roi_pool(random_features(), ROIS, 3, 1 / 8, "avg")
        assert torch.equal(pooled, expected.flatten(1))


def test_gradients_of_the_levels_add_up():
    features = random_features().requires_grad_()
    spatial_pyramid_pool(features, ROIS, (1, 2), 1 / 8).sum().backward()
    single = random_features().requires_grad_()
    for level in (1, 2):
        roi_pool(single, ROIS, level, 1 / 8).sum().backward()
    assert torch.equal(features.grad, single.grad)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_no_rois_give_no_rows(mode):
    pooled = spatial_pyramid_pool(random_features(), ROIS[:0], (1, 2), mode=mode)
    assert pooled.shape == (0, 15)


@pytest.mark.parametrize("levels", [(), (0,), (1, -2), (1.5,)])
def test_levels_must_be_positive_integers(levels):
    with pytest.raises(ValueError, match="levels must be one or more positive integers"):
        spatial_pyramid_pool(random_features(), ROIS, levels)
