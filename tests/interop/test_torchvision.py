"""Which model a state dict of torchvision's is, and what is written for torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from detector.engine.parts import build_without_memory
from detector.interop import torchvision as ours
from detector.interop.files import StateFile
from detector.interop.fitting import convert_state, expected_state
from detector.interop.recipes import Recipe, compose_config


def without_memory(builder: str, **options) -> nn.Module:
    """A model of torchvision's on the ``meta`` device: names and shapes."""
    with torch.device("meta"):
        module = detection if hasattr(detection, builder) else torchvision.models
        if module is detection:
            options["weights_backbone"] = None
        return getattr(module, builder)(weights=None, **options)


def recognise(state: dict[str, Tensor], path: str = "file.pth", **metadata: str) -> Recipe | None:
    return ours.recognise(StateFile(state, "torch", metadata, path))


@pytest.mark.parametrize("builder", ours.MODELS)
def test_models_are_recognised_and_written_with_their_own_names(builder: str) -> None:
    """Their own model takes what ours is written as; every name and shape is there."""
    options = {"num_keypoints": 5} if builder.startswith("keypoint") else {}
    theirs = without_memory(builder, num_classes=8, **options)
    path = f"{builder}.pth"
    state = StateFile(theirs.state_dict(), "torch", {}, path)
    recipe = ours.recognise(state)
    assert recipe.name == f"torchvision {builder}"
    assert recipe.class_names == tuple(f"class {number}" for number in range(1, 8))
    model = convert_state(state, recipe, ours)  # which compares it with our model

    config = compose_config(recipe)
    assert config.model.backbone.norm == "bn"
    assert build_without_memory(config, 7).load_state_dict(model, assign=True)
    written = ours.from_ours(model, config)
    theirs.load_state_dict(written, strict=True, assign=True)


def test_a_model_reads_back_bit_for_bit() -> None:
    recipe = Recipe(
        "torchvision fasterrcnn_resnet18_fpn",
        ("model=torchvision_faster_rcnn_r50_fpn", "backbone=resnet18_fpn"),
        *ours.numbered_classes(2),
    )
    state = {name: torch.randn(value.shape) for name, value in expected_state(recipe).items()}
    written = ours.from_ours(state, compose_config(recipe))
    file = StateFile(written, "torch", {}, "written")
    assert ours.recognise(file) == Recipe(
        recipe.name,
        (*recipe.overrides, "data.buckets=null", "model.backbone.norm=frozen_bn"),
        *(recipe.class_names, (1, 2)),
    )
    again = convert_state(file, recipe, ours)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    # Background first, and its unused deltas zeros.
    scores = written["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(scores[0], state["box_branch.predictor.scores.weight"][-1])
    assert written["roi_heads.box_predictor.bbox_pred.weight"][:4].eq(0).all()


def test_files_of_before_2022_have_other_names() -> None:
    state = without_memory("maskrcnn_resnet50_fpn").state_dict()
    former = {}
    for name, value in state.items():
        if name.startswith(("rpn.head.conv.", "backbone.fpn.")):
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            name = name.replace("rpn.head.conv.0.", "rpn.head.conv.")
        elif name.startswith("roi_heads.mask_head."):
            number, rest = name.removeprefix("roi_heads.mask_head.").split(".0.")
            name = f"roi_heads.mask_head.mask_fcn{int(number) + 1}.{rest}"
        if not name.endswith("num_batches_tracked"):  # frozen batch norms
            former[f"module.{name}"] = value
    assert {"module.rpn.head.conv.weight", "module.backbone.fpn.inner_blocks.0.weight"} <= set(
        former
    )
    assert "module.roi_heads.mask_head.mask_fcn4.bias" in former
    # torchvision's own migration makes the same of them.
    module = without_memory("maskrcnn_resnet50_fpn")
    bare = {name.removeprefix("module."): value for name, value in former.items()}
    missing, unknown = module.load_state_dict(bare, strict=False, assign=True)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)
    file = StateFile(former, "torch", {}, "old.pth")
    recipe = ours.recognise(file)
    assert "model.backbone.norm=bn" not in recipe.overrides
    assert convert_state(file, recipe, ours)


def test_the_catalogue_gives_classes_and_what_tensors_do_not_tell() -> None:
    """Published files are known by their names; the first models have norms without epsilon."""
    state = without_memory("fasterrcnn_resnet50_fpn").state_dict()
    published = recognise(state, "weights/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    assert "model.backbone.norm_eps=0.0" in published.overrides
    assert compose_config(published).model.backbone.norm_eps == 0
    assert published.num_classes == 90
    meta = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    for number, name in zip(published.category_ids, published.class_names, strict=True):
        assert name == (f"unused {number}" if meta[number] == "N/A" else meta[number])
    assert len(set(published.class_names)) == 90
    mine = recognise(state, "mine.pth")
    assert not any("norm_eps" in override for override in mine.overrides)
    assert mine.class_names == published.class_names

    named = {ours.WEIGHTS: "torchvision://KeypointRCNN_ResNet50_FPN_Weights.COCO_V1"}
    keypoints = recognise(without_memory("keypointrcnn_resnet50_fpn").state_dict(), **named)
    assert (keypoints.class_names, keypoints.category_ids) == (("person",), (1,))
    assert {"model.backbone.norm_eps=0.0", "num_keypoints=17"} <= set(keypoints.overrides)

    large = without_memory("fasterrcnn_mobilenet_v3_large_fpn").state_dict()
    named = {ours.WEIGHTS: "torchvision://FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"}
    small = recognise(large, **named)
    assert small.name == "torchvision fasterrcnn_mobilenet_v3_large_320_fpn"
    assert compose_config(small).augment.val[0].shortest == 320
    assert recognise(large).name == "torchvision fasterrcnn_mobilenet_v3_large_fpn"


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("vgg16", "mobilenet_v3_large"),
    ],
)
def test_imagenet_networks_become_trunks(name: str) -> None:
    state = without_memory(name).state_dict()
    recipe = recognise(state)
    assert recipe.name == f"torchvision {name}"
    model = convert_state(StateFile(state, "torch"), recipe, ours)
    trunk = {key for key in expected_state(recipe) if not key.endswith("num_batches_tracked")}
    assert trunk <= set(model)
    assert not any(key.startswith(("backbone.trunk.fc", "backbone.trunk.class")) for key in model)


def test_other_models_are_not_recognised() -> None:
    for builder in ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16"):
        assert recognise(without_memory(builder).state_dict()) is None
    for builder in ("mobilenet_v3_small", "vgg11", "wide_resnet50_2", "densenet121"):
        assert recognise(without_memory(builder).state_dict()) is None


def test_the_real_trunk_without_layer4_is_recognised(test_data: Path) -> None:
    from detector.interop.convert import load_any

    source = test_data / "weights" / "resnet18_imagenet_without_layer4.safetensors"
    content = load_any(source)
    assert content["source"].startswith("torchvision resnet18")
    model = content["model"]
    assert sum(name.startswith("backbone.trunk.layer3.") for name in model) > 20
    # Of layer4 it has the shortcut alone.
    assert {name.split(".")[4] for name in model if "layer4" in name} == {"downsample"}
