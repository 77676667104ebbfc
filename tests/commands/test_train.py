import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.loss_window import NonFiniteLoss
from detector.rcnn import FasterRCNN, MaskRCNN


def assert_same_training(one: Path, other: Path) -> None:
    """Weights, their average, momenta and metrics are equal bit for bit."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    for key in ("step", "loader", "class_names", "best", "evaluation"):
        assert a[key] == b[key], key
    for key in ("model", "trained_model"):
        assert (key in a) == (key in b)
        for name, value in a.get(key, {}).items():
            assert torch.equal(value, b[key][name]), name
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    for parameter, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][parameter][name]), name


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Calls ``action(losses)`` in the ``step``-th forward pass; what it returns are the losses."""
    forward, calls = FasterRCNN.forward, []

    def counted(self, *arguments):
        calls.append(None)
        losses = forward(self, *arguments)
        return action(losses) if len(calls) == step else losses

    monkeypatch.setattr(FasterRCNN, "forward", counted)


def test_the_run_directory_holds_everything(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["num_classes"] == 5 and "${" not in (trained / "config.yaml").read_text()

    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics) == {"box", "mask", "box_errors", "mask_errors", "per_class"}
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(metrics["mask"])
    names = {f"{kind}_{name}" for kind in ("box", "mask") for name in ("AP", "threshold", "F1")}
    assert set(next(iter(metrics["per_class"].values()))) == names

    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("training", 2),
        ("evaluation", 3),
        ("training", 4),
        ("training", 6),
        ("evaluation", 6),
    ]
    assert records[-1]["box"] == metrics["box"]
    names = ("loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box", "loss_mask")
    assert records[0]["loss"] == pytest.approx(sum(records[0][name] for name in names), rel=1e-5)

    events = EventAccumulator(str(trained / "tensorboard")).Reload().Tags()
    scalars = {"training/loss", "training/lr", "box/AP", "mask/APs", "mask_AP_of_classes/circle"}
    assert scalars | {f"seconds/{part}" for part in ("data", "forward", "backward")} <= set(
        events["scalars"]
    )
    [picture] = (trained / "pictures").glob("*.jpg")
    assert events["images"] == [f"predictions/{picture.stem}"]


def test_checkpoints_hold_what_their_users_need(trained: Path) -> None:
    last = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    best = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    assert last["step"] == 6 and best["step"] in (3, 6)
    assert last["class_names"] == ["circle", "triangle", "square", "star", "cross"]
    assert best["evaluation"]["metrics"]["mask"]["AP"] == last["best"]
    # The average of the weights is what was evaluated and what the file is used for.
    moved = [n for n, v in last["model"].items() if not torch.equal(v, last["trained_model"][n])]
    assert moved


