import json
import math
import os
import time
from functools import partial
from pathlib import Path

import pytest

import detector.commands.train
import detector.engine.checkpoint_writer
from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.durations import parse_duration
from detector.engine.pictures import Comparisons
from detector.engine.schedule import Cosine, MultiStep
from detector.engine.time_limit import (
    ENDING,
    MARGIN,
    REHEARSED_MARGIN,
    TimeLimit,
    process_began,
)
from detector.engine.training_step import TrainingStep
from detector.rcnn import FasterRCNN
from tests.engine.toy_training import toy_config


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps_within(limit: TimeLimit, clock: Clock, seconds: float) -> int:
    count = 0
    while not limit.is_over:
        limit.start_step()
        clock.now += seconds
        limit.end_step()
        count += 1
    return count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("45s", 45), ("1d2h", 93600), (90, 90), ("1.5h", 5400)],
)
def test_times_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration("training.time_limit", text) == seconds
    assert parse_duration("training.time_limit", None) is None


@pytest.mark.parametrize("text", ["half an hour", "", "30", "0m", -5, True, "5m3h"])
def test_other_words_are_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"training\.time_limit=.*30m"):
        parse_duration("training.time_limit", text)


def test_time_is_kept_for_an_evaluation_and_for_saving_as_they_were_measured() -> None:
    clock = Clock()
    limit = TimeLimit(100.0, val_steps=10, clock=clock)
    limit.start_step()
    clock.now += 2
    limit.end_step()
    assert limit.reserve == pytest.approx(MARGIN * 10 * 2)  # as long as training on as many images
    with limit.evaluating():
        clock.now += 5
    limit.saving = 1.5
    assert limit.reserve == pytest.approx(MARGIN * (5 + 2 * 1.5))
    steps_within(limit, clock, 2)
    assert limit.elapsed + limit.reserve <= 100 < limit.elapsed + 2 + 2 + limit.reserve


def test_what_was_spent_before_a_resume_counts() -> None:
    clock = Clock()
    assert TimeLimit(100.0, spent=101.0, clock=clock).is_over
    assert steps_within(TimeLimit(100.0, spent=70.0, clock=clock), clock, 10) == 2
    assert steps_within(TimeLimit(5.0, clock=clock), clock, 10) == 1  # one step at least
    assert not TimeLimit(None, clock=clock).is_over


def test_the_rate_falls_to_its_end_within_the_time() -> None:
    clock = Clock()
    limit = TimeLimit(200.0, clock=clock)
    rate = limit.pace(Cosine(10_000, warmup_steps=4, warmup_factor=0.5), 10_000)
    assert rate(0) == 0.5
    clock.now += 100
    assert rate(2) == pytest.approx(0.5 * 0.75)  # half of the cosine, and the warm-up by steps
    assert rate(50) == pytest.approx(0.5, abs=1e-6)
    clock.now += 99
    assert rate(99) == pytest.approx((1 + math.cos(math.pi * 0.995)) / 2, abs=1e-6)
    clock.now += 50
    assert rate(120) == 0
    # Where the steps come to their end before the time, they decide.
    clock.now = 1001.0
    assert rate(5000) == pytest.approx(0.5)
    drops = limit.pace(MultiStep([600, 800]), 1000)
    for second, expected in ((1119, 1.0), (1121, 0.1), (1161, 0.01)):
        clock.now = second
        assert drops(10) == pytest.approx(expected)
    schedule = MultiStep([600, 800])
    assert TimeLimit(None).pace(schedule, 1000) is schedule


