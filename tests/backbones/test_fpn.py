"""Feature pyramids against torchvision's."""

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detector.backbones.fpn import FPN, resnet_fpn


class Maps(torch.nn.Module):
    """A trunk that gives prepared maps."""

    out_channels = (6, 8, 10)
    strides = (4, 8, 16)

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.maps = [
            torch.randn(2, channels, -(-height // stride), -(-width // stride), generator=generator)
            for channels, stride in zip(self.out_channels, self.strides, strict=True)
        ]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.maps


def copy_weights(ours: FPN, theirs: FeaturePyramidNetwork) -> None:
    for level in range(len(ours.lateral)):
        theirs.inner_blocks[level][0].load_state_dict(ours.lateral[level][0].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.output[level][0].state_dict())


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
def test_equals_torchvision_with_the_same_weights(size):
    """Odd sizes too, where the coarse map is not exactly half the fine one."""
    trunk = Maps(*size)
    ours = FPN(trunk, out_channels=5)
    theirs = FeaturePyramidNetwork(list(trunk.out_channels), 5, LastLevelMaxPool())
    copy_weights(ours, theirs)
    expected = theirs({str(level): feature for level, feature in enumerate(trunk.maps)})
    pyramid = ours(torch.zeros(2, 3, *size))
    assert ours.strides == (4, 8, 16, 32)
    assert len(pyramid) == len(expected) == 4
    for feature, other in zip(pyramid, expected.values(), strict=True):
        torch.testing.assert_close(feature, other)


def test_without_the_extra_level():
    ours = FPN(Maps(64, 96), out_channels=5, extra_level=False)
    assert ours.strides == (4, 8, 16)
    assert len(ours(torch.zeros(2, 3, 64, 96))) == 3


def test_norm_replaces_the_bias():
    ours = FPN(Maps(64, 96), out_channels=8, norm="gn")
    assert ours.lateral[0][0].bias is None
    assert isinstance(ours.output[0][1], torch.nn.GroupNorm)


def test_resnet_fpn_passes_its_settings_on():
    fpn = resnet_fpn("resnet18", norm="gn", freeze_at=1, out_channels=32, fpn_norm="bn")
    assert fpn.out_channels == 32
    assert fpn.strides == (4, 8, 16, 32, 64)
    assert isinstance(fpn.trunk.bn1, torch.nn.GroupNorm)
    assert isinstance(fpn.lateral[0][1], torch.nn.BatchNorm2d)
    assert not fpn.trunk.conv1.weight.requires_grad
    assert fpn.trunk.layer1[0].conv1.weight.requires_grad
    pyramid = fpn(torch.zeros(1, 3, 64, 128))
    assert [tuple(x.shape[1:]) for x in pyramid] == [
        (32, 16, 32),
        (32, 8, 16),
        (32, 4, 8),
        (32, 2, 4),
        (32, 1, 2),
    ]
