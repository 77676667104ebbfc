import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detector import cli
from detector.commands.describe import describe
from detector.engine.parts import NOT_RUN, build_without_memory, measure_parts, multiply_adds
from detector.engine.published import compare_with_published


@pytest.fixture(scope="module")
def compose_describe(compose_tool):
    """``compose_describe("model=...", ...)`` without a recipe."""
    return lambda *words: compose_tool("describe", "~experiment", *words)


@pytest.fixture(scope="module")
def mask_rcnn(compose_describe):
    return build_without_memory(compose_describe(), 80)


def by_path(parts) -> dict:
    return {part.path: part for part in parts}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("faster_rcnn_fpn", "FasterRCNN_ResNet50_FPN_Weights"),
        ("mask_rcnn_fpn", "MaskRCNN_ResNet50_FPN_Weights"),
    ],
)
def test_r50_fpn_is_as_large_as_torchvision_publishes(model, name, compose_describe) -> None:
    meta = getattr(torchvision.models.detection, name).COCO_V1.meta
    assert meta["num_params"] == {"F": 41_755_286, "M": 44_401_393}[name[0]]
    parameters, arithmetic, trunk = compare_with_published(compose_describe(f"model={model}"))
    assert name in parameters.source and name in arithmetic.source
    assert parameters.ours == parameters.published == meta["num_params"]
    # Published with two decimals, in units of 10^9 multiply-adds.
    assert arithmetic.published == pytest.approx(meta["_ops"] * 1e9)
    assert arithmetic.ours == pytest.approx(meta["_ops"] * 1e9, abs=0.005e9)
    # ResNet-50's 25 557 032 without the classifier's 2048 x 1000 weights and 1000 biases.
    assert trunk.ours == trunk.published == 25_557_032 - 2_049_000


@pytest.mark.parametrize(
    ("recipe", "name", "num_params", "multiply_adds"),
    [
        ("faster_rcnn_r50_fpn_v2", "FasterRCNN_ResNet50_FPN_V2", 43_712_278, 280.371),
        # Of 100 masks, as many as it finds in noise.
        ("mask_rcnn_r50_fpn_v2", "MaskRCNN_ResNet50_FPN_V2", 46_359_409, 333.577),
        # Of the keypoints of one object.
        ("keypoint_rcnn_r50_fpn", "KeypointRCNN_ResNet50_FPN", 59_137_258, 137.42),
        ("faster_rcnn_mobilenet_v3_large_fpn", "FasterRCNN_MobileNet_V3_Large_FPN", 19_386_354, 0),
        ("faster_rcnn_mobilenet_v3_large_320_fpn", "FasterRCNN_MobileNet_V3", 19_386_354, 0),
    ],
)
def test_torchvisions_other_detectors_are_as_large_as_published(
    recipe, name, num_params, multiply_adds, compose_tool
) -> None:
    rows = compare_with_published(compose_tool("describe", f"experiment=torchvision_{recipe}"))
    parameters = rows[0]
    assert name in parameters.source
    assert parameters.ours == parameters.published == num_params
    found = [row.ours for row in rows if "multiply-adds" in row.what]
    # Published with two or three decimals, in units of 10^9.
    assert found == ([pytest.approx(multiply_adds * 1e9, abs=0.005e9)] if multiply_adds else [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=rcnn_vgg16", "backbone=vgg16"], 138_357_544 - 4_097_000),
        (["model=rcnn_resnet", "backbone=resnet50_c5"], 25_557_032 - 2_049_000),
        (["model=mask_rcnn_c5", "backbone=resnet50_c5"], 25_557_032 - 2_049_000),
        (["model=mask_rcnn_c4", "backbone=resnet50_c4"], 25_557_032 - 2_049_000),
        (["model=mask_rcnn_dc5", "backbone=resnet101_dc5"], 44_549_160 - 2_049_000),
        (["model=faster_rcnn_vgg16", "backbone=vgg16"], 138_357_544 - 4_097_000),
        # Half of ResNet-50, and half of VGG16.
        (["model=rpn_c4", "backbone=resnet50_c4"], None),
        (["model=rpn_vgg16", "backbone=vgg16"], None),
    ],
)
def test_trunks_are_as_large_as_published_wherever_their_last_layers_are(
    words, expected, compose_describe
) -> None:
    rows = compare_with_published(compose_describe(*words))
    assert [(row.ours, row.published) for row in rows] == [(expected, expected)] * bool(expected)