def test_the_end_is_rehearsed_and_what_it_takes_concluded() -> None:
    clock = Clock()
    limit = TimeLimit(1000.0, val_steps=1, clock=clock)
    steps_within(TimeLimit(10.0, clock=clock), clock, 1)
    assert not limit.wants_rehearsal  # no step yet
    limit.start_step()
    clock.now += 1
    limit.end_step()
    assert not limit.wants_rehearsal
    clock.now = 1334.0
    assert limit.wants_rehearsal and not limit.is_over
    seen = []

    def evaluate(some) -> None:
        clock.now += 7  # data workers start
        for batch in some:
            seen.append(batch)
            clock.now += 2
        clock.now += 3  # summing up

    def draw() -> None:
        clock.now += 5

    assert limit.rehearse(range(100), 100, evaluate, draw) is None
    assert seen == [0, 1, 2, 3, 4]
    assert limit.reserve == pytest.approx(REHEARSED_MARGIN * (7 + 100 * 2 + 3 + 5))
    assert not limit.wants_rehearsal
    with limit.evaluating():  # what is known replaces what was concluded
        clock.now += 30
    assert limit.reserve == pytest.approx(MARGIN * 30)


def test_a_limit_that_cannot_be_kept_is_said() -> None:
    clock = Clock()
    limit = TimeLimit(60.0, clock=clock)
    steps_within(limit, clock, 100)

    def evaluate(some) -> None:
        for _ in some:
            clock.now += 3

    said = limit.rehearse(range(10), 10, evaluate, lambda: None)
    # 100 s for a step, two batches tried, and all ten to come.
    assert "about 30 s here" in said and "exceeded by about 76 s" in said and limit.is_over


def test_a_process_began_before_its_clock_was_looked_at(tmp_path: Path) -> None:
    now = time.monotonic()
    assert 0 <= now - process_began() < 24 * 3600
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "self").mkdir()
    (tmp_path / "uptime").write_text("1000.00 1.0\n")
    words = ["S", *["0"] * 18, str(990 * ticks), "0"]
    (tmp_path / "self" / "stat").write_text(f"42 (a) b) {' '.join(words)}\n")
    assert process_began(lambda: 500.0, tmp_path) == pytest.approx(490)
    assert process_began(lambda: 500.0, tmp_path / "nowhere") == 500


@pytest.mark.parametrize(
    "seconds",
    [
        {"step": 0.5, "batch": 0.5, "picture": 0.0, "save": 0.0},  # evaluating is as training
        {"step": 0.5, "batch": 4.0, "picture": 3.0, "save": 2.0},  # everything else is slower
        {"step": 0.3, "batch": 8.0, "picture": 0.0, "save": 0.5},
        {"step": 3.0, "batch": 0.1, "picture": 0.0, "save": 4.0},
        {"step": 0.5, "batch": 4.0, "picture": 3.0, "save": 1.0, "slower": 1.25},
    ],
)
def test_a_training_ends_evaluated_and_saved_by_then(
    seconds: dict[str, float], shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100000 steps. Its clock is moved by what is done, so the test does not depend on time.

    The last case is a machine on which, from the middle on, everything takes longer.
    """
    clock, limit = Clock(), 120
    overrides = ("training.max_steps=100000", f"training.time_limit={limit}s", "logging.every=1")

    def tick(what: str) -> None:
        late = clock.now > 1000 + limit / 2
        clock.now += seconds[what] * (seconds.get("slower", 1.0) if late else 1.0)

    def ticking(owner: object, name: str, what: str) -> None:
        original = getattr(owner, name)

        def called(*arguments, **options):
            tick(what)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, called)

    ticking(TrainingStep, "__call__", "step")
    ticking(FasterRCNN, "detect", "batch")
    ticking(Comparisons, "draw", "picture")
    ticking(detector.engine.checkpoint_writer, "save_checkpoint", "save")
    monkeypatch.setattr("detector.engine.checkpoint_writer.time.perf_counter", clock)
    monkeypatch.setattr(detector.commands.train, "TimeLimit", partial(TimeLimit, clock=clock))
    config = toy_config(shapes_root, tmp_path, *overrides, "data.val_batch_size=1")
    train(config, began=990.0)  # importing took ten seconds
    spent = clock.now - 990
    assert spent <= limit - ENDING
    assert spent > 0.6 * limit  # and it is made use of
    saved = load_checkpoint(tmp_path)
    assert saved["evaluation"]["step"] == saved["step"] > 1
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "training"]
    assert rates[-1] < 0.1 * max(rates)
    assert (tmp_path / "metrics.json").is_file()
