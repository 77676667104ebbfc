"""A model begins with another's weights: which tensors go where, and what is said about it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from detector.engine.weights.init_table import transfer_report
from detector.engine.weights.initial_weights import random_and_frozen
from detector.engine.weights.model_differences import model_differences
from detector.engine.weights.weight_transfer import Transfer, transfer_weights
from detector.interop.convert import load_any
from detector.roi_heads.keypoint_heads import KeypointHead

OLD = ["circle", "square", "star"]
HEADS = {
    f"{layer}.{kind}"
    for layer in (
        *("box_branch.predictor.scores", "box_branch.predictor.deltas"),
        "mask_branch.head.logits",
    )
    for kind in ("weight", "bias")
}


@pytest.fixture(scope="module")
def build(compose_tiny) -> Callable[..., nn.Module]:
    """A tiny detector of ``count`` classes with settings."""

    @functools.cache  # composing and building take longer than the tests
    def make(count: int, *settings: str) -> nn.Module:
        torch.manual_seed(count)
        cfg = compose_tiny(f"num_classes={count}", *settings)
        return instantiate(cfg.model, _convert_="all")

    return lambda *arguments: copy.deepcopy(make(*arguments))


def content(model: nn.Module, names: list[str]) -> dict:
    """As of a training: no value is what a new model has."""
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    return {"model": state, "class_names": names}


def start(model: nn.Module, given: dict, names: list[str], by_name: bool = False) -> Transfer:
    return transfer_weights(model, given, {"classes": names, "keypoints": []}, "old.pt", by_name)


def listed(transfer: Transfer) -> list[str]:
    return sorted(transfer.loaded + transfer.carried + transfer.reinitialised + transfer.missing)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {n: v.clone() for n, v in state.items() if not n.endswith("num_batches_tracked")}


def text(transfer: Transfer) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*transfer_report(transfer))
    return capture.get()


def test_heads_of_another_number_of_classes_begin_anew(build) -> None:
    given = content(build(3), OLD)
    model = build(2)
    before = tensors(model)
    transfer = start(model, given, ["nut", "fig"])
    after = tensors(model)
    assert set(transfer.reinitialised) == HEADS
    assert transfer.missing == transfer.unused == transfer.carried == []
    assert listed(transfer) == sorted(after)
    for name, value in after.items():
        expected = before[name] if name in HEADS else given["model"][name]
        assert torch.equal(value, expected), name


def test_rows_of_classes_with_the_same_name_go_on(build) -> None:
    given = content(build(3), OLD)
    model = build(4)
    before = tensors(model)
    transfer = start(model, given, ["star", "nut", "circle", "fig"], by_name=True)
    assert set(transfer.carried) == HEADS and transfer.reinitialised == []
    after, theirs = tensors(model), given["model"]
    for kind in ("weight", "bias"):
        for layer, per_class in (
            ("box_branch.predictor.scores", 1),
            ("box_branch.predictor.deltas", 4),
            ("mask_branch.head.logits", 1),
        ):
            name = f"{layer}.{kind}"
            own, old, new = (x[name].unflatten(0, (-1, per_class)) for x in (after, theirs, before))
            assert torch.equal(own[0], old[2]) and torch.equal(own[2], old[0])
            assert torch.equal(own[1], new[1]) and torch.equal(own[3], new[3])
        name = f"box_branch.predictor.scores.{kind}"
        assert torch.equal(after[name][4], theirs[name][3])  # background


@pytest.mark.parametrize(
    ("settings", "reinitialised", "loaded"),
    [
        (
            ["model=cascade_mask_rcnn_fpn", "model.mask_branch.head.masks=softmax"],
            [f"box_branch.stages.{i}.predictor.scores" for i in range(3)]
            + ["mask_branch.head.logits"],
            [f"box_branch.stages.{i}.predictor.deltas" for i in range(3)],
        ),
        (
            [
                "model.box_branch.predictor.class_agnostic=true",
                "model.mask_branch.head.masks=class_agnostic",
            ],
            ["box_branch.predictor.scores"],
            ["box_branch.predictor.deltas", "mask_branch.head.logits"],
        ),
    ],
    ids=["cascade and softmax", "agnostic"],
)
def test_only_what_knows_classes_begins_anew(build, settings, reinitialised, loaded) -> None:
    transfer = start(build(2, *settings), content(build(3, *settings), OLD), ["nut", "fig"])
    names = {name.rpartition(".")[0] for name in transfer.reinitialised}
    assert names == set(reinitialised)
    assert {f"{layer}.weight" for layer in loaded} <= set(transfer.loaded)


def test_the_same_classes_and_other_names_for_as_many(build) -> None:
    given = content(build(3), OLD)
    for names, order, line in (
        (OLD, [0, 1, 2, 3], "classes: the same 3 as in the checkpoint"),
        (OLD[::-1], [2, 1, 0, 3], "classes: 3 go on from rows of their name: star, square, circle"),
        (
            ["x", "y", "z"],
            [0, 1, 2, 3],
            "x, y, z: as many as the checkpoint's circle, square, star",
        ),
    ):
        model = build(3)
        transfer = start(model, given, names)
        theirs = given["model"]["box_branch.predictor.scores.weight"]
        assert torch.equal(model.box_branch.predictor.scores.weight, theirs[order])
        assert transfer.reinitialised == [] and line in text(transfer)


def test_keypoints_are_matched_by_name_or_number() -> None:
    def head(count: int) -> nn.Module:
        return nn.ModuleDict({"head": KeypointHead(4, count, 1, 4)})

    given = content(head(3), []) | {"keypoint_names": ["nose", "left", "right"]}
    model = head(2)
    weight = model["head"].deconv.weight.detach().clone()
    names = {"classes": [], "keypoints": ["right", "tail"]}
    transfer = transfer_weights(model, given, names, "old.pt", by_name=True)
    assert transfer.carried == ["head.deconv.weight", "head.deconv.bias"]
    theirs = given["model"]["head.deconv.weight"]
    assert torch.equal(model["head"].deconv.weight[:, 0], theirs[:, 2])
    assert torch.equal(model["head"].deconv.weight[:, 1], weight[:, 1])

    transfer = transfer_weights(head(2), given, names, "old.pt")
    assert transfer.reinitialised == ["head.deconv.weight", "head.deconv.bias"]
    del given["keypoint_names"]  # a file that does not name them
    assert transfer_weights(head(2), given, names, "old.pt").reinitialised
    names["keypoints"] = ["a", "b", "c"]
    assert not transfer_weights(head(3), given, names, "old.pt").reinitialised


def test_parts_that_only_one_of_them_has_are_listed(build) -> None:
    boxes = build(3, "model=faster_rcnn_fpn")
    transfer = start(build(3), content(boxes, OLD), OLD)
    assert {name.partition(".")[0] for name in transfer.missing} == {"mask_branch"}
    assert transfer.unused == []
    model = build(3, "model=faster_rcnn_fpn")
    transfer = start(model, content(build(3), OLD), OLD)
    assert {name.partition(".")[0] for name in transfer.unused} == {"mask_branch"}
    assert transfer.missing == [] and listed(transfer) == sorted(tensors(model))
    assert transfer.sizes[transfer.unused[0]] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.backbone.out_channels=8"],
            r"init=old\.pt: \d+ tensors have another shape than in the model, and not for the "
            r"number of classes:\n  backbone\.lateral\.0\.0\.weight: \(16, 64, 1, 1\) in the "
            r"checkpoint, \(8, 64, 1, 1\) here",
        ),
        (
            ["model.box_branch.predictor.class_agnostic=true"],
            r"predictor\.deltas\.weight: \(12, 32\) in the checkpoint, \(4, 32\) here",
        ),
        (
            ["model.mask_branch.head.masks=softmax"],
            r"head\.logits\.weight: \(3, 8, 1, 1\) in the checkpoint, \(3, 8, 1, 1\) here, which 3 "
            "and 2 classes do not explain",
        ),
        (
            ["backbone=resnet50_fpn", "model.backbone.norm=bn", "model.backbone.freeze_at=0"],
            r"backbone\.trunk\.layer1\.0\.conv1\.weight: \(64, 64, 3, 3\)",
        ),
    ],
    ids=["channels", "agnostic", "softmax", "network"],
)
def test_other_shapes_are_refused_and_nothing_is_copied(build, settings, message) -> None:
    given = content(build(3), OLD)
    model = build(2, *settings)
    before = tensors(model)
    with pytest.raises(ValueError, match=message):
        start(model, given, ["nut", "fig"])
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())


def test_a_part_of_another_kind_is_refused() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "rpn": nn.Linear(2, 2)})
    same = {"backbone.weight": torch.ones(2, 2), "backbone.bias": torch.ones(2)}
    other = {"rpn.conv.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"its rpn fits .*: rpn\.conv\.weight there, rpn\.weight"):
        start(model, {"model": same | other, "class_names": []}, [])
    with pytest.raises(ValueError, match="none of its 1 tensors has a place"):
        start(model, {"model": {"head.weight": torch.ones(1)}, "class_names": []}, [])
    assert start(model, {"model": same, "class_names": []}, []).missing == [
        "rpn.weight",
        "rpn.bias",
    ]


def test_the_table_counts_every_tensor_and_parameter_of_each_part(build) -> None:
    transfer = start(build(2), content(build(3), OLD), ["nut", "fig"])
    lines = [line.split() for line in text(transfer).replace("│", " ").splitlines()]
    scores = 33 * 3
    boxes = scores + 33 * 8  # deltas
    assert [
        "box_branch",
        "re-initialised",
        "4",
        str(boxes),
        "predictor.scores,",
        "predictor.deltas",
    ] in lines
    head = 16 * 49 * 32 + 32 + 32 * 32 + 32
    assert ["box_branch", "loaded", "4", f"{head:,}"] in lines
    assert ["mask_branch", "re-initialised", "2", str(9 * 2), "head.logits"] in lines
    assert "classes: 3 before (circle, square, star), 2 now (nut, fig)" in text(transfer)


def test_the_real_trunk_has_no_3x3_layers_in_layer4(build, test_data: Path) -> None:
    file = test_data / "weights" / "resnet18_imagenet_without_layer4.safetensors"
    model = build(3)
    transfer = start(model, load_any(file), OLD)
    given = load_file(file)
    trunk = model.backbone.trunk.state_dict()
    missing = {n for n in trunk if n not in given and not n.endswith("num_batches_tracked")}
    assert missing and all(name.startswith("layer4.") for name in missing)
    prefix = "backbone.trunk."
    inside = {n.removeprefix(prefix) for n in transfer.missing if n.startswith(prefix)}
    assert inside == missing
    model.backbone.requires_grad_(False)
    # 4 convolutions and the scale and shift of 4 norms in layer4; weight and bias of 8 in the FPN.
    [warning] = random_and_frozen(model, transfer)
    assert "28 tensors begin with random values and are frozen" in warning
    assert random_and_frozen(build(3), transfer) == []
    shown = text(transfer)
    assert "trunk.layer4.0.conv1" in shown and "missing" in shown and "classes" not in shown
    for name in transfer.loaded:
        name = name.removeprefix(prefix)
        assert torch.equal(trunk[name], given[name]), name


def test_after_c4_the_last_stage_of_a_trunk_is_the_head_of_the_rois(compose_tool) -> None:
    cfg = compose_tool(
        "train",
        "experiment=faster_rcnn_r50_c4_1x",
        "num_classes=2",
        "model.backbone.name=resnet18",
        "model.backbone.out_channels=256",
        "model.box_branch.pooler.out_channels=512",
    )
    model = instantiate(cfg.model, _convert_="all")
    torch.manual_seed(0)
    trunk = torchvision.models.resnet18()
    prefix = "backbone.trunk."
    given = {f"{prefix}{n}": v for n, v in trunk.state_dict().items() if not n.startswith("fc.")}
    transfer = start(model, {"model": given, "class_names": []}, ["a", "b"])
    assert transfer.unused == []
    head = model.box_branch.pooler.layer4.state_dict()
    for name, value in trunk.layer4.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(head[name], value), name
    assert torch.equal(model.backbone.trunk.conv1.weight, trunk.conv1.weight)


def test_settings_that_the_weights_depend_on_are_compared(compose_tiny) -> None:
    former = OmegaConf.to_yaml(
        compose_tiny(
            "num_classes=3",
            "model.normalizer.std=[1.0,1.0,1.0]",
            "model.rpn.anchors.sizes=[[16],[32],[64],[128],[256]]",
            "model.backbone.freeze_at=2",
            "model.roi_sampler.num_samples=8",
            "model.backbone.out_channels=8",  # which others follow
            "model.mask_branch.pooler.canonical_level=3",
        )
    )
    now = compose_tiny("num_classes=2")
    parts = ["backbone", "rpn", "box_branch"]
    assert model_differences(former, now, parts) == [
        "model.normalizer.std=[1.0,1.0,1.0] (here [58.395,57.12,57.375])",
        "model.backbone.out_channels=8 (here 16)",
        "model.rpn.anchors.sizes=[[16],[32],[64],[128],[256]] (here [[8],[16],[32],[64],[128]])",
    ]
    assert model_differences("name: other", now, parts) == []
