"""The trace of a tiny training and of an evaluation, and the table beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from detector.commands.evaluate import evaluate
from detector.commands.train import train
from detector.engine.profiler import StepProfiler, add_stages
from tests.engine.toy_training import toy_config


def events(path: Path, name: str) -> list[dict]:
    found = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("ph") == "X"]
    return [event for event in found if re.fullmatch(name, event["name"])]


@pytest.fixture(scope="module")
def profiled(shapes_root: Path, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "profiled"
    chosen = ("profiler.steps=2", "profiler.start=3", "profiler.memory=true")
    train(toy_config(shapes_root, run, *chosen))
    return run


def test_the_trace_holds_the_steps_and_their_stages(profiled: Path) -> None:
    [path] = (profiled / "profile").iterdir()
    assert path.name == "step_00000004_to_00000005.pt.trace.json"
    steps = events(path, r"step \d+")
    assert sorted(event["name"] for event in steps) == ["step 4", "step 5"]
    for step in steps:
        end = step["ts"] + step["dur"]
        inside = [
            event
            for event in events(path, "data|forward|backward|update")
            if step["ts"] - 100 <= event["ts"] and event["ts"] + event["dur"] <= end + 100
        ]
        assert {event["name"] for event in inside} == {"data", "forward", "backward", "update"}
        assert {event["tid"] for event in inside} == {step["tid"]}
    # Stages lie where their operations do, to microseconds.
    forwards = [e for e in events(path, "forward") if e["dur"] > 1000]
    convolutions = events(path, r"aten::conv2d")
    assert len(forwards) >= 2 and convolutions
    for event in convolutions:
        assert any(f["ts"] <= event["ts"] <= f["ts"] + f["dur"] for f in forwards)


def test_laps_are_moved_to_the_clock_of_the_trace() -> None:
    clock = {"name": "detector: clock", "ts": 5e6, "dur": 10.0, "pid": 7, "tid": 8}
    trace = {"traceEvents": [clock]}
    add_stages(trace, [("forward", 100.5, 100.75)], host_clock=100.0)
    [_, added] = trace["traceEvents"]
    assert (added["ts"], added["dur"], added["pid"], added["tid"]) == (5500010.0, 250000.0, 7, 8)


def test_profiling_changes_nothing_that_is_trained(
    profiled: Path, shapes_root: Path, tmp_path: Path
) -> None:
    train(toy_config(shapes_root, tmp_path))
    one, other = (torch.load(run / "checkpoints" / "last.pt") for run in (profiled, tmp_path))
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert not (tmp_path / "profile").exists()


def test_the_table_has_the_operations_that_take_most(tmp_path: Path) -> None:
    said = []
    device = torch.device("cpu")
    with StepProfiler(tmp_path, device, 1, 1, True, said.append) as profiler:
        for _ in profiler.over(range(3)):
            torch.ones(300, 300) @ torch.ones(300, 300)
    message, table = said
    assert "profiled step 2 to 2" in message and str(tmp_path) in message
    names = list(table.columns[0].cells)
    shares = [float(cell.rstrip("%")) for cell in table.columns[3].cells]
    assert "aten::mm" in names and "step 2" not in names
    assert shares == sorted(shares, reverse=True) and 99 < sum(shares) <= 100.5
    assert "aten::empty" in names and list(table.columns[4].cells)[names.index("aten::empty")] == (
        f"{2 * 300 * 300 * 4 / 2**20:.1f}"  # the product is mm's own
    )


def test_evaluation_is_profiled_by_batches(trained: Path, compose_tool, tmp_path: Path) -> None:
    chosen = ("profiler.steps=1", "profiler.start=1", f"output={tmp_path}")
    evaluate(compose_tool("evaluate", f"checkpoint={trained}", *chosen))
    [path] = (tmp_path / "profile").iterdir()
    assert len(events(path, "batch 2")) == 1 and events(path, "aten::conv2d")


def test_a_start_that_is_never_reached_is_said(tmp_path: Path) -> None:
    said = []
    with StepProfiler(tmp_path, torch.device("cpu"), 2, 9, say=said.append) as profiler:
        list(profiler.over(range(4)))
    assert "profiler.start=9" in said[0] and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"profiler\.steps=-1"):
        StepProfiler(tmp_path, torch.device("cpu"), -1)


def test_a_training_that_ends_sooner_leaves_the_trace_so_far(tmp_path: Path) -> None:
    said = []
    with StepProfiler(tmp_path, torch.device("cpu"), 5, 1, say=said.append) as profiler:
        list(profiler.over(range(3)))
    assert "profiled step 2 to 3" in said[0]
