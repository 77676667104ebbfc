"""Rates of each parameter, against the rules written out here."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from detector.backbones.freezing import FreezableTrunk
from detector.backbones.resnet import ResNet
from detector.backbones.timm_trunk import TimmTrunk
from detector.backbones.vgg import VGG16
from detector.backbones.zf import ZF
from detector.commands.alternating import STAGES, split_settings, stage_config
from detector.engine.assembly import build
from detector.engine.learning_rates import layer_factors, lr_factors
from detector.engine.optimizer import parameter_groups
from detector.engine.run_directory import RunDirectory
from detector.engine.weights.initial_weights import freeze_parts


class Model(nn.Module):
    """A trunk below a pyramid, and a head."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"trunk": trunk, "lateral": nn.Conv2d(4, 4, 1)})
        self.head = nn.ModuleDict({"predictor": nn.Linear(4, 2)})


class Blocks(FreezableTrunk):
    """A stem and two stages, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4))
        self.stem = nn.Conv2d(3, 4, 1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.two = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.final = nn.LayerNorm(4)
        self.freeze([[self.stem], [self.one], [self.two]], 0)


def by_name(model: nn.Module, factors: dict[nn.Parameter, float]) -> dict[str, float]:
    return {name: factors[p] for name, p in model.named_parameters() if p in factors}


def test_the_longest_path_decides() -> None:
    model = Model(Blocks())
    multipliers = {"backbone": 0.1, "backbone.trunk": 0.5, "backbone.trunk.one.0": 3, "head": 2.0}
    found = by_name(model, lr_factors(model, multipliers))
    for name, factor in found.items():
        if name.startswith("backbone.trunk.one.0."):
            assert factor == 3
        elif name.startswith("backbone.trunk."):
            assert factor == 0.5
        else:
            assert factor == (0.1 if name.startswith("backbone.") else 2.0), name
    assert len(found) == len(list(model.parameters()))


def test_a_path_is_no_beginning_of_a_word() -> None:
    model = nn.ModuleDict({"box": nn.Linear(1, 1), "box_branch": nn.Linear(1, 1)})
    found = by_name(model, lr_factors(model, {"box": 0.5}))
    assert found["box.weight"] == 0.5 and found["box_branch.weight"] == 1.0


def test_layers_learn_slower_towards_the_stem() -> None:
    """decay ** (number of stages - stage): 0.8 for the last, and the stem counts as a stage."""
    model = Model(Blocks())
    found = by_name(model, lr_factors(model, layer_decay=0.8))
    expected = {
        "backbone.trunk.position": 0.8**3,
        "backbone.trunk.stem": 0.8**3,
        "backbone.trunk.one": 0.8**2,
        "backbone.trunk.two": 0.8,
        "backbone.trunk.final": 1.0,  # after the stages
        "backbone.lateral": 1.0,
        "head.predictor": 1.0,
    }
    for name, factor in found.items():
        [path] = [path for path in expected if name == path or name.startswith(f"{path}.")]
        assert factor == pytest.approx(expected[path], rel=1e-12), name


@pytest.mark.parametrize(
    ("trunk", "expected"),
    [
        (
            lambda: ResNet("resnet18", "bn", 0),
            {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1},
        ),
        (
            lambda: VGG16(freeze_at=0),
            # conv1_1 and conv1_2 are numbers 0 and 2 of the layers, conv5_3 is number 28.
            {
                **dict.fromkeys(("features.0", "features.2"), 5),
                **dict.fromkeys(("features.5", "features.7"), 4),
                **dict.fromkeys(("features.10", "features.12", "features.14"), 3),
                **dict.fromkeys(("features.17", "features.19", "features.21"), 2),
                **dict.fromkeys(("features.24", "features.26", "features.28"), 1),
            },
        ),
        (lambda: ZF(freeze_at=0), {f"conv{number}": 6 - number for number in range(1, 6)}),
    ],
    ids=["resnet18", "vgg16", "zf"],
)
def test_the_stages_of_the_papers_trunks(trunk, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        model = trunk()
    found = by_name(model, layer_factors(model, 0.5))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, factor in found.items():
        [exponent] = [n for path, n in expected.items() if name.startswith(f"{path}.")]
        assert factor == 0.5**exponent, name


def test_the_stages_of_a_timm_model() -> None:
    pytest.importorskip("timm")
    model = TimmTrunk("resnet10t", freeze_at=0)
    found = by_name(model, layer_factors(model, 0.5))
    for name, factor in found.items():
        stage = name.removeprefix("network.").split(".")[0]
        number = int(stage[-1]) if stage.startswith("layer") else 0
        assert factor == 0.5 ** (5 - number), name


def test_groups_have_the_product_of_all_factors() -> None:
    model = Model(Blocks())
    groups = parameter_groups(
        model,
        lr=0.1,
        weight_decay=0.01,
        bias_weight_decay=0.0,
        bias_lr_factor=2.0,
        lr_multipliers={"backbone": 0.1},
        layer_decay=0.5,
    )
    found = {p: group for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    blocks = model.backbone.trunk
    for parameter, rate, decay in (
        (blocks.one[0].weight, 0.1 * 0.1 * 0.5**2, 0.01),
        (blocks.one[0].bias, 0.1 * 0.1 * 0.5**2 * 2, 0.0),
        (blocks.one[1].weight, 0.1 * 0.1 * 0.5**2, 0.0),
        (blocks.one[1].bias, 0.1 * 0.1 * 0.5**2, 0.0),
        (model.backbone.lateral.weight, 0.1 * 0.1, 0.01),
        (model.head.predictor.bias, 0.1 * 2, 0.0),
        (model.head.predictor.weight, 0.1, 0.01),
    ):
        assert found[parameter]["lr"] == pytest.approx(rate, rel=1e-12)
        assert found[parameter]["base_lr"] == found[parameter]["lr"]
        assert found[parameter]["weight_decay"] == decay


def test_impossible_settings_are_refused_by_name() -> None:
    model = Model(Blocks())
    for settings, message in (
        ({"lr_multipliers": {"rpn": 0.1}}, "Model has no part rpn, it has backbone, head"),
        (
            {"lr_multipliers": {"backbone.trunk.four": 0.1}},
            r"lr_multipliers: backbone\.trunk\.four: 0\.1: backbone\.trunk \(Blocks\) has no part "
            "four, it has stem, one, two, final",
        ),
        ({"lr_multipliers": {"head": 0}}, r"must be a positive number\. freeze=\[head\] keeps it"),
        ({"layer_decay": 1.5}, "layer_decay=1.5; it must lie above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            lr_factors(model, **settings)
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 needs a trunk"):
        lr_factors(nn.Linear(1, 1), layer_decay=0.5)


def test_a_factor_of_what_does_not_learn_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(Blocks())
    model.backbone.requires_grad_(False)
    lr_factors(model, {"head": 0.5})
    assert caplog.messages == []
    lr_factors(model, {"backbone.trunk": 0.1}, layer_decay=0.5)
    assert "layer_decay=0.5 has no effect" in caplog.messages[0]
    assert "backbone.trunk: 0.1 has no effect" in caplog.messages[1]
    caplog.clear()
    lr_factors(model, {"head": 0.5, "head.predictor": 0.1})  # the longer one decides for all of it
    assert len(caplog.messages) == 1 and "head: 0.5 has no effect" in caplog.messages[0]


def test_settings_on_the_command_line_reach_the_groups(compose_tiny) -> None:
    cfg = compose_tiny(
        "optimizer.lr_multipliers={backbone: 0.1, backbone.lateral: 1.0}",
        "optimizer.lr=0.2",
        "num_classes=2",
    )
    with torch.device("meta"):
        model = instantiate(cfg.model, _convert_="all")
    freeze_parts(model, ["backbone.trunk.layer1"])
    optimizer = instantiate(cfg.optimizer, _convert_="all")(model)
    rates = {p: group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    trunk = model.backbone.trunk
    assert trunk.layer1[0].conv1.weight not in rates
    assert rates[trunk.layer2[0].conv1.weight] == pytest.approx(0.02)
    assert rates[model.backbone.lateral[0][0].weight] == 0.2
    assert rates[model.rpn.head.objectness.bias] == 0.2


def test_learning_rates_of_parts_reach_the_stages_that_have_them(compose_tool, tmp_path) -> None:
    choice = ("~experiment", "model=faster_rcnn_fpn", "backbone=resnet18_fpn", "num_classes=3")
    rates = "optimizer.lr_multipliers={rpn: 2.0, box_branch.head: 3.0, backbone: 0.5}"
    decay = "optimizer.layer_decay=0.8"
    overrides = (*choice, "training=alternating", rates, decay)
    cfg, settings = split_settings(compose_tool("train", *overrides))
    run = RunDirectory(tmp_path)
    found = []
    for stage in STAGES:
        config = stage_config(cfg, settings[stage.kind], stage, run)
        with torch.device("meta"):
            model = build(config.model)
        factors = lr_factors(model, config.optimizer.lr_multipliers, config.optimizer.layer_decay)
        rate = {name: round(factors[p], 6) for name, p in model.named_parameters() if p in factors}
        own = "rpn.head.deltas.bias" if stage.kind == "rpn" else "box_branch.head.fc1.bias"
        found.append((rate[own], rate["backbone.lateral.0.0.weight"]))
    assert found == [(2.0, 0.5), (3.0, 0.5)] * 2