@pytest.mark.parametrize(
    "model",
    [
        *("cascade_mask_rcnn_fpn", "fast_rcnn_fpn", "rpn_fpn", "mask_rcnn_fpn_mlp"),
        "mask_rcnn_fpn_4conv1fc",  # with one convolution in the RPN
    ],
)
def test_of_other_detectors_the_trunk_alone_is_compared(model, compose_describe) -> None:
    [trunk] = compare_with_published(compose_describe(f"model={model}"))
    assert "trunk" in trunk.what
    assert trunk.ours == trunk.published


def test_a_narrower_model_differs_from_the_published_one(compose_describe) -> None:
    parameters, arithmetic, _ = compare_with_published(
        compose_describe("model=faster_rcnn_fpn", "model.box_branch.head.width=512")
    )
    # fc1, fc2 and the predictor of half the width; 91 outputs and 4 x 91 deltas.
    half = 512 * (256 * 49 + 1) + (1024 * 1025 - 512 * 513) + 512 * 91 * 5
    assert parameters.published - parameters.ours == half
    weights = 512 * 256 * 49 + 1024**2 - 512**2 + 512 * 91 * 5
    assert arithmetic.published - arithmetic.ours == pytest.approx(1000 * weights, abs=0.005e9)


def test_parts_have_the_shapes_and_the_arithmetic_of_the_figure(mask_rcnn) -> None:
    """At 64 x 96, with all that is convolved or multiplied written out."""
    parts = by_path(measure_parts(mask_rcnn, 1, 64, 96))
    maps = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    cells = [height * width for height, width in maps]
    assert parts["backbone.trunk"].shapes == tuple(
        (1, 256 << level, *size) for level, size in enumerate(maps[:4])
    )
    assert parts["backbone"].shapes == tuple((1, 256, *size) for size in maps)
    lateral = sum(n * (256 << level) * 256 for level, n in enumerate(cells[:4]))
    assert parts["backbone"].flops == 2 * (lateral + sum(cells[:4]) * 9 * 256 * 256)
    assert parts["rpn.head"].shapes[0] == (1, 3 * cells[0])
    assert parts["rpn.head"].flops == 2 * sum(cells) * (9 * 256 * 256 + 256 * 3 * 5)
    # There are 1530 anchors on these maps: no more than 1000 of any level, and 1000 in all.
    assert parts["rpn.test_proposals"].shapes[0] == (1, 1000, 4)
    assert parts["box_branch.pooler"].shapes == ((1000, 256, 7, 7),)
    assert parts["box_branch.head"].flops == 2 * 1000 * (49 * 256 * 1024 + 1024 * 1024)
    assert parts["box_branch.predictor"].shapes == ((1000, 81), (1000, 80, 4))
    assert parts["box_branch.detections"].shapes[0] == (1, 100, 4)
    assert parts["mask_branch.head"].shapes == ((100, 80, 28, 28),)
    masks = 14 * 14 * (4 * 9 * 256**2 + 4 * 256**2) + 28 * 28 * 256 * 80
    assert parts["mask_branch.head"].flops == 2 * 100 * masks
    assert parts["mask_branch.head"].parameters == 4 * (9 * 256**2 + 256) + (4 * 256**2 + 256) + (
        80 * 257
    )
    # The stem's convolution and the first stage: 64 in, 64, 64, 256 and the shortcut, then twice.
    assert parts["backbone.trunk"].frozen == 3 * 64 * 49 + (
        64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256 + 2 * (256 * 64 + 9 * 64 * 64 + 64 * 256)
    )


