"""timm's models as trunks."""

import copy
import logging
import sys

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from detector.backbones.timm_trunk import TimmTrunk, timm_fpn

SWIN = {"strict_img_size": False, "always_partition": True}
needs_timm = pytest.mark.usefixtures("timm")


@pytest.fixture(name="timm", scope="module")
def timm_or_skip():
    reason = "timm's backbones are an optional extra: pip install -e '.[timm]'"
    return pytest.importorskip("timm", reason=reason)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'detector\[timm\]'"):
        timm_fpn("convnext_tiny")


@needs_timm
@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
@pytest.mark.parametrize(
    ("name", "options"),
    [("convnext_tiny", {}), ("swin_tiny_patch4_window7_224", SWIN)],
)
def test_pyramids_of_convnext_and_swin(name, options, size):
    fpn = timm_fpn(name, options=options, out_channels=16, extra="p6p7_c5")
    assert fpn.trunk.out_channels == (96, 192, 384, 768)
    assert fpn.strides == (4, 8, 16, 32, 64, 128)
    pyramid = fpn(torch.randn(1, 3, *size))
    sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in fpn.strides]
    assert [tuple(x.shape) for x in pyramid] == [(1, 16, *size) for size in sizes]
    sum(x.square().sum() for x in pyramid).backward()
    lacking = [name for name, p in fpn.named_parameters() if p.grad is None]
    assert not lacking


def test_maps_of_convnext_are_those_of_the_whole_model(timm, tmp_path, caplog):
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto").eval()
    torch.save(whole.state_dict(), tmp_path / "convnext_atto.pth")
    with caplog.at_level(logging.WARNING):
        trunk = TimmTrunk("convnext_atto", weights=str(tmp_path / "convnext_atto.pth")).eval()
    assert not caplog.records
    x = image = torch.randn(2, 3, 64, 96)
    expected = []
    x = whole.stem(x)
    for stage in whole.stages:
        x = stage(x)
        expected.append(x)
    for feature, other in zip(trunk(image), expected, strict=True):
        torch.testing.assert_close(feature, other)


def test_maps_of_swin_are_those_of_the_whole_model(timm, tmp_path, caplog):
    torch.manual_seed(0)
    name = "swin_tiny_patch4_window7_224"
    whole = timm.create_model(name, **SWIN).eval()
    torch.save(whole.state_dict(), tmp_path / "swin.pth")
    with caplog.at_level(logging.WARNING):
        trunk = TimmTrunk(name, weights=str(tmp_path / "swin.pth"), options=SWIN).eval()
    assert not caplog.records
    image = torch.randn(1, 3, 128, 96)
    x = whole.patch_embed(image)
    expected = []
    for stage in whole.layers:
        x = stage(x)
        expected.append(x.permute(0, 3, 1, 2))
    for feature, other in zip(trunk(image), expected, strict=True):
        torch.testing.assert_close(feature, other)


@needs_timm
def test_odd_sizes_are_padded_with_zeros():
    trunk = TimmTrunk("convnext_atto").eval()
    image = torch.randn(1, 3, 45, 70)
    padded = nn.functional.pad(image, (0, 26, 0, 19))
    for feature, whole, stride in zip(trunk(image), trunk(padded), trunk.strides, strict=True):
        height, width = -(-45 // stride), -(-70 // stride)
        assert torch.equal(feature, whole[:, :, :height, :width])
        assert feature.shape[2:] == (height, width)


@needs_timm
@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3), (1, 5)])
def test_levels_go_by_stride(levels):
    whole = TimmTrunk("resnet18", (1, 2, 3, 4, 5)).eval()
    trunk = TimmTrunk("resnet18", levels).eval()
    trunk.load_state_dict(whole.state_dict(), strict=False)
    assert trunk.strides == tuple(2**level for level in levels)
    image = torch.randn(1, 3, 64, 64)
    every = whole(image)
    maps = trunk(image)
    assert [x.shape[1] for x in maps] == list(trunk.out_channels)
    for feature, level in zip(maps, levels, strict=True):
        assert torch.equal(feature, every[level - 1])
    sum(x.sum() for x in maps).backward()
    assert all(p.grad is not None for p in trunk.parameters()), "nothing lies behind the last map"


