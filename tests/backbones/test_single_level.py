"""Backbones of one map: C4, DC5, VGG16, ZF."""

import copy

import pytest
import torch

from detector.backbones.resnet import ResNet
from detector.backbones.single_level import resnet_c4, resnet_dc5, vgg16, zf


@pytest.mark.parametrize(
    ("build", "settings", "channels"),
    [
        (resnet_c4, {"name": "resnet18"}, 256),
        (resnet_c4, {"name": "resnet50"}, 1024),
        (resnet_dc5, {"name": "resnet18"}, 512),
        (resnet_dc5, {"name": "resnext50_32x4d"}, 2048),
        (vgg16, {}, 512),
        (zf, {}, 256),
    ],
)
def test_one_map_of_stride_16(build, settings, channels):
    with torch.device("meta"):
        backbone = build(**settings, out_channels=channels)
        assert build(**settings).out_channels == backbone.out_channels == channels
        (feature,) = backbone(torch.zeros(2, 3, 64, 112))
        with pytest.raises(ValueError, match=rf"out_channels=7.*out_channels={channels}"):
            build(**settings, out_channels=7)
    assert backbone.strides == (16,)
    assert feature.shape == (2, channels, 4, 7)


@pytest.mark.parametrize("build", [resnet_c4, resnet_dc5])
def test_settings_reach_the_trunk(build):
    backbone = build("resnet18", norm="bn", freeze_at=1)
    assert isinstance(backbone.trunk.bn1, torch.nn.BatchNorm2d)
    assert not backbone.trunk.conv1.weight.requires_grad
    assert backbone.trunk.layer1[0].conv1.weight.requires_grad
    assert not backbone.train().trunk.bn1.training
    assert not copy.deepcopy(backbone).train().trunk.bn1.training


def test_settings_reach_the_convolutions():
    with torch.device("meta"):
        assert vgg16(freeze_at=0).trunk.features[0].weight.requires_grad
        assert not vgg16(freeze_at=1).trunk.features[0].weight.requires_grad
        assert not zf(freeze_at=1).trunk.conv1.weight.requires_grad


def test_weights_reach_the_trunk(tmp_path):
    state = ResNet("resnet18").state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    for build in (resnet_c4, resnet_dc5):
        trunk = build("resnet18", weights=str(tmp_path / "resnet18.pth")).trunk
        assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    for build in (vgg16, zf):
        with torch.device("meta"), pytest.raises(ValueError, match=r"resnet18\.pth: does not fit"):
            build(str(tmp_path / "resnet18.pth"))
