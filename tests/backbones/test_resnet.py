"""ResNet trunks against torchvision's, freezing, and kinds of normalisation."""

import copy
import logging

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones.resnet import NAMES, ResNet

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def make_reference(name: str, **settings) -> nn.Module:
    """torchvision's network with statistics as if it were trained."""
    reference = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d, **settings)
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return reference


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_features_equal_torchvisions_with_the_same_weights(name):
    reference = make_reference(name)
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


@pytest.mark.parametrize("dilation", [1, 2])
def test_blocks_may_stride_in_their_first_convolution(dilation):
    # A 1x1 convolution that strides sees every second cell: what a block without any stride makes
    # of a map of these cells.
    trunk = ResNet("resnet50", stride_in_1x1=True, res5_dilation=dilation)
    assert trunk.strides == (4, 8, 16, 32 // dilation)
    reference = make_reference("resnet50")
    trunk.load_state_dict(reference.state_dict(), strict=False)
    # In float64: a map of every second cell is summed in another order.
    trunk, reference = trunk.double(), reference.double()
    c2, c3, c4, c5 = trunk(images().double())
    for x, stage, expected in ((c2, "layer2", c3), (c3, "layer3", c4), (c4, "layer4", c5)):
        blocks = getattr(reference, stage)
        for module in (blocks[0].conv2, blocks[0].downsample[0]):
            module.stride = (1, 1)
        if stage == "layer4" and dilation == 2:
            for block in blocks:
                block.conv2.dilation = block.conv2.padding = (2, 2)
        else:
            x = x[:, :, ::2, ::2]
        torch.testing.assert_close(blocks(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name):
    """torchvision's counts, less the classifier of 1000 classes."""
    with torch.device("meta"):
        trunk = ResNet(name, norm="bn")
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    classifier = (trunk.out_channels[-1] + 1) * 1000
    assert sum(p.numel() for p in trunk.parameters()) == published - classifier


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_c4_is_torchvisions_layer3_and_ends_there(name, tmp_path, caplog):
    reference = make_reference(name)
    torch.save(reference.state_dict(), tmp_path / "whole.pth")
    with caplog.at_level(logging.WARNING):
        trunk = ResNet(name, weights=str(tmp_path / "whole.pth"), outputs=(4,))
    assert not caplog.records, "layer4 is neither missed nor refused"
    assert not hasattr(trunk, "layer4")
    (feature,) = trunk(images(size=75))
    expected = IntermediateLayerGetter(reference, {"layer3": "x"})(images(size=75))["x"]
    assert torch.equal(feature, expected)
    assert trunk.strides == (16,)
    assert feature.shape == (2, *trunk.out_channels, 5, 5)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_dc5_is_torchvisions_with_the_first_convolution_dilated_too(name):
    """As in Detectron2, where RES5_DILATION is that of all blocks of res5."""
    reference = make_reference(name, replace_stride_with_dilation=[False, False, True])
    trunk = ResNet(name, outputs=(5,), res5_dilation=2)
    trunk.load_state_dict(reference.state_dict(), strict=False)
    as_published = IntermediateLayerGetter(reference, {"layer4": "x"})(images(size=75))["x"]
    first = reference.layer4[0].conv2
    assert (first.stride, first.dilation) == ((1, 1), (1, 1))
    first.dilation = first.padding = (2, 2)
    expected = IntermediateLayerGetter(reference, {"layer4": "x"})(images(size=75))["x"]
    (feature,) = trunk(images(size=75))
    assert torch.equal(feature, expected)
    assert not torch.allclose(feature, as_published)
    assert trunk.strides == (16,)
    assert feature.shape == (2, 2048, 5, 5)


@pytest.mark.parametrize(("name", "first"), [("resnet18", "conv1"), ("resnet50", "conv2")])
def test_a_dilated_stage_is_the_strided_one_between_its_cells(name, first):
    """But for the first 3x3 convolution, whose dilation 2 is this variant's only real change."""
    plain, dilated = ResNet(name), ResNet(name, outputs=(5,), res5_dilation=2)
    dilated.load_state_dict(plain.state_dict())
    conv = getattr(dilated.layer4[0], first)
    conv.dilation = conv.padding = (1, 1)
    image = images(size=75).double()
    every_second = dilated.double()(image)[0][:, :, ::2, ::2]
    torch.testing.assert_close(every_second, plain.double()(image)[-1])


@pytest.mark.parametrize("outputs", [(2,), (3, 5), (2, 3, 4)])
def test_outputs_are_the_stages_that_were_asked_for(outputs):
    whole = ResNet("resnet18")
    trunk = ResNet("resnet18", outputs=outputs)
    trunk.load_state_dict(whole.state_dict(), strict=False)
    assert trunk.strides == tuple(2**stage for stage in outputs)
    every = whole(images(size=61))
    features = trunk(images(size=61))
    assert len(features) == len(outputs)
    for feature, stage, channels, stride in zip(
        features, outputs, trunk.out_channels, trunk.strides, strict=True
    ):
        assert torch.equal(feature, every[stage - 2])
        assert feature.shape == (2, channels, -(-61 // stride), -(-61 // stride))


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
    with pytest.raises(ValueError, match=r"freeze_at=5 must be 0 .* to 4"):
        ResNet("resnet18", freeze_at=5, outputs=(4,))
    with pytest.raises(ValueError, match="res5_dilation=3"):
        ResNet("resnet18", res5_dilation=3)
    with pytest.raises(ValueError, match="res5_dilation=2, but the trunk ends with res4"):
        ResNet("resnet18", outputs=(4,), res5_dilation=2)
    with pytest.raises(ValueError, match="stride_in_1x1=true, but the blocks of resnet18"):
        ResNet("resnet18", stride_in_1x1=True)


@pytest.mark.parametrize("outputs", [(), (1, 2), (5, 6), (4, 3), (3, 3)])
def test_impossible_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match=r"outputs=.*2, 3, 4, 5"):
        ResNet("resnet18", outputs=outputs)