def test_stopping_and_resuming_equals_going_on_bit_for_bit(
    compose_tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    overrides = ["schedule.warmup_steps=3", "logging.pictures=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(compose_tiny(*overrides, f"run_dir={whole}"))

    def interrupt(losses):
        os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        at_step(patch, 3, interrupt)
        train(compose_tiny(*overrides, f"run_dir={parts}"))
    assert stopped.value.code == 143
    said = capsys.readouterr().out
    assert "saved step 3" in said and f"run_dir={parts} resume=auto" in said
    assert not (parts / "metrics.json").exists()
    assert load_checkpoint(parts)["step"] == 3

    assert train(compose_tiny(*overrides, f"run_dir={parts}", "resume=auto")) == expected
    assert_same_training(whole, parts)


def test_a_finished_training_goes_on_as_if_it_had_been_longer(compose_tiny, tmp_path: Path) -> None:
    # Milestones are steps, so a longer training begins exactly as a shorter one does.
    recipe = ["optimizer=adamw", "schedule=multistep", "schedule.milestones=[4]"]
    recipe += ["logging.pictures=0", "training.ema_decay=null"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(compose_tiny(*recipe, f"run_dir={whole}", "training.max_steps=6"))
    train(compose_tiny(*recipe, f"run_dir={parts}", "training.max_steps=3"))
    train(compose_tiny(*recipe, f"resume={parts}", "training.max_steps=6"))
    assert_same_training(whole, parts)


def test_evaluating_drawing_and_workers_do_not_change_the_training(
    compose_tiny, tmp_path: Path, trained: Path
) -> None:
    other = tmp_path / "other"
    train(
        compose_tiny(
            f"run_dir={other}", "data.num_workers=1", "logging.pictures=0", "logging.every=5"
        )
    )
    a, b = load_checkpoint(trained), load_checkpoint(other)
    assert all(torch.equal(v, b["trained_model"][n]) for n, v in a["trained_model"].items())


def test_ctrl_c_during_the_last_evaluation_loses_nothing(
    compose_tiny, tmp_path: Path, monkeypatch
) -> None:
    run, detect = tmp_path / "run", MaskRCNN.detect

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return detect(self, *arguments)

    overrides = [f"run_dir={run}", "training.max_steps=2"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(MaskRCNN, "detect", interrupted)
        train(compose_tiny(*overrides))
    assert stopped.value.code == 130
    assert load_checkpoint(run)["step"] == 2 and load_checkpoint(run)["evaluation"] is None
    # Resumed in a folder of its own, it gets a best.pt there too.
    other = tmp_path / "other"
    train(compose_tiny(f"run_dir={other}", "training.max_steps=2", f"resume={run}"))
    assert load_checkpoint(other / "checkpoints" / "best.pt")["evaluation"]["step"] == 2
    train(compose_tiny(*overrides, "resume=auto"))
    assert load_checkpoint(run)["evaluation"]["step"] == 2
    assert (run / "metrics.json").exists()


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(
    compose_tiny, tmp_path: Path, monkeypatch
) -> None:
    def diverge(losses):
        return {**losses, "loss_box": losses["loss_box"] * float("nan")}

    at_step(monkeypatch, 4, diverge)
    # Step 4 is both saved and logged; neither may put bad weights into last.pt.
    config = compose_tiny(f"run_dir={tmp_path}", "checkpoint.every=2", "logging.every=100")
    with pytest.raises(NonFiniteLoss, match=r"step 4: .*loss_box nan.*image ids \[\d+, \d+\]"):
        train(config)
    saved = load_checkpoint(tmp_path)
    assert saved["step"] == 2
    assert all(v.isfinite().all() for v in saved["trained_model"].values())


def test_a_new_training_does_not_overwrite_another(compose_tiny, trained: Path) -> None:
    with pytest.raises(ValueError, match="already holds checkpoints"):
        train(compose_tiny(f"run_dir={trained}"))


def test_resuming_with_other_classes_is_refused(
    compose_tiny, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    for split in ("train", "val"):
        file = json.loads((shapes_root / "annotations" / f"instances_{split}.json").read_text())
        file["categories"] = [c for c in file["categories"] if c["id"] != 1]
        file["annotations"] = [a for a in file["annotations"] if a["category_id"] != 1]
        (tmp_path / f"{split}.json").write_text(json.dumps(file))
    config = compose_tiny(
        f"resume={trained}",
        f"run_dir={tmp_path / 'run'}",
        f"data.train.annotations={tmp_path / 'train.json'}",
        f"data.val.annotations={tmp_path / 'val.json'}",
    )
    with pytest.raises(ValueError, match=r"last\.pt was trained on 5 classes .* has 4"):
        train(config)


def test_resuming_another_model_is_refused(compose_tiny, trained: Path, tmp_path: Path) -> None:
    config = compose_tiny(
        f"resume={trained}", f"run_dir={tmp_path}", "model.box_branch.head.width=16"
    )
    with pytest.raises(ValueError, match=r"last\.pt holds another model.*of another shape"):
        train(config)


def test_resuming_beyond_the_end_is_refused(compose_tiny, trained: Path, tmp_path: Path) -> None:
    config = compose_tiny(f"resume={trained}", f"run_dir={tmp_path}", "training.max_steps=4")
    with pytest.raises(ValueError, match=r"finished 6 steps.*max_steps=4"):
        train(config)


def test_a_wrong_number_of_classes_is_refused(compose_tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_classes=7, but .* has 5"):
        train(compose_tiny(f"run_dir={tmp_path}", "num_classes=7"))


def test_boxes_alone_train_faster_rcnn_and_are_refused_for_mask_rcnn(
    compose_tiny, tmp_path: Path, shapes_root: Path
) -> None:
    overrides = [f"run_dir={tmp_path / 'run'}", "training.max_steps=2"]
    for split in ("train", "val"):
        file = json.loads((shapes_root / "annotations" / f"instances_{split}.json").read_text())
        for annotation in file["annotations"]:
            if not annotation["iscrowd"]:
                del annotation["segmentation"]
        (tmp_path / f"{split}.json").write_text(json.dumps(file))
        overrides.append(f"data.{split}.annotations={tmp_path / f'{split}.json'}")
    with pytest.raises(ValueError, match=r"train\.json: annotation \d+ has no segmentation"):
        train(compose_tiny(*overrides))
    metrics = train(compose_tiny("model=faster_rcnn_fpn", *overrides))
    assert set(metrics) == {"box", "box_errors", "per_class"}


def test_a_missing_weights_file_is_named_before_the_data_is_read(
    compose_tiny, tmp_path: Path
) -> None:
    nowhere = ("data.prepare=null", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such weights file"):
        train(compose_tiny(*nowhere, "model.backbone.weights=absent.pth"))


def test_a_frozen_random_trunk_is_warned_of(compose_tiny, tmp_path: Path, capsys) -> None:
    train(compose_tiny(f"run_dir={tmp_path}", "training.max_steps=1", "model.backbone.freeze_at=1"))
    assert "warning: the trunk is random" in capsys.readouterr().out


def test_images_without_objects_train(compose_tiny, tmp_path: Path, shapes_root: Path) -> None:
    file = json.loads((shapes_root / "annotations" / "instances_train.json").read_text())
    lonely = file["annotations"][0]
    file["annotations"] = [lonely]  # most batches of two have no object at all
    (tmp_path / "train.json").write_text(json.dumps(file))
    train(
        compose_tiny(
            f"run_dir={tmp_path / 'run'}", f"data.train.annotations={tmp_path / 'train.json'}"
        )
    )
    assert load_checkpoint(tmp_path / "run")["step"] == 6
