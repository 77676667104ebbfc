"""Every file of the group ``backbone`` builds what it says."""

import importlib.util
import inspect
from pathlib import Path

import hydra
import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml"))
P2_TO_P6, C4 = (4, 8, 16, 32, 64), (16,)
STRIDES = {
    **dict.fromkeys(NAMES, P2_TO_P6),
    **dict.fromkeys(("resnet50_c4", "resnet101_c4", "resnet50_dc5", "resnet101_dc5"), C4),
    **dict.fromkeys(("vgg16", "zf"), C4),
    "resnet50_c5": (32,),
    "mobilenet_v3_large_fpn": (32, 32, 64),
}


def compose(name: str, *overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra.compose(overrides=[f"+backbone={name}", *overrides]).model.backbone


def skip_without_timm(config) -> None:
    if "timm" in config._target_ and not importlib.util.find_spec("timm"):
        pytest.skip("timm's backbones are an optional extra: pip install -e '.[timm]'")


@pytest.mark.parametrize("name", NAMES)
def test_backbones_are_what_their_files_say(name):
    config = compose(name)
    skip_without_timm(config)
    with torch.device("meta"):
        backbone = hydra.utils.instantiate(config)
        maps = backbone(torch.zeros(2, 3, 128, 192))
    assert backbone.out_channels == config.out_channels
    assert backbone.strides == STRIDES[name]
    assert [tuple(x.shape) for x in maps] == [
        (2, config.out_channels, 128 // stride, 192 // stride) for stride in backbone.strides
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_written_down(name):
    config = compose(name)
    taken = inspect.signature(hydra.utils.get_object(config._target_)).parameters
    assert set(config) - {"_target_", "_convert_"} == set(taken)
    assert (CONFIGS / "backbone" / f"{name}.yaml").read_text().startswith("# @package model.back")


@pytest.mark.parametrize(
    ("name", "overrides", "strides"),
    [
        ("resnet18_fpn", ("levels=[3,4,5]", "extra=p6p7_c5"), (8, 16, 32, 64, 128)),
        ("resnet50_fpn", ("levels=[2,3,4]", "extra=none"), (4, 8, 16)),
        ("resnet50_c4", ("name=resnet18", "out_channels=256"), (16,)),
        ("resnet50_dc5", ("name=resnext50_32x4d", "norm=gn", "freeze_at=0"), (16,)),
        ("resnext101_32x8d_fpn", ("name=resnext101_64x4d", "fpn_norm=gn"), P2_TO_P6),
        ("mobilenet_v3_large_fpn", ("levels=[2,3,4]",), (8, 16, 32, 64)),
        ("timm_fpn", ("name=resnet18", "norm=frozen_bn", "freeze_at=2"), P2_TO_P6),
        ("timm_fpn", ("levels=[3,4,5]", "extra=p6p7_p5"), (8, 16, 32, 64, 128)),
    ],
)
def test_variants_are_overrides(name, overrides, strides):
    config = compose(name, *(f"model.backbone.{override}" for override in overrides))
    skip_without_timm(config)
    with torch.device("meta"):
        backbone = hydra.utils.instantiate(config)
    assert backbone.strides == strides
