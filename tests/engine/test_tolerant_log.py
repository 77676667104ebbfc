"""A log that meets a full disk, and finds room again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.metric_log import MetricLog
from detector.engine.pictures import Comparisons
from detector.engine.run_directory import RunDirectory
from detector.engine.tolerant_log import TolerantLog
from tests.engine.toy_training import toy_config

FULL = OSError(28, "No space left on device")


def steps_of(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_what_is_lost_is_said_once_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, original = [], MetricLog.training
    log = TolerantLog(RunDirectory(tmp_path), 0, 0, said.append)
    log.training(1, {"loss": 1.0})

    def refuse(self, *arguments):
        self._lines.write('{"kind": "training", "st')  # half of a line is there already
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "training", refuse)
        log.training(2, {"loss": 2.0})
        log.training(3, {"loss": 3.0})
    assert MetricLog.training is original
    log.training(4, {"loss": 4.0})
    log.close()
    [warning] = said
    assert "metrics.jsonl" in warning and "No space left" in warning and "goes on" in warning
    assert steps_of(tmp_path) == [1, 4]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 4]


def test_a_training_goes_on_without_its_log_and_pictures(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refuse(*arguments, **options):
        raise FULL

    for owner, name in ((MetricLog, "training"), (MetricLog, "evaluation"), (Comparisons, "draw")):
        monkeypatch.setattr(owner, name, refuse)
    train(toy_config(shapes_root, tmp_path, "training.max_steps=2", "logging.every=1"))
    said = capsys.readouterr().out
    assert said.count("could not be written") == 2 and "pictures of step 2" in said
    assert load_checkpoint(tmp_path)["step"] == 2 and (tmp_path / "metrics.json").is_file()


def test_a_log_that_cannot_be_opened_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        TolerantLog(RunDirectory(tmp_path), 0, 0, print)
