"""The four stages on the synthetic shapes, from one command to one network."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError
from rich.console import Console
from torch import Tensor

from detector.commands import alternating
from detector.commands.alternating import (
    STAGES,
    export_proposals,
    split_settings,
    stage_config,
)
from detector.commands.evaluate import evaluate
from detector.commands.predict import predict
from detector.commands.train import train
from detector.engine.assembly import build
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.run_directory import RunDirectory
from detector.engine.weights.unified_network import check_shared
from detector.predictor import load
from detector.rcnn import FasterRCNN, FastRCNN, ProposalNetwork

NAMES = [stage.name for stage in STAGES]
Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def compose(compose_tiny: Compose) -> Compose:
    """A tiny alternating training: batch norms that learn, 3 steps of the RPN, 2 of the rest."""
    return lambda *overrides: compose_tiny(
        "model=faster_rcnn_fpn",
        "training=alternating",
        "training.max_steps=3",
        "+training.stages.fast_rcnn.training.max_steps=2",
        "logging.pictures=0",
        *overrides,
    )


@pytest.fixture(scope="module")
def whole(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished alternating training; read only."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(compose(f"run_dir={run_dir}"))
    return run_dir


def last(run_dir: Path, stage: str = "") -> Path:
    return run_dir / stage / "checkpoints" / "last.pt"


def weights(run_dir: Path, stage: str, part: str) -> dict[str, Tensor]:
    model = load_checkpoint(last(run_dir, stage))["model"]
    return {name: value for name, value in model.items() if name.startswith(f"{part}.")}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one and one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def assert_same_network(one: Path, other: Path) -> None:
    a, b = load_checkpoint(last(one)), load_checkpoint(last(other))
    assert differing(a["model"], b["model"]) == []
    assert a["step"] == b["step"]
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()


def stop_in(monkeypatch: pytest.MonkeyPatch, kind: type, call: int) -> None:
    """SIGTERM in the ``call``-th training step of a kind of model."""
    forward, calls = kind.forward, []

    def counted(self, *arguments):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments)

    monkeypatch.setattr(kind, "forward", counted)


def test_the_convolutions_are_the_same_from_stage_2_on_and_nothing_else_is(whole: Path) -> None:
    shared = weights(whole, "2_fast_rcnn", "backbone")
    assert any("running_mean" in name for name in shared)
    for stage in ("3_rpn", "4_fast_rcnn", ""):
        assert differing(shared, weights(whole, stage, "backbone")) == []
    # What was free has moved, in stage 2 the shared ones too: both began as stage 1 did.
    assert differing(shared, weights(whole, "1_rpn", "backbone"))
    second, fourth = (weights(whole, name, "box_branch") for name in ("2_fast_rcnn", "4_fast_rcnn"))
    assert differing(second, fourth)
    assert differing(weights(whole, "1_rpn", "rpn"), weights(whole, "3_rpn", "rpn"))


def test_the_network_is_the_rpn_of_stage_3_and_the_fast_rcnn_of_stage_4(whole: Path) -> None:
    assert differing(weights(whole, "", "rpn"), weights(whole, "3_rpn", "rpn")) == []
    for part in ("backbone", "box_branch"):
        assert differing(weights(whole, "", part), weights(whole, "4_fast_rcnn", part)) == []
    content = load_checkpoint(whole)
    assert content["step"] == 3 + 2
    assert content["class_names"] == ["circle", "triangle", "square", "star", "cross"]
    model = load(whole).model
    assert type(model) is FasterRCNN
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_detects_what_stage_4_does_on_the_proposals_of_stage_3(
    whole: Path, compose_tool: Compose, tmp_path: Path
) -> None:
    """The images have the size of the network's input, so that files of proposals round nothing."""
    found = {}
    for stage in ("", "4_fast_rcnn"):
        where = (f"checkpoint={whole / stage}", f"output={tmp_path / stage}")
        found[stage] = evaluate(compose_tool("evaluate", *where))
    one, other = (json.loads((tmp_path / stage / "detections.json").read_text()) for stage in found)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-6)
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
    assert found[""] == json.loads((whole / "metrics.json").read_text())


