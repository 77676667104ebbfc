"""From a trained checkpoint to a detector of other classes, through the tools."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from detector import cli
from detector.commands.evaluate import evaluate
from detector.commands.predict import predict
from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def other_classes(shapes_root: Path, tmp_path_factory) -> Path:
    """The shapes again, of which the first class stays and the others are one; ids are sparse."""
    root = tmp_path_factory.mktemp("other") / "shapes"
    shutil.copytree(shapes_root, root)
    for path in root.glob("annotations/*.json"):
        file = json.loads(path.read_text())
        first = file["categories"][0]
        file["categories"] = [{"id": 40, "name": "other"}, {"id": 7, "name": first["name"]}]
        for annotation in file["annotations"]:
            annotation["category_id"] = 7 if annotation["category_id"] == first["id"] else 40
        path.write_text(json.dumps(file))
    return root


@pytest.fixture
def settings(other_classes: Path, tmp_path: Path) -> list[str]:
    """On these data, which lie ready and are not drawn."""
    return [
        f"data.root={other_classes}",
        "~data.prepare",
        f"run_dir={tmp_path / 'run'}",
        "logging.pictures=0",
        "training.max_steps=2",
        "training.ema_decay=null",
    ]


def test_new_classes_from_a_trained_checkpoint(
    compose_tiny, compose_tool, trained: Path, settings: list[str], tmp_path: Path, capsys
) -> None:
    former = load_checkpoint(trained)
    freeze = "freeze=[backbone.trunk.layer1]"
    train(compose_tiny(*settings, f"init.checkpoint={trained}", freeze))
    said = capsys.readouterr().out
    assert f"init: {trained}" in said.replace("\n", "")
    for words in (["box_branch", "re-initialised"], ["mask_branch", "re-initialised"]):
        assert any(all(word in line for word in words) for line in said.splitlines()), words

    now = load_checkpoint(tmp_path / "run")
    assert now["class_names"] == [former["class_names"][0], "other"]  # in the order of their ids
    assert now["category_ids"] == [7, 40]
    assert now["model"]["box_branch.predictor.scores.weight"].shape[0] == 3
    before, after = former["model"], now["model"]
    name = "backbone.trunk.layer1.0.{}"
    for kept in ("conv1.weight", "bn1.running_mean"):
        assert torch.equal(after[name.format(kept)], before[name.format(kept)])
    moved = after["backbone.trunk.layer2.0.conv1.weight"]
    gone_on = before["backbone.trunk.layer2.0.conv1.weight"]
    assert not torch.equal(moved, gone_on)
    # Two steps of a warm-up: closer to where it began than to any other beginning.
    torch.testing.assert_close(moved, gone_on, atol=1e-2, rtol=0)

    # What was saved is used like any other checkpoint.
    metrics = evaluate(compose_tool("evaluate", f"checkpoint={tmp_path / 'run'}"))
    assert set(metrics["per_class"]) == {former["class_names"][0], "other"}
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    words = (f"checkpoint={tmp_path / 'run'}", f"input={tmp_path / 'red.png'}")
    records = predict(
        compose_tool("predict", *words, f"output={tmp_path / 'found'}", "score_threshold=0.0")
    )
    assert {record["category_id"] for record in records} <= {7, 40}

    # Resuming goes on from its own checkpoint, whatever it began with.
    more = [word for word in settings if "max_steps" not in word]
    begun = f"init.checkpoint={tmp_path / 'gone.pt'}"
    train(compose_tiny(*more, freeze, begun, "training.max_steps=3", "resume=auto"))
    assert load_checkpoint(tmp_path / "run")["step"] == 3
    assert "init:" not in capsys.readouterr().out.split("resumed from")[1]


def test_rows_of_the_class_that_stays_are_carried(
    compose_tiny, trained: Path, settings: list[str], tmp_path: Path, capsys
) -> None:
    former = load_checkpoint(trained)["model"]
    freeze = "freeze=[backbone,rpn,box_branch,mask_branch.head.convs]"  # and see what it began with
    train(compose_tiny(*settings, f"init.checkpoint={trained}", "init.match_names=true", freeze))
    assert "1 go on from rows of their name" in capsys.readouterr().out
    now = load_checkpoint(tmp_path / "run")["model"]
    for layer, per_class in (("scores", 1), ("deltas", 4)):
        own, old = (state[f"box_branch.predictor.{layer}.weight"] for state in (now, former))
        assert torch.equal(own[:per_class], old[:per_class])
        assert not torch.equal(own[per_class : 2 * per_class], old[per_class : 2 * per_class])
    scores = "box_branch.predictor.scores.weight"
    assert torch.equal(now[scores][2], former[scores][-1])  # background


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(
    compose_tiny, trained: Path, settings: list[str]
) -> None:
    cfg = compose_tiny(*settings, f"init.checkpoint={trained}")
    cfg.model.backbone.out_channels = 8
    with pytest.raises(ValueError, match=r"lateral.*\n(.*\n)*.*model\.backbone\.out_channels=16"):
        train(cfg)


def test_a_damaged_checkpoint_is_refused_before_the_data_is_read(compose_tiny, tmp_path) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    run = f"run_dir={tmp_path / 'run'}"
    with pytest.raises(ValueError, match=r"damaged\.pt"):
        train(compose_tiny(run, f"init.checkpoint={damaged}", "data.root=nowhere", "~data.prepare"))
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        train(compose_tiny(run, "init.checkpoint=gone.pt", "data.root=nowhere", "~data.prepare"))


@pytest.mark.parametrize("source", ["runs/shapes", "torchvision://Some_Weights.COCO_V1", "null"])
def test_init_on_the_command_line_stands_beside_its_other_settings(monkeypatch, source) -> None:
    seen = []
    module = ModuleType("stand_in")
    module.train = lambda cfg, began: seen.append(cfg)
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli.TOOLS, "train", ("stand_in", ""))
    words = ["init.match_names=true", f"init={source}", "optimizer.lr_multipliers={backbone: 0.1}"]
    monkeypatch.setattr(sys, "argv", ["train", *words, "freeze=[rpn,backbone.trunk.layer1]"])
    cli.run_tool("train")
    [cfg] = seen
    assert cfg.init.checkpoint == (None if source == "null" else source)
    assert cfg.init.match_names is True and cfg.init.backbone is None
    assert cfg.optimizer.lr_multipliers == {"backbone": 0.1}
    assert cfg.freeze == ["rpn", "backbone.trunk.layer1"]
