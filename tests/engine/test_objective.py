from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.objective import EarlyStopping, Objective, choose_objective
from tests.engine.toy_training import toy_config

MEASURED = (True, True, [1, 10, 100], "coco")  # a validation loss, masks


def test_losses_should_fall_and_precisions_rise() -> None:
    precision, loss = Objective("box", "AP"), Objective("val", "loss", lower_is_better=True)
    assert precision.improves(0.5, 0.4) and not precision.improves(0.4, 0.4)
    assert loss.improves(0.4, 0.5) and not loss.improves(0.5, 0.5)
    assert loss.improves(0.3, 0.5, by=0.1) and not loss.improves(0.45, 0.5, by=0.1)
    assert precision.improves(0.0, None) and not loss.improves(float("nan"), None)
    assert precision.value({"box": {"AP": 0.25}}) == 0.25


def test_objectives_are_chosen_by_name() -> None:
    assert choose_objective("x", None, *MEASURED) == Objective("mask", "AP")
    assert choose_objective("x", "box.AP50", *MEASURED) == Objective("box", "AP50")
    assert choose_objective("x", "val.loss", *MEASURED) == Objective("val", "loss", True)
    with pytest.raises(ValueError, match=r"checkpoint\.metric=val\.loss needs evaluation\.loss"):
        choose_objective("checkpoint.metric", "val.loss", False, *MEASURED[1:])
    with pytest.raises(ValueError, match=r"early_stopping\.metric=AP is not known.*or val\.loss"):
        choose_objective("training.early_stopping.metric", "AP", *MEASURED)


def test_patience_is_counted_in_evaluations_without_an_improvement() -> None:
    early = EarlyStopping(Objective("val", "loss", True), patience=2, min_delta=0.1)
    over = []
    for loss in (3.0, 2.0, 1.95, 1.85, 1.8, 1.84):
        early.update({"val": {"loss": loss}})
        over.append(early.is_over)
    assert over == [False, False, False, False, False, True]
    assert str(early) == "val.loss has not improved on 1.85 in 2 evaluations"
    other = EarlyStopping(early.objective, patience=3, min_delta=0.1)
    other.load_state_dict(early.state_dict())
    assert not other.is_over
    other.update({"val": {"loss": 1.9}})
    assert other.is_over


def test_without_patience_there_is_none_and_bad_numbers_are_refused() -> None:
    settings = OmegaConf.create({"patience": None, "metric": None, "min_delta": 0.0})
    assert EarlyStopping.of(settings, *MEASURED) is None
    for patience, min_delta in ((0, 0.0), (1, -0.1)):
        with pytest.raises(ValueError, match=f"patience={patience} and min_delta={min_delta}"):
            EarlyStopping(Objective("box", "AP"), patience, min_delta)


def test_a_training_stops_early_and_stays_so_when_resumed(
    shapes_root: Path, tmp_path: Path, capsys
) -> None:
    """Without a learning rate nothing gets better: the first of three evaluations is the best."""
    overrides = (
        "training.max_steps=50",
        "optimizer.lr=0.0",
        "evaluation.every=2",
        "evaluation.loss=true",
        "checkpoint.metric=val.loss",
        "training.early_stopping.patience=2",
        "training.early_stopping.metric=val.loss",
        "training.early_stopping.min_delta=0.5",
    )
    metrics = train(toy_config(shapes_root, tmp_path, *overrides))
    assert "stopping early: val.loss has not improved on" in capsys.readouterr().out
    last = load_checkpoint(tmp_path)
    assert last["step"] == last["evaluation"]["step"] == 6
    assert last["early_stopping"]["waited"] == 2
    assert (
        last["best_of"] == "val.loss"
        and last["best"]
        == load_checkpoint(tmp_path / "checkpoints" / "best.pt")["evaluation"]["metrics"]["val"][
            "loss"
        ]
    )
    again = train(toy_config(shapes_root, tmp_path, *overrides, "resume=auto"))
    assert again == metrics and load_checkpoint(tmp_path)["step"] == 6
