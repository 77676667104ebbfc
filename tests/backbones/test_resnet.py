"""ResNet trunks against torchvision's, freezing, and kinds of normalisation."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones.resnet import ResNet

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_equal_torchvisions_with_the_same_weights(name):
    reference = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d)
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    trunk = ResNet(name)
    missing, unexpected = trunk.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert unexpected == ["fc.weight", "fc.bias"]
    expected = IntermediateLayerGetter(reference, {stage: stage for stage in STAGES})(images())
    features = trunk(images())
    for feature, stage, channels, stride in zip(
        features, STAGES, trunk.out_channels, trunk.strides, strict=True
    ):
        torch.testing.assert_close(feature, expected[stage])
        assert feature.shape == (2, channels, 64 // stride, 64 // stride)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing_stops_at_the_stage_it_names(freeze_at):
    trunk = ResNet("resnet18", norm="bn", freeze_at=freeze_at)
    stages = [
        [trunk.conv1, trunk.bn1],
        [trunk.layer1],
        [trunk.layer2],
        [trunk.layer3],
        [trunk.layer4],
    ]
    for position, modules in enumerate(stages):
        trainable = {p.requires_grad for module in modules for p in module.parameters()}
        assert trainable == {position >= freeze_at}


def test_frozen_stages_stay_as_loaded_while_training():
    """Batch norm's running statistics are no parameters, and would drift in frozen stages."""
    trunk = ResNet("resnet18", norm="bn", freeze_at=2).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    torch.manual_seed(0)
    features = trunk(images() * 3 + 1)
    features[-1].sum().backward()
    for name, value in trunk.state_dict().items():
        frozen = name.startswith(("conv1", "bn1", "layer1"))
        if "running" in name or "tracked" in name:
            assert torch.equal(value, before[name]) == frozen, name
    assert trunk.layer1[0].conv1.weight.grad is None
    assert trunk.layer2[0].conv1.weight.grad is not None
    # They compute with their statistics, not with the batch's.
    assert torch.equal(trunk.train()(images())[0], trunk.eval()(images())[0])
    assert not torch.equal(trunk.train()(images())[1], trunk.eval()(images())[1])


def test_copies_freeze_their_own_stages():
    """As the average of the weights is such a copy."""
    trunk = ResNet("resnet18", norm="bn", freeze_at=1)
    copied = copy.deepcopy(trunk).train()
    assert not copied.bn1.training
    assert copied.layer1[0].bn1.training
    copied.bn1.train()
    assert not trunk.bn1.training


@pytest.mark.parametrize(
    ("norm", "kind", "trainable"),
    [
        ("frozen_bn", FrozenBatchNorm2d, False),
        ("bn", nn.BatchNorm2d, True),
        ("sync_bn", nn.SyncBatchNorm, True),
        ("gn", nn.GroupNorm, True),
    ],
)
def test_norms(norm, kind, trainable):
    trunk = ResNet("resnet18", norm=norm, freeze_at=0)
    assert type(trunk.bn1) is type(trunk.layer4[1].bn2) is kind
    assert any(True for _ in trunk.bn1.parameters()) == trainable
    if norm != "sync_bn":
        features = trunk.train()(images())
        assert all(feature.isfinite().all() for feature in features)


def test_group_norm_does_not_mix_images():
    trunk = ResNet("resnet18", norm="gn", freeze_at=0).train()
    both = trunk(images())
    alone = trunk(images()[1:])
    for feature, other in zip(both, alone, strict=True):
        torch.testing.assert_close(feature[1:], other, atol=1e-5, rtol=1e-4)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"resnet19.*resnet18, resnet34"):
        ResNet("resnet19")
    with pytest.raises(ValueError, match=r"norm='batch'.*frozen_bn"):
        ResNet("resnet18", norm="batch")
    with pytest.raises(ValueError, match="freeze_at=6"):
        ResNet("resnet18", freeze_at=6)
