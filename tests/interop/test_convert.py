"""Conversion as a tool, what comes of it, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import detection, resnet18

from detector.backbones.resnet import ResNet
from detector.commands.evaluate import evaluate
from detector.commands.predict import predict
from detector.config_files import find_configs
from detector.engine.label_map import ABSENT, label_map
from detector.interop.convert import convert, load_any


def tool(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(find_configs()), version_base="1.3"):
        return compose(name, list(overrides))


def random_state(builder: str, num_classes: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = getattr(detection, builder)(
        weights=None, weights_backbone=None, num_classes=num_classes
    )
    return model.state_dict()


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """torchvision's smallest detector, with COCO's classes."""
    return random_state("fasterrcnn_mobilenet_v3_large_320_fpn", 91)


@pytest.fixture(scope="module")
def converted(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    source = folder / "fasterrcnn_320.pth"
    torch.save(small, source)
    convert(tool("convert", f"source={source}", f"output={folder / 'ours.pt'}"))
    return folder / "ours.pt"


def test_the_converted_file_alone_is_evaluated_and_predicts(converted, test_data, tmp_path) -> None:
    """90 classes there, 80 in the dataset: those of the same names are compared."""
    root = test_data / "coco_mini"
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    kept = content["images"][:2]
    numbers = {image["id"] for image in kept}
    few = [a for a in content["annotations"] if a["image_id"] in numbers]
    (tmp_path / "few.json").write_text(json.dumps({**content, "images": kept, "annotations": few}))
    metrics = evaluate(
        tool(
            "evaluate",
            *("data=coco_mini", f"data.root={root}", "data.num_workers=0", "runtime.device=cpu"),
            *(f"checkpoint={converted}", f"output={tmp_path}", "data.buckets=null"),
            f"data.val.annotations={tmp_path / 'few.json'}",
        )
    )
    assert metrics["box"]["AP"] >= 0  # random weights; that it is a number
    records = predict(
        tool(
            "predict",
            *(f"checkpoint={converted}", f"output={tmp_path}", "score_threshold=0.0"),
            *(f"input={root / 'val2017' / kept[0]['file_name']}", "runtime.device=cpu"),
        )
    )
    assert {record["category_id"] for record in records} <= set(range(1, 91))


def test_ours_is_written_as_it_came(converted, small, tmp_path) -> None:
    convert(tool("convert", f"source={converted}", "to=torchvision", f"output={tmp_path}/t.pth"))
    written = torch.load(tmp_path / "t.pth", weights_only=True)
    assert written.keys() == small.keys()
    unused = "roi_heads.box_predictor.bbox_pred."  # of background, which nothing uses
    for name, value in small.items():
        found = written[name]
        if name.startswith(unused):
            found, value = found[4:], value[4:]
        assert torch.equal(found, value), name
    safe = tmp_path / "t.safetensors"
    convert(tool("convert", f"source={converted}", "to=torchvision", f"output={safe}"))
    assert load_file(safe).keys() == small.keys()
    again = load_any(tmp_path / "t.pth")["model"]
    ours = load_any(converted)["model"]
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_a_model_with_other_numbers_is_written_with_a_warning(small, tmp_path, caplog) -> None:
    source = tmp_path / "fasterrcnn_320.pth"
    torch.save(small, source)
    change = "overrides=['model.rpn.anchors.rounded=false']"
    convert(tool("convert", f"source={source}", f"output={tmp_path}/ours.pt", change))
    with caplog.at_level(logging.WARNING):
        words = (f"source={tmp_path}/ours.pt", "to=torchvision", f"output={tmp_path}/320.pth")
        convert(tool("convert", *words))
    assert "model.rpn.anchors.rounded False -> True" in caplog.text


def test_what_does_not_fit_is_refused_with_names_shapes_and_the_nearest_recipe(
    small, tmp_path
) -> None:
    source = tmp_path / "fasterrcnn_320.pth"

    def refused(changes: dict[str, Tensor | None]) -> str:
        state = {**small, **changes}
        torch.save({name: value for name, value in state.items() if value is not None}, source)
        with pytest.raises(ValueError, match="looks like torchvision fasterrcnn_mob") as error:
            load_any(source)
        return str(error.value)

    name = "rpn.head.bbox_pred.weight"
    message = refused({name: None})
    assert f"{name} (here rpn.head.deltas.weight): missing, expected (60, 256, 1, 1)" in message
    assert "The nearest recipe is torchvision fasterrcnn_mobilenet_v3_large" in message
    message = refused({"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(128, 160, 1, 1)})
    assert "(128, 160, 1, 1), expected (256, 160, 1, 1)" in message
    assert "neck.weight: no such name in torchvision" in refused({"neck.weight": torch.zeros(1)})


def test_foreign_models_are_refused(tmp_path) -> None:
    with torch.device("meta"):
        foreign = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    state = {name: torch.zeros(value.shape) for name, value in foreign.state_dict().items()}
    torch.save(state, tmp_path / "retinanet.pth")
    with pytest.raises(ValueError, match=r"no model that is known here\. The nearest recipe is"):
        load_any(tmp_path / "retinanet.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="None of its 1 names is one of a known model's"):
        load_any(tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.pth"):
        load_any(tmp_path / "cut.pth")


def test_classes_can_be_named(small, tmp_path, converted) -> None:
    source = tmp_path / "fasterrcnn_320.pth"
    torch.save(small, source)
    names = [f"thing {number}" for number in range(90)]
    assert load_any(source, class_names=names)["class_names"] == names
    with pytest.raises(ValueError, match=r"class_names has 2 names, but .* has 90 classes"):
        load_any(source, class_names=["a", "b"])
    with pytest.raises(ValueError, match="leave overrides and class_names out"):
        load_any(converted, class_names=names)


def test_labels_are_mapped_by_name_where_the_model_knows_more() -> None:
    assert label_map(["cat", "unused 2", "dog"], ["dog", "cat"]) == [1, ABSENT, 0]
    assert label_map(["cat", "dog"], ["dog", "cat"]) is None  # which is refused elsewhere
    assert label_map(["cat", "dog", "cow"], ["dog", "horse"]) is None
    assert label_map(["cat", "cat", "dog"], ["cat"]) is None


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder, and no network."""

    def fail(*_, **__) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_published_weights_are_taken_from_the_hub_by_name(hub) -> None:
    torch.manual_seed(0)
    state = resnet18(weights=None).state_dict()
    torch.save(state, hub / "resnet18-f37072fd.pth")
    trunk = ResNet("resnet18", weights="torchvision://ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(trunk.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    content = load_any("torchvision://ResNet18_Weights.DEFAULT")
    assert "backbone.trunk.conv1.weight" in content["model"]


def test_without_network_the_message_says_what_to_fetch_and_where_to_put_it(hub) -> None:
    with pytest.raises(OSError, match="cannot be fetched") as error:
        load_any("torchvision://MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1")
    assert "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth" in str(error.value)
    assert str(hub) in str(error.value)
    with pytest.raises(ValueError, match=r"did you mean MaskRCNN_ResNet50_FPN_V2_Weights\.COCO_V1"):
        load_any("torchvision://MaskRCNN_ResNet50_FPN_V2_Weight.COCO_V1")
