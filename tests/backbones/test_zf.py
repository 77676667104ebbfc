"""Zeiler and Fergus' network against its published layers."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detector.backbones.zf import ZF, WithinChannelNorm
from detector.roi_heads.vgg import VGGHead


def test_norm_by_its_formula():
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 100
    found = WithinChannelNorm(size=3, alpha=0.02, beta=0.75)(x)
    for image in range(2):
        for channel in range(3):
            for row in range(5):
                for column in range(4):
                    window = x[
                        image,
                        channel,
                        max(row - 1, 0) : row + 2,
                        max(column - 1, 0) : column + 2,
                    ]
                    scale = (1 + 0.02 / 9 * (window**2).sum()) ** -0.75
                    expected = x[image, channel, row, column] * scale
                    torch.testing.assert_close(found[image, channel, row, column], expected)


def test_norm_takes_large_half_precision_values():
    x = torch.full((1, 1, 3, 3), 1000.0, dtype=torch.float16)
    found = WithinChannelNorm()(x)
    assert found.dtype == torch.float16
    # In the middle the mean of the squares is a million.
    assert found[0, 0, 1, 1].item() == pytest.approx(1000 * 51**-0.75, rel=1e-3)


def test_layers_are_the_published_ones():
    torch.manual_seed(0)
    trunk = ZF()

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 5e-5 * F.avg_pool2d(x * x, 3, 1, 1)) ** -0.75

    image = torch.randn(1, 3, 61, 93) * 60
    w = trunk.state_dict()
    x = norm(F.relu(F.conv2d(image, w["conv1.weight"], w["conv1.bias"], 2, 3)))
    x = F.max_pool2d(x, 3, 2, 1)
    x = norm(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], 2, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for name in ("conv3", "conv4", "conv5"):
        x = F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], 1, 1))
    (feature,) = trunk(image)
    torch.testing.assert_close(feature, x)
    assert feature.shape == (1, *trunk.out_channels, 4, 6)
    assert trunk.strides == (16,)


def test_a_cell_is_16_pixels():
    """An image moved by 16 pixels moves the map by a cell, where borders are out of sight."""
    trunk = ZF()
    image = torch.randn(1, 3, 320, 336, generator=torch.Generator().manual_seed(0))
    left = trunk(image[..., :320])[0]
    right = trunk(image[..., 16:])[0]
    torch.testing.assert_close(left[..., 6:14, 7:14], right[..., 6:14, 6:13])


def test_parameters_are_as_many_as_published():
    """By the layers' sizes; 62.4 million in all, 250 MB as the published Caffe model has."""
    trunk, head, classifier = ZF(), VGGHead(256, 6), nn.Linear(4096, 1000)
    counts = [sum(p.numel() for p in part.parameters()) for part in (trunk, head, classifier)]
    convs = ((3, 96, 7), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3))
    assert counts[0] == sum(out * (into * side**2 + 1) for into, out, side in convs) == 3_726_464
    assert counts[1] == 4096 * (256 * 36 + 1) + 4096 * 4097
    assert sum(counts) == 62_357_608


@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_only_what_is_not_frozen_gets_gradients(freeze_at):
    trunk = ZF(freeze_at=freeze_at)
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    trunk(image)[0].square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert (parameter.grad is not None) == (int(name[4]) > freeze_at), name


def test_weights_load_by_caffes_names(tmp_path, caplog):
    torch.manual_seed(1)
    state = ZF().state_dict()
    torch.save(
        state | {"fc6.weight": torch.zeros(2), "fc8.bias": torch.zeros(2)}, tmp_path / "zf.pt"
    )
    with caplog.at_level(logging.WARNING):
        trunk = ZF(str(tmp_path / "zf.pt"))
    assert not caplog.records
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"freeze_at=6 must be 0 .* to 5"):
        ZF(freeze_at=6)
