"""Norms folded into convolutions, beside torchvision's networks that run them one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones.folded_norms import NormedConv2d, fold_norms
from detector.backbones.resnet import ResNet
from detector.engine.runtime import Runtime


def make_pair(name: str, **settings) -> tuple[nn.Module, ResNet]:
    """torchvision's network with statistics as if it were trained, and our trunk folded."""
    torch.manual_seed(0)
    reference = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d)
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(std=0.1)
    trunk = ResNet(name, **settings)
    trunk.load_state_dict(reference.state_dict(), strict=False)
    names = list(trunk.state_dict())
    fold_norms(trunk)
    assert list(trunk.state_dict()) == names
    return reference, trunk


def their_maps(reference: nn.Module, pixels: Tensor) -> list[Tensor]:
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(pixels))))
    maps = []
    for stage in range(1, 5):
        x = getattr(reference, f"layer{stage}")(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_maps_and_gradients_are_those_of_torchvision(name):
    # In float64, where what is rounded otherwise does not show.
    reference, trunk = (model.double() for model in make_pair(name, freeze_at=0))
    pixels = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    expected, found = their_maps(reference, pixels), trunk(pixels)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    expected[-1].square().sum().backward()
    found[-1].square().sum().backward()
    gradients = {n: p.grad for n, p in trunk.named_parameters()}
    for parameter, own in reference.named_parameters():
        if not parameter.startswith("fc."):
            gradient = gradients.pop(parameter)
            assert own.grad.abs().max() > 0
            torch.testing.assert_close(gradient, own.grad)
    assert not gradients


def test_maps_stay_in_16_bits_and_no_norm_is_left_alone():
    _, trunk = make_pair("resnet18")
    convs = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    assert all(type(conv) is NormedConv2d for conv in convs)
    with torch.autocast("cpu", torch.bfloat16):
        assert {feature.dtype for feature in trunk(torch.randn(1, 3, 64, 64))} == {torch.bfloat16}
    # A copy, such as the average of the weights, folds its own.
    again = copy.deepcopy(trunk)
    with torch.no_grad():
        again.layer1[0].conv1.weight.zero_()
    assert not torch.equal(again(torch.ones(1, 3, 64, 64))[0], trunk(torch.ones(1, 3, 64, 64))[0])


def test_norms_are_folded_in_16_bits_and_norms_that_learn_never():
    def folds(trunk: ResNet, precision: str) -> bool:
        placed = Runtime("cpu", precision).place(trunk)
        return any(isinstance(module, NormedConv2d) for module in placed.modules())

    assert not folds(ResNet("resnet18"), "float32")
    assert not folds(ResNet("resnet18", norm="bn"), "bf16")
    assert folds(ResNet("resnet18"), "bf16")