def test_the_other_tools_take_it(whole: Path, compose_tool, shapes_root, tmp_path: Path) -> None:
    where = (f"checkpoint={whole}", f"input={shapes_root / 'val'}", f"output={tmp_path}")
    predict(compose_tool("predict", *where, "score_threshold=0"))
    by_tool = json.loads((tmp_path / "predictions.json").read_text())
    results = load(last(whole)).predict(shapes_root / "val", score_threshold=0.0)
    assert len(results) == 4
    assert len(by_tool) == sum(len(result) for result in results) > 0


def test_stages_are_ordinary_trainings_on_what_the_one_before_gave(whole: Path) -> None:
    configs = [load_checkpoint(last(whole, name))["config"] for name in NAMES]
    targets = ["ProposalNetwork", "FastRCNN"] * 2
    assert all(f"detector.rcnn.{t}" in config for t, config in zip(targets, configs, strict=True))
    assert [load_checkpoint(last(whole, name))["step"] for name in NAMES] == [3, 2, 3, 2]
    files = {path.name.rpartition("_")[0]: path for path in (whole / "proposals").iterdir()}
    assert set(files) == {f"{s}_{p}_20" for s in ("1_rpn", "3_rpn") for p in ("train", "val")}
    assert str(files["1_rpn_train_20"]) in configs[1] and str(files["3_rpn_val_20"]) in configs[3]