def test_parts_add_up_to_the_model(mask_rcnn) -> None:
    parts = measure_parts(mask_rcnn, 2, 64, 64)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in mask_rcnn.parameters())
    trained = sum(p.numel() for p in mask_rcnn.parameters() if p.requires_grad)
    assert sum(part.trainable for part in parts) == trained
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device="meta")
    sizes = torch.zeros(2, 2, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mask_rcnn.detect(images, sizes)
    assert multiply_adds(parts) == counter.get_total_flops() // 2


def test_twice_the_images_are_twice_the_work_of_the_same_parameters(mask_rcnn) -> None:
    once, twice = (measure_parts(mask_rcnn, batch, 64, 64) for batch in (1, 2))
    assert [2 * part.flops for part in once] == [part.flops for part in twice]
    assert [part.parameters for part in once] == [part.parameters for part in twice]
    assert not any(module._forward_hooks for module in mask_rcnn.modules())


def test_a_shared_part_is_listed_for_each_call_and_its_parameters_once(compose_describe) -> None:
    model = build_without_memory(compose_describe("model=mask_rcnn_c4", "backbone=resnet50_c4"), 3)
    parts = measure_parts(model, 1, 64, 64)
    boxes, masks = [part for part in parts if part.kind == "RoIStage"]
    # At 64 x 64 there are 16 cells with 15 anchors each.
    assert (boxes.shapes, masks.shapes) == (((240, 2048, 7, 7),), ((100, 2048, 7, 7),))
    assert boxes.flops * 100 == masks.flops * 240 > 0
    assert (boxes.trainable, masks.trainable) == (
        sum(p.numel() for p in model.box_branch.pooler.layer4.parameters()),
        0,
    )


def test_given_proposals_are_as_many_as_asked_for(compose_describe) -> None:
    model = build_without_memory(compose_describe("model=fast_rcnn_fpn"), 3)
    parts = by_path(measure_parts(model, 2, 64, 64, num_proposals=7))
    assert parts["box_branch.pooler"].shapes == ((14, 256, 7, 7),)


def test_what_does_not_run_is_counted_apart(compose_describe) -> None:
    model = build_without_memory(compose_describe("model=rpn_fpn", "backbone=resnet18_fpn"), 1)
    model.idle = nn.Linear(4, 5, device="meta")
    last = measure_parts(model, 1, 64, 64)[-1]
    assert (last.path, last.trainable, last.flops) == (NOT_RUN, 25, 0)


def test_the_tool_prints_and_writes_what_it_returns(compose_tool, tmp_path, capsys) -> None:
    file = tmp_path / "size.json"
    words = ("experiment=faster_rcnn_r50_fpn_1x", "height=60", "width=90", f"json={file}")
    report = describe(compose_tool("describe", *words, "model.backbone.weights=/no/such/file"))
    assert json.loads(file.read_text()) == json.loads(json.dumps(report))
    assert (report["model"], report["num_classes"]) == ("FasterRCNN", 80)
    assert report["input"] == [1, 3, 64, 96]
    assert report["flops"] == sum(part["flops"] for part in report["parts"])
    printed = capsys.readouterr().out
    assert "faster_rcnn_r50_fpn_1x: FasterRCNN, 80 classes, since num_classes is not" in printed
    assert "60 x 90" in printed and "1x256x16x24" in printed and "two for each" in printed
    assert f"{report['trainable']:,}" in printed and "41,755,286" in printed


@pytest.mark.parametrize("word", ["height=0", "batch=-1", "num_classes=0", "num_proposals=0"])
def test_numbers_below_one_are_refused(word, compose_describe) -> None:
    with pytest.raises(ValueError, match=f"{word} must be a whole number of at least 1"):
        describe(compose_describe(word))


def test_the_command_line_knows_the_tool(monkeypatch, capsys, tmp_path: Path) -> None:
    words = ["detector", "describe", "model=rpn_fpn", "backbone=resnet18_fpn", "num_classes=3"]
    monkeypatch.setattr(sys, "argv", [*words, "height=64", "width=64"])
    monkeypatch.chdir(tmp_path)
    cli.main()
    assert "shapes: ProposalNetwork\n" in capsys.readouterr().out


class OwnBackbone(nn.Module):
    """A backbone of one's own, which has none of ours inside."""

    strides = (16,)

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(3, out_channels, 16, stride=16)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(images)]


def test_a_backbone_of_ones_own_is_compared_with_nothing(compose_describe) -> None:
    cfg = compose_describe("model=rpn_c4", "backbone=resnet50_c4", "height=64", "width=64")
    cfg.model.backbone = {"_target_": f"{__name__}.OwnBackbone", "out_channels": 8}
    report = describe(cfg)
    assert report["published"] == []
    assert report["parts"][1]["trainable"] == 8 * (3 * 16 * 16 + 1)
