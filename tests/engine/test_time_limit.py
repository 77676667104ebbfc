import json
import math
from pathlib import Path

import pytest

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.durations import parse_duration
from detector.engine.schedule import Cosine, MultiStep
from detector.engine.time_limit import MARGIN, TimeLimit
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


def test_a_training_ends_evaluated_and_saved_by_then(shapes_root: Path, tmp_path: Path) -> None:
    """Of 100000 steps; its clock is the steps it has taken, so the test does not depend on time."""
    overrides = ("training.max_steps=100000", "training.time_limit=7s", "logging.every=1")
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        began = TimeLimit.start_step

        def tick(limit: TimeLimit) -> None:
            began(limit)
            clock.now += 0.5

        patch.setattr("detector.commands.train.time.monotonic", clock)
        patch.setattr(TimeLimit.__init__, "__defaults__", (0.0, 0.0, None, clock))
        patch.setattr(TimeLimit, "start_step", tick)
        train(toy_config(shapes_root, tmp_path, *overrides))
    saved = load_checkpoint(tmp_path)
    assert saved["evaluation"]["step"] == saved["step"] > 1
    # Two steps' time for the evaluation, and the last step itself.
    reserve = MARGIN * 2 * 0.5
    assert saved["seconds"] == saved["step"] * 0.5 <= 7 - reserve < saved["seconds"] + 2 * 0.5
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "training"]
    assert rates[-1] < 0.05 * max(rates)
    assert (tmp_path / "metrics.json").is_file()
