"""MobileNetV3-Large under FPN against torchvision's."""

import pytest
import torch
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    fasterrcnn_mobilenet_v3_large_fpn,
)
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones.mobilenet import MobileNetV3Large, mobilenet_v3_large_fpn


def make_reference(trainable_layers: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    reference = mobilenet_backbone(
        backbone_name="mobilenet_v3_large",
        weights=None,
        fpn=True,
        trainable_layers=trainable_layers,
    )
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return reference


def copied(reference: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its state by our names."""
    names = {
        "body.": "trunk.features.",
        "fpn.inner_blocks.": "lateral.",
        "fpn.layer_blocks.": "output.",
    }
    return {
        new + name.removeprefix(old): value
        for name, value in reference.state_dict().items()
        for old, new in names.items()
        if name.startswith(old)
    }


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
def test_pyramid_equals_torchvisions_with_the_same_weights(size):
    reference = make_reference()
    ours = mobilenet_v3_large_fpn()
    ours.load_state_dict(copied(reference))
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = reference(image)
    pyramid = ours(image)
    assert ours.strides == (32, 32, 64)
    assert len(pyramid) == len(expected) == 3
    for feature, other, stride in zip(pyramid, expected.values(), ours.strides, strict=True):
        assert torch.equal(feature, other)
        assert feature.shape == (2, 256, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("trainable_layers", range(7))
def test_what_torchvision_freezes_is_frozen(trainable_layers):
    reference = make_reference(trainable_layers)
    ours = mobilenet_v3_large_fpn(freeze_at=6 - trainable_layers)
    theirs = {
        f"trunk.features.{n.removeprefix('body.')}": p for n, p in reference.named_parameters()
    }
    for name, parameter in ours.trunk.named_parameters(prefix="trunk"):
        assert parameter.requires_grad == theirs[name].requires_grad, name
    image = torch.randn(1, 3, 64, 64)
    sum(x.square().sum() for x in ours(image)).backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_parameters_are_as_many_as_torchvisions():
    """Its published count is with frozen batch norms, which have no parameters."""
    with torch.device("meta"):
        detector = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
        trained = mobilenet_v3_large_fpn(norm="bn", freeze_at=0)
        frozen = mobilenet_v3_large_fpn(norm="frozen_bn")

    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(trained) == count(detector.backbone)
    published = FasterRCNN_MobileNet_V3_Large_FPN_Weights.DEFAULT.meta["num_params"]
    assert count(frozen, detector.rpn, detector.roi_heads) == published == 19_386_354


def test_frozen_stages_keep_their_statistics():
    trunk = MobileNetV3Large(norm="bn", freeze_at=3).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    trunk(torch.randn(2, 3, 64, 64))
    for name, value in trunk.state_dict().items():
        if "running" in name:
            frozen = int(name.split(".")[1]) < 7
            assert torch.equal(value, before[name]) == frozen, name


@pytest.mark.parametrize("outputs", [(1, 2, 3, 4), (2, 4), (5,)])
def test_outputs_are_the_stages_that_were_asked_for(outputs, tmp_path):
    whole = MobileNetV3Large(outputs=(1, 2, 3, 4, 5))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    trunk = MobileNetV3Large(weights=str(tmp_path / "whole.pth"), outputs=outputs)
    image = torch.randn(1, 3, 61, 93)
    every = whole(image)
    maps = trunk(image)
    assert len(maps) == len(outputs)
    for feature, stage, channels, stride in zip(
        maps, outputs, trunk.out_channels, trunk.strides, strict=True
    ):
        assert torch.equal(feature, every[stage - 1])
        assert feature.shape == (1, channels, -(-61 // stride), -(-93 // stride))
    used = {int(name.split(".")[1]) for name, _ in trunk.named_parameters()}
    assert max(used) == {4: 13, 5: 16}[outputs[-1]]


def test_impossible_settings_are_refused():
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"freeze_at=7 must be 0 .* to 6"):
            MobileNetV3Large(freeze_at=7)
        with pytest.raises(ValueError, match=r"outputs=\[0, 5\].*1, 2, 3, 4, 5"):
            MobileNetV3Large(outputs=(0, 5))
        with pytest.raises(ValueError, match=r"norm='batch'"):
            MobileNetV3Large(norm="batch")
