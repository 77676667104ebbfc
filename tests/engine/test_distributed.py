"""Two ranks against one, and what happens when one of them fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from detector.commands.replay import load_replay
from detector.engine.checkpoint import load_checkpoint
from detector.engine.data_parallel import DataParallel
from detector.engine.distributed import Ranks, check_alone, open_ranks, place_in_environment
from detector.engine.runtime import Runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that :mod:`tests.engine.rank_runs` leaves."""
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, "-m", "tests.engine.rank_runs", str(folder / "data"), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def ends(runs: Path, name: str) -> list[dict[str, Any]]:
    """How each rank ended."""
    return json.loads((runs / f"{name}.json").read_text())


def codes(runs: Path, name: str) -> list[int]:
    return [end["code"] for end in ends(runs, name)]


def lines(runs: Path, name: str) -> list[dict[str, Any]]:
    text = (runs / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_weights_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Sums in another order: float32 rounds at 6e-8, some of it adds up in four steps."""
    for key in ("model", "trained_model"):
        assert one[key].keys() == other[key].keys()
        for name, value in one[key].items():
            torch.testing.assert_close(other[key][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["two", "parts", "compiled"])
def test_two_ranks_of_two_images_are_one_of_four(runs: Path, name: str) -> None:
    """Not all anchors and RoIs are taken: the same ones are drawn. ``parts`` accumulates too."""
    assert ("compiling normalizer" in (runs / f"{name}.0.stdout").read_text()) == (
        name == "compiled"
    )
    assert not any("could not be compiled" in end["said"] for end in ends(runs, name))
    assert codes(runs, "one") == [0] and codes(runs, name) == [0, 0]
    one, other = lines(runs, "one"), lines(runs, name)
    assert [(r["kind"], r["step"]) for r in one] == [(r["kind"], r["step"]) for r in other]
    for a, b in zip(one, other, strict=True):
        if a["kind"] == "training":
            names = [key for key in a if key.startswith("loss")] + ["gradient_norm", "lr", "epoch"]
            assert {key: b[key] for key in names} == pytest.approx(
                {key: a[key] for key in names}, rel=1e-5
            )
    first, second = load_checkpoint(runs / "one"), load_checkpoint(runs / name)
    assert_weights_close(first, second)
    assert first["loader"]["epoch"] == second["loader"]["epoch"] == 1


@pytest.mark.parametrize("name", ["one", "two", "parts"])
def test_histograms_are_of_the_gradient_of_all_ranks(runs: Path, name: str) -> None:
    """Its norm, before clipping, is logged; ``parts`` accumulates too."""
    norms = {r["step"]: r["gradient_norm"] for r in lines(runs, name) if r["kind"] == "training"}
    events = EventAccumulator(str(runs / name / "tensorboard"), {"histograms": 0}).Reload()
    squares = dict.fromkeys((2, 4), 0.0)
    for tag in events.Tags()["histograms"]:
        for event in events.Histograms(tag) if tag.startswith("gradients_") else ():
            squares[event.step] += event.histogram_value.sum_squares
    for step, square in squares.items():
        assert square**0.5 == pytest.approx(min(norms[step], 10.0), rel=1e-4)


def test_sharded_evaluation_finds_what_one_rank_finds(runs: Path) -> None:
    """Five images in batches of one: a rank has one more than the other."""
    folders = (runs / "still_one", runs / "still_two")
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert one["box"]["AP"] > 0 and one["val"]["loss_mask"] > 0
    assert two.pop("val") == pytest.approx(one.pop("val"), rel=1e-12)
    assert two == one


def test_the_tool_writes_the_same_on_two_ranks(runs: Path) -> None:
    assert codes(runs, "evaluated_1") == [0] and codes(runs, "evaluated_2") == [0, 0]
    one, two = runs / "evaluated_1", runs / "evaluated_2"
    assert (one / "detections.json").stat().st_size > 1000
    for name in ("evaluation.json", "detections.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (runs / "evaluated_2.1.stdout").read_text() == ""


def test_batch_statistics_are_the_mean_of_the_ranks(runs: Path) -> None:
    assert codes(runs, "statistics") == [0, 0]
    before = [torch.load(runs / f"statistics_{rank}_3.pt") for rank in (0, 1)]
    assert before[0] and all(torch.equal(before[0][name], before[1][name]) for name in before[0])
    start = torch.load(runs / "statistics_0_0.pt")
    assert all(not torch.equal(start[name], before[0][name]) for name in start)


def test_a_signal_to_one_stops_all_at_the_same_step(runs: Path) -> None:
    assert codes(runs, "stopped") == [143, 143]
    assert lines(runs, "stopped")[1]["step"] == 2
    assert "stopped by SIGTERM; saved step 2" in (runs / "stopped.0.stdout").read_text()
    # On one rank, it goes on to where one rank alone comes.
    assert codes(runs, "stopped_again") == [0]
    assert "after step 2" in (runs / "stopped_again.0.stdout").read_text()
    assert_weights_close(load_checkpoint(runs / "one"), load_checkpoint(runs / "stopped"))


def test_a_rank_that_is_killed_is_named_and_training_goes_on_exactly(runs: Path) -> None:
    first, second = ends(runs, "killed")
    assert second["code"] == -9 and first["code"] == 1
    assert first["seconds"] - second["seconds"] < 60
    assert "rank 1 (" in first["said"] and "did not reach step 3" in first["said"]
    assert "resume=auto" in first["said"]
    assert codes(runs, "killed_again") == [0, 0]
    assert "after step 2" in (runs / "killed_again.0.stdout").read_text()
    whole, parts = load_checkpoint(runs / "two"), load_checkpoint(runs / "killed")
    for name, value in whole["trained_model"].items():
        assert torch.equal(parts["trained_model"][name], value), name


def test_a_rank_that_lags_is_named(runs: Path) -> None:
    """It sleeps in its third batch; the harness kills it after the other has ended.

    On a machine that is busy enough it may be late for something else before.
    """
    first, second = ends(runs, "late")
    assert first["code"] == 1 and second["code"] == -9
    assert re.search(r"rank 1 \(.*\) did not reach (step|the end of the eval)", first["said"])
    assert "distributed.timeout=8 s" in first["said"]


def test_what_has_gone_wrong_on_a_rank_is_told_by_the_others(runs: Path) -> None:
    first, second = ends(runs, "broken")
    assert (first["code"], second["code"]) == (1, 2)
    assert "apples.jpg is truncated" in second["said"]
    assert "did not reach step 3: ValueError: apples.jpg is truncated" in first["said"]


def test_a_mistake_of_the_user_is_told_once(runs: Path) -> None:
    first, second = ends(runs, "refused")
    assert (first["code"], second["code"]) == (2, 2)
    assert "data.batch_size=3" in first["said"] and "multiple of 2" in first["said"]
    assert second["said"] == ""


def test_a_loss_that_is_not_finite_ends_all_with_the_whole_batch(runs: Path) -> None:
    first, second = ends(runs, "not_finite")
    assert (first["code"], second["code"]) == (2, 2)
    assert "non-finite loss in step 3" in first["said"] and second["said"] == ""
    content = load_replay(runs / "not_finite")
    ids = [batch.image_ids.tolist() for batch in content["batches"]]
    assert [len(part) for part in ids] == [2, 2] and len({*ids[0], *ids[1]}) == 4
    assert load_checkpoint(runs / "not_finite")["step"] == 2


def test_alone_nothing_is_asked_of_others() -> None:
    with open_ranks(timeout=1, on_gpu=False) as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first, str(ranks)) == (0, 1, True, "")
        assert ranks.exchange("a") == ["a"] and ranks.on_first(lambda: 3) == 3
        assert ranks.in_turn(lambda: 4) == 4 and ranks.highest(0.5) == 0.5
        assert ranks.gather(1) == [1]
    model = nn.Linear(1, 1)
    assert DataParallel(model).model is model
    runtime = Runtime("cpu")
    assert Ranks().place(runtime) is runtime


def test_places_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in_environment().size == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE=4"):
        place_in_environment()
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    place = place_in_environment()
    assert (place.rank, place.size, place.local_rank) == (3, 4, 1)
    monkeypatch.setenv("RANK", "2")
    assert place_in_environment().rank == 2
    with pytest.raises(ValueError, match="training=alternating is not for 4 ranks"):
        check_alone("training=alternating")