@pytest.mark.parametrize(
    ("kind", "call", "stopped_in"),
    [
        (FastRCNN, 1, "2_fast_rcnn"),
        (ProposalNetwork, 5, "3_rpn"),
    ],
)
def test_stopped_within_a_stage_it_goes_on_to_the_same_network(
    kind: type, call: int, stopped_in: str, whole, compose, tmp_path: Path, monkeypatch, capsys
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_in(patch, kind, call)
        train(compose(f"run_dir={run_dir}"))
    assert stopped.value.code == 143
    # The command that it prints goes on with the whole, not with the stage.
    assert f"run_dir={run_dir} resume=auto" in capsys.readouterr().out.split("Go on with")[1]
    assert sorted(path.parent.name for path in run_dir.glob("*/checkpoints"))[-1] == stopped_in
    finished = NAMES[: NAMES.index(stopped_in)]
    before = {name: last(run_dir, name).stat().st_mtime_ns for name in finished}

    train(compose(f"run_dir={run_dir}", "resume=auto"))
    assert {name: last(run_dir, name).stat().st_mtime_ns for name in finished} == before
    assert_same_network(whole, run_dir)


def copy_until(whole: Path, run_dir: Path, stage: str) -> None:
    """The run directory as it was when ``stage`` had finished."""
    for name in NAMES[: NAMES.index(stage) + 1]:
        shutil.copytree(whole / name, run_dir / name)


@pytest.mark.parametrize("stage", NAMES)
def test_stopped_between_stages_it_repeats_none(
    stage: str, whole, compose, tmp_path: Path, capsys
) -> None:
    run_dir = tmp_path / "run"
    copy_until(whole, run_dir, stage)
    if stage == "3_rpn":  # it was stopped after these, too
        shutil.copytree(whole / "proposals", run_dir / "proposals")
    train(compose(f"run_dir={run_dir}", "resume=auto"))
    said = capsys.readouterr().out
    assert [name for name in NAMES if f"{name} has finished" in said] == NAMES[
        : NAMES.index(stage) + 1
    ]
    assert "are bit-equal in 2_fast_rcnn, 3_rpn, 4_fast_rcnn and" in said
    assert ("written before" in said) == (stage == "3_rpn")
    assert_same_network(whole, run_dir)


def test_a_finished_training_is_not_repeated(whole, compose, capsys) -> None:
    modified = last(whole).stat().st_mtime_ns
    metrics = train(compose(f"run_dir={whole}", "resume=auto"))
    assert metrics == json.loads((whole / "metrics.json").read_text())
    assert last(whole).stat().st_mtime_ns == modified
    assert "has finished" in capsys.readouterr().out


def test_proposals_of_another_checkpoint_are_not_taken(whole, compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    copy_until(whole, run_dir, "1_rpn")
    shutil.copytree(whole / "proposals", run_dir / "proposals")
    cfg, _ = split_settings(compose())
    where = ("1_rpn", "val", RunDirectory(run_dir), Console(quiet=True))
    file = export_proposals(cfg, *where)
    modified = file.stat().st_mtime_ns
    assert (whole / "proposals" / file.name).exists()

    content = load_checkpoint(last(run_dir, "1_rpn"))
    content["model"]["rpn.head.objectness.bias"] += 1.0
    save_checkpoint(last(run_dir, "1_rpn"), content)
    other = export_proposals(cfg, *where)
    assert file.stat().st_mtime_ns == modified and other != file
    with np.load(file) as one, np.load(other) as two:
        assert (one["scores"] < two["scores"]).all()
    cfg.model.rpn.test_proposals.post_nms_top_n = 6
    with np.load(export_proposals(cfg, *where)) as fewer:
        assert np.diff(fewer["offsets"]).tolist() == [6] * 4


def test_a_finished_stage_says_what_has_no_effect_on_it(
    whole, compose, tmp_path: Path, capsys
) -> None:
    run_dir = tmp_path / "run"
    copy_until(whole, run_dir, "4_fast_rcnn")
    train(compose(f"run_dir={run_dir}", "resume=auto", "optimizer.momentum=0.5"))
    warned = [line for line in capsys.readouterr().out.splitlines() if "no effect" in line]
    assert len(warned) == 4
    assert all("optimizer.momentum 0.9 -> 0.5" in line for line in warned)


def test_stages_of_different_trainings_are_refused(whole, compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    copy_until(whole, run_dir, "4_fast_rcnn")
    shutil.rmtree(run_dir / "2_fast_rcnn")
    with pytest.raises(ValueError, match=r"3_rpn has checkpoints, but .*2_fast_rcnn.* not finish"):
        train(compose(f"run_dir={run_dir}", "resume=auto"))
    shutil.copytree(whole / "2_fast_rcnn", run_dir / "2_fast_rcnn")
    content = load_checkpoint(last(run_dir, "2_fast_rcnn"))
    name = next(name for name in content["model"] if name.endswith("running_mean"))
    value = content["model"][name]
    value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(torch.inf))
    save_checkpoint(last(run_dir, "2_fast_rcnn"), content)
    with pytest.raises(ValueError, match=f"differ in {name}"):
        train(compose(f"run_dir={run_dir}", "resume=auto"))
    assert not (run_dir / "metrics.json").exists()


def test_equality_is_of_bits(tmp_path: Path) -> None:
    content = {"format": 1, "config": "", "class_names": [], "category_ids": [], "step": 1}
    paths = [tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"]
    for path, value in zip(paths, (0.0, -0.0, 0.0), strict=True):
        tensors = {"backbone.weight": torch.tensor([value]), "rpn.bias": torch.rand(2)}
        save_checkpoint(path, content | {"model": tensors})
    assert check_shared([paths[0], paths[2]]) == 1
    with pytest.raises(ValueError, match=r"b\.pt and .*a\.pt differ in backbone\.weight"):
        check_shared(paths)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=elsewhere.pt"], "goes on with run_dir=FOLDER resume=auto"),
        (["freeze=[backbone]"], "sets init and freeze itself"),
        (["init.backbone=elsewhere.pt"], "sets init and freeze itself"),
        (["+training.stages.mask.seed=1"], "the stages are rpn and fast_rcnn"),
        (["+training.stages.rpn.seed=1"], "stages may differ in"),
        (["+training.stages.rpn.model.backbone.norm=gn"], "set it for all stages"),
        (["+training.stages.rpn.model.box_branch.box_weight=2"], "this one's own are rpn"),
        (["model.box_branch.pooler.strides=[8,16]"], "box_branch"),  # found before stage 1
    ],
)
def test_impossible_settings_are_refused(overrides, message, compose, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        train(compose(f"run_dir={tmp_path / 'run'}", *overrides))
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_of_a_stage_is_refused(compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigKeyError, match="Key 'rate' is not in struct"):
        train(compose(f"run_dir={tmp_path / 'run'}", "+training.stages.rpn.optimizer.rate=1"))


def test_other_models_and_used_folders_are_refused(compose, compose_tiny, whole, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"model is detector\.rcnn\.MaskRCNN; choose"):
        train(compose_tiny("training=alternating", f"run_dir={tmp_path / 'run'}"))
    copy_until(whole, tmp_path / "begun", "1_rpn")
    with pytest.raises(ValueError, match="already holds stages"):
        train(compose(f"run_dir={tmp_path / 'begun'}"))


def test_without_a_folder_the_newest_begun_one_goes_on(
    whole, compose, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_until(whole, Path("runs/shapes/2026-01-01"), "4_fast_rcnn")
    copy_until(whole, Path("runs/shapes/2026-01-02"), "4_fast_rcnn")
    train(compose("name=shapes", "resume=auto"))
    assert [path.name for path in Path("runs/shapes").glob("*") if last(path).exists()] == [
        "2026-01-02"
    ]


ARRANGEMENTS = {
    "faster_rcnn_zf": "zf",
    "faster_rcnn_vgg16": "vgg16",
    "faster_rcnn_c4": "resnet50_c4",
    "faster_rcnn_dc5": "resnet50_dc5",
    "faster_rcnn_fpn": "resnet50_fpn",
}


@pytest.mark.parametrize("model", ARRANGEMENTS)
def test_every_arrangement_comes_apart_into_stages(model: str, compose_tool, tmp_path) -> None:
    """The parts of stage 3's RPN and stage 4's Fast R-CNN are those of the Faster R-CNN."""
    choice = ("~experiment", f"model={model}", f"backbone={ARRANGEMENTS[model]}", "num_classes=3")
    own = "+training.stages.fast_rcnn.model.roi_sampler.num_samples=48"
    cfg, settings = split_settings(compose_tool("train", *choice, "training=alternating", own))
    names, run = [], RunDirectory(tmp_path)
    with torch.device("meta"):
        united = build(cfg.model)
        for stage in STAGES:
            part = build(stage_config(cfg, settings[stage.kind], stage, run).model)
            names.append(set(part.state_dict()))
            if stage.kind == "fast_rcnn":
                assert part.roi_sampler.num_samples == united.roi_sampler.num_samples == 48
    assert names[0] == names[2] and names[1] == names[3]
    assert names[2] | names[3] == set(united.state_dict())
    assert {name.partition(".")[0] for name in names[2] & names[3]} == {"backbone"}


def test_a_single_level_network_is_trained(shapes_root, compose_tool, tmp_path: Path) -> None:
    """ZF as in the paper, with smaller anchors and layers."""
    run_dir = tmp_path / "zf"
    train(
        compose_tool(
            "train",
            *("~experiment", "training=alternating", "model=faster_rcnn_zf", "backbone=zf"),
            *("data=shapes", "augment=small", "optimizer=adamw", f"data.root={shapes_root}"),
            *("data.prepare.num_train=12", "data.prepare.num_val=4", "data.batch_size=2"),
            *("model.rpn.anchors.sizes=[[16,32,64]]", "model.box_branch.head.width=16"),
            *("model.backbone.freeze_at=0", "runtime.precision=float32", f"run_dir={run_dir}"),
            *("training.max_steps=1", "logging.pictures=0"),
        )
    )
    assert type(load(run_dir).model) is FasterRCNN
    shared = weights(run_dir, "2_fast_rcnn", "backbone")
    assert differing(shared, weights(run_dir, "", "backbone")) == []


def test_proposals_are_made_with_the_numbers_of_training_and_of_evaluation(
    compose_tool, monkeypatch, tmp_path: Path
) -> None:
    """The paper, section 3.3: Fast R-CNN is trained on 2000 proposals and tested on 300."""
    cfg = compose_tool("train", "experiment=faster_rcnn_zf_voc07_alternating")
    cfg, _ = alternating.split_settings(cfg)
    asked = {}
    monkeypatch.setattr(alternating, "propose", lambda config: asked.update({config.split: config}))
    checkpoint = tmp_path / "1_rpn" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    for split in ("train", "val"):
        alternating.export_proposals(
            cfg, "1_rpn", split, RunDirectory(tmp_path), Console(file=io.StringIO())
        )
    assert (asked["train"].layer, asked["train"].num_proposals) == ("train_proposals", 2000)
    assert (asked["val"].layer, asked["val"].num_proposals) == ("test_proposals", 300)
    # Before NMS, by the Python code's configuration.
    assert cfg.model.rpn.train_proposals.pre_nms_top_n == 12000
    assert cfg.model.rpn.test_proposals.pre_nms_top_n == 6000