@needs_timm
@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("resnet18", 2, ("conv1", "bn1", "layer1")),
        ("convnext_atto", 1, ("stem_", "stages_0")),
        ("efficientnet_b0", 2, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
    ],
)
def test_frozen_stages_stay_as_loaded(name, freeze_at, frozen):
    trunk = TimmTrunk(name, freeze_at=freeze_at).train()
    copied = copy.deepcopy(trunk).train()
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    sum(x.square().sum() for x in trunk(torch.randn(2, 3, 64, 64))).backward()
    for key, parameter in trunk.network.named_parameters():
        assert (parameter.grad is None) == key.startswith(frozen), key
    for key, value in trunk.network.state_dict().items():
        if "running" in key:
            same = torch.equal(value, before[f"network.{key}"])
            assert same == key.startswith(frozen), key
    modes = {key: module.training for key, module in copied.network.named_modules()}
    assert not any(modes[key] for key in modes if key.startswith(frozen))
    assert any(modes.values())


def test_batch_norms_can_be_replaced(timm):
    for norm in ("frozen_bn", "sync_bn"):
        trunk = TimmTrunk("efficientnet_b0", norm=norm)
        kinds = {type(m).__name__ for m in trunk.modules() if hasattr(m, "running_mean")}
        assert len(kinds) == 1
        assert kinds <= {"FrozenBatchNormAct2d", "SyncBatchNormAct"}
    plain, frozen = TimmTrunk("resnet18"), TimmTrunk("resnet18", norm="frozen_bn").train()
    frozen.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    for feature, other in zip(frozen(image), plain.eval()(image), strict=True):
        torch.testing.assert_close(feature, other)


@needs_timm
def test_pyramid_equals_torchvisions_over_the_same_maps():
    fpn = timm_fpn("convnext_atto", out_channels=8, levels=(3, 4, 5), extra="none").eval()
    theirs = FeaturePyramidNetwork(list(fpn.trunk.out_channels), 8)
    for level in range(3):
        theirs.inner_blocks[level][0].load_state_dict(fpn.lateral[level][0].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(fpn.output[level][0].state_dict())
    image = torch.randn(1, 3, 64, 96)
    expected = theirs({str(n): x for n, x in enumerate(fpn.trunk(image))})
    for feature, other in zip(fpn(image), expected.values(), strict=True):
        torch.testing.assert_close(feature, other)


@needs_timm
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convnext_tyny"}, r"convnext_tyny.*convnext_tiny"),
        ({"name": "resnet18", "levels": (2, 6)}, r"strides \[64\].*levels=\[1, 2, 3, 4, 5\]"),
        ({"name": "resnet18", "levels": (3, 2)}, r"levels=\[3, 2\]"),
        ({"name": "resnet18", "norm": "gn"}, r"norm='gn' must be frozen_bn, sync_bn or null"),
        ({"name": "convnext_atto", "norm": "sync_bn"}, "convnext_atto has no batch norm"),
        ({"name": "resnet18", "freeze_at": 6}, r"freeze_at=6 must be 0 .* to 5"),
        ({"name": "resnet18", "options": {"no": 1}}, r"options=\{'no': 1\}"),
        ({"name": "resnet18", "options": {"pretrained": True}}, "pretrained"),
        ({"name": "swin_tiny_patch4_window7_224"}, "strict_img_size: false"),
        ({"name": "vit_tiny_patch16_224"}, r"strides \[4, 8, 32\].*levels=\[4\]"),
        ({"name": "hrnet_w18_small", "freeze_at": 1}, "use freeze_at=0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TimmTrunk(**settings)


@needs_timm
def test_weights_of_another_model_are_refused(timm, tmp_path):
    torch.save(timm.create_model("convnext_femto").state_dict(), tmp_path / "femto.pth")
    with pytest.raises(ValueError, match=r"femto\.pth: does not fit.*\n.*in the file"):
        TimmTrunk("convnext_atto", weights=str(tmp_path / "femto.pth"))
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight: not in the model"):
        TimmTrunk("convnext_atto", weights=str(tmp_path / "resnet.pth"))
