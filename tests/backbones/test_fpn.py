"""Feature pyramids against torchvision's."""

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

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


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
@pytest.mark.parametrize(("extra", "source"), [("p6p7_c5", 10), ("p6p7_p5", 5)])
def test_p6_and_p7_equal_torchvisions(extra, source, size):
    """torchvision takes C5 where P6's input channels are not those of the pyramid."""
    trunk = Maps(*size)
    ours = FPN(trunk, out_channels=5, extra=extra)
    theirs = FeaturePyramidNetwork(list(trunk.out_channels), 5, LastLevelP6P7(source, 5))
    copy_weights(ours, theirs)
    theirs.extra_blocks.p6.load_state_dict(ours.p6.state_dict())
    theirs.extra_blocks.p7.load_state_dict(ours.p7.state_dict())
    expected = theirs({str(level): feature for level, feature in enumerate(trunk.maps)})
    pyramid = ours(torch.zeros(2, 3, *size))
    assert ours.strides == (4, 8, 16, 32, 64)
    assert len(pyramid) == len(expected) == 5
    for feature, other in zip(pyramid, expected.values(), strict=True):
        torch.testing.assert_close(feature, other)


def test_without_extra_levels():
    ours = FPN(Maps(64, 96), out_channels=5, extra="none")
    assert ours.strides == (4, 8, 16)
    assert len(ours(torch.zeros(2, 3, 64, 96))) == 3
    assert not hasattr(ours, "p6")


def test_unknown_extra_levels_are_refused():
    with pytest.raises(ValueError, match=r"extra='p6p7'.*p6p7_c5, p6p7_p5"):
        FPN(Maps(64, 96), extra="p6p7")


def test_p3_to_p7_of_a_resnet():
    fpn = resnet_fpn("resnet18", freeze_at=0, out_channels=16, levels=(3, 4, 5), extra="p6p7_c5")
    assert fpn.strides == (8, 16, 32, 64, 128)
    assert fpn.p6.in_channels == 512
    pyramid = fpn(torch.ones(1, 3, 122, 250))
    sizes = [(-(-122 // stride), -(-250 // stride)) for stride in fpn.strides]
    assert [tuple(x.shape) for x in pyramid] == [(1, 16, *size) for size in sizes]
    sum(x.square().sum() for x in pyramid).backward()
    assert all(parameter.grad.any() for parameter in fpn.parameters())


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
