"""What the benchmark reports, with rows of which the answer is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import cli
from detector.benchmark import measure, rows, run
from detector.benchmark.box_rows import box_rows
from detector.benchmark.comparison import Comparison, Row, compare
from detector.benchmark.inputs import HEIGHT, WIDTH, crowded_boxes, pyramid_anchors, random_boxes

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the tool with the words of a command line; only one row, of no work, is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.0)
    row = Comparison("double", "a number", lambda: 4, {"by hand": lambda: 2 + 2})
    monkeypatch.setattr(rows, "FAMILIES", {("double",): lambda device: [row]})

    def benchmark(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
        cli.run_tool("benchmark")

    return benchmark


def test_a_report_says_what_was_measured_on_what(benchmark, tmp_path, capsys):
    benchmark("device=cpu", "repeats=1", "json=report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["command"] == "benchmark.py device=cpu repeats=1 json=report.json"
    assert {"date", "cpu", "cores", "threads", "torch", "torchvision"} <= set(report)
    (row,) = report["rows"]
    assert (row["op"], row["inputs"], row["other"]) == ("double", "a number", "by hand")
    assert row["ratio"] == row["their_seconds"] / row["our_seconds"]
    assert report["copy_bytes_per_second"] > 0
    assert "by hand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("what=op", "kernels, data, evaluate can be measured"),
        ("device=tpu", "auto, cpu or cuda"),
        ("repeats=0", "at least one"),
        ("only=warp", "no op has this in its name"),
        ("what=data only=lodaing", "index or loading can stand alone"),
        ("what=data only=loading images=somewhere", "give both"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmark, capsys, word, message):
    with pytest.raises(SystemExit) as exit:
        benchmark("device=cpu", "repeats=1", *word.split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.choose_device("auto") == CPU
    with pytest.raises(ValueError, match="no GPU"):
        run.choose_device("cuda")


def test_the_median_is_of_one_call_and_the_sides_take_turns(monkeypatch):
    order, now = [], [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def side(name: str, seconds: list[float]):
        def call() -> None:
            order.append(name)
            now[0] += seconds[len([x for x in order if x == name]) - 1]

        return call

    # The first two calls prepare; an outlier does not move the median.
    sides = {"a": side("a", [9, 1, 2, 90, 3]), "b": side("b", [9, 1, 5, 5, 5])}
    assert measure.median_seconds(sides, CPU, 3) == {"a": 3, "b": 5}
    assert order == ["a", "a", "b", "b", *["a", "b"] * 3]


def test_peaks_count_tensors_and_arrays_inside_operators_too():
    def add() -> torch.Tensor:
        return torch.zeros(MIB) + torch.zeros(MIB)  # 4 MiB each, and the sum

    assert measure.peak_bytes(add, CPU) == pytest.approx(12 * MIB, rel=0.02)

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(MIB)

    assert measure.peak_bytes(one_after_the_other, CPU) == pytest.approx(4 * MIB, rel=0.02)
    assert measure.peak_bytes(lambda: np.ones(MIB), CPU) == pytest.approx(8 * MIB, rel=0.02)
    values = torch.rand(MIB)  # sorted into 4 MiB of values and 8 MiB of indices
    assert measure.peak_bytes(lambda: values.sort(), CPU) >= 12 * MIB


def test_sides_that_disagree_are_not_measured():
    def check(ours: int, theirs: int) -> None:
        assert ours == theirs

    wrong = Comparison("double", "", lambda: 4, {"by hand": lambda: 5}, check)
    with pytest.raises(AssertionError):
        compare(wrong, CPU, 1)


def test_a_ratio_above_one_means_that_ours_is_faster():
    row = Row("op", "", "theirs", 0.5, 2.0, None, None, None)
    assert row.ratio == 4


def test_inputs_are_those_of_an_image():
    boxes = random_boxes(2, 500)
    for found in (boxes, random_boxes(40, seed=3)):
        assert (found[..., 2:] - found[..., :2]).min() >= 7.99
        assert found.min() >= 0
        assert found[..., 2].max() <= WIDTH + 1e-3 and found[..., 3].max() <= HEIGHT + 1e-3
    crowd = crowded_boxes(2, 300, num_objects=5)
    assert (crowd[..., 2:] > crowd[..., :2]).all()
    assert pyramid_anchors().shape == (268569, 4)


def test_suppression_is_compared_on_inputs_that_both_sides_agree_on():
    for comparison in box_rows(CPU)[:2]:
        ours = comparison.ours()
        for side in comparison.others.values():
            comparison.check(ours, side())
        assert 0.001 < ours.float().mean() < 0.9
