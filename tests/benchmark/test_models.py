"""Whole detectors beside torchvision's: both sides run, do the same work, and the report tells."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

import detector
from detector import cli
from detector.benchmark import model_rows, run, side_process, torchvision_peer
from detector.benchmark.model_rows import check_found, measure_models
from detector.benchmark.model_workload import Counts, Workload, make_workload
from detector.benchmark.side_process import ANSWERS, SideFailed, SideProcess, SideSettings, covered
from detector.config_files import find_configs

CPU = torch.device("cpu")
COUNTS = Counts(samples=16, proposals=24, detections=4)
SHAPES = [[1, 64, 96]]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return make_workload("mask_rcnn_r50_fpn", "torchvision", SHAPES, COUNTS)


@pytest.fixture
def in_this_process(monkeypatch, workload):
    """Sides without processes of their own, and one workload for all."""

    class Here:
        def __init__(self, settings: SideSettings) -> None:
            self.session = side_process._Session(settings)

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

        def ask(self, question: str):
            return ANSWERS[question](self.session)

    monkeypatch.setattr(model_rows, "SideProcess", Here)
    monkeypatch.setattr(model_rows, "matrix_peak", lambda *_: 1e12)
    monkeypatch.setattr(model_rows, "make_workload", lambda *_: workload)


def settings(**changes):
    cfg = OmegaConf.load(find_configs() / "benchmark.yaml")
    return OmegaConf.merge(cfg, {"repeats": 1, "shapes": SHAPES, **changes})


@pytest.mark.parametrize("what", ["train", "infer"])
def test_both_sides_do_the_same_and_are_reported(what, in_this_process):
    console = Console(record=True, width=200)
    report = json.loads(json.dumps(measure_models(settings(what=what), CPU, console)))
    compared = report["comparisons"]["torchvision"]
    assert [row["row"] for row in compared["rows"]] == [
        "each as it comes",
        "float32, contiguous",
        "bf16, channels_last",
    ]
    sides = compared["sides"]
    for row in compared["rows"]:
        ours, beside = sides[row["ours"]], sides[row["beside"]]
        ratio = ours["images_per_second"] / beside["images_per_second"]
        assert row["ratio"] == pytest.approx(ratio)
    ours, theirs = (sides[f"{side}, float32, contiguous"] for side in ("ours", "torchvision"))
    for side in sides.values():
        assert side["images_per_second"] == 1 / side["seconds_per_image"] > 0
        assert "peak_bytes" in side  # of one process for all sides it says nothing
    # The arithmetic is the same on both sides, up to how many RoIs were foreground.
    assert ours["flops"] == pytest.approx(theirs["flops"], rel=0.1)
    if what == "train":
        assert {"data", "forward", "backward", "update"} <= set(ours["seconds_by_stage"])
        assert np.mean(ours["losses"]) == pytest.approx(np.mean(theirs["losses"]), rel=0.3)
        assert ours["pooled"]["box"] == theirs["pooled"]["box"] == COUNTS.samples
    else:
        stages = {"backbone", "rpn", "box", "mask", "paste"}
        assert stages <= set(ours["seconds_by_stage"]) & set(theirs["seconds_by_stage"])
        assert ours["detections"] == theirs["detections"] == [COUNTS.detections]
        assert ours["pooled"] == theirs["pooled"] == {"box": COUNTS.proposals, "mask": 4}
    shown = console.export_text()
    assert "of the peak" in shown and "torchvision, bf16, channels_last" in shown


def test_a_side_runs_in_a_process_of_its_own_and_says_what_went_wrong(workload, tmp_path):
    file = tmp_path / "workload.pt"
    torch.save(workload, file)
    ours = SideSettings(file, False, "cpu", threads=1, ours=("runtime=default",), warm_up=0)
    with SideProcess(ours) as process:
        answer = process.ask("prepare")
        assert answer["precision"] == "float32" and len(answer["found"]) == 1
        assert answer["version"] == detector.__version__
        assert process.ask("count")["peak_bytes"] > 100 * 2**20  # of its weights at least
    lost = SideSettings(tmp_path / "no.pt", True, "cpu")
    with SideProcess(lost) as process, pytest.raises(SideFailed, match="FileNotFoundError"):
        process.ask("sample")


def test_the_workload_has_something_to_find_and_to_learn(workload):
    (batch,) = workload.batches
    assert batch.targets.valid.sum() >= 2
    edges, offsets = batch.targets.polygons.edges[0], batch.targets.polygons.offsets[0]
    for slot in batch.targets.valid[0].nonzero()[:, 0].tolist():
        ring = edges[offsets[slot] : offsets[slot + 1], :2]
        extent = torch.cat((ring.amin(0), ring.amax(0)))
        torch.testing.assert_close(extent, batch.targets.boxes[0, slot], atol=1e-3, rtol=0)
    # Bitmaps that torchvision is given are those outlines.
    _, (target,) = torchvision_peer.make_inputs(batch, with_masks=True)
    area = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
    filled = target["masks"].sum((1, 2)) / area
    assert ((filled > 0.4) & (filled < 1)).all()
    again = make_workload("mask_rcnn_r50_fpn", "torchvision", SHAPES, COUNTS)
    assert all(torch.equal(again.state[name], value) for name, value in workload.state.items())


def test_sides_that_find_something_else_are_not_compared():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    ours = [{"boxes": boxes, "scores": np.array([0.9, 0.5]), "labels": np.array([1, 2])}]
    check_found(ours, ours)
    for changed in ({"labels": np.array([1, 1])}, {"boxes": boxes + 1}):
        with pytest.raises(AssertionError, match="image 0"):
            check_found(ours, [ours[0] | changed])


def test_the_busy_time_counts_what_overlaps_once():
    assert covered([]) == 0
    assert covered([(0, 10), (5, 12), (2, 3), (20, 21)]) == 13


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("against=mmdet", "torchvision or detectron2"),
        ("network=yolo", "mask_rcnn_r50_fpn or faster_rcnn_r50_fpn"),
        ("shapes=[[2,480,650]]", "multiples of 32"),
        ("shapes=[2,480,640]", "of each batch, such as shapes=[[2,480,640]]"),
    ],
)
def test_what_cannot_be_compared_is_refused(monkeypatch, capsys, tmp_path, word, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_rows, "matrix_peak", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "what=train", "device=cpu", word])
    with pytest.raises(SystemExit) as exit:
        cli.run_tool("benchmark")
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_all_is_one_report_of_what_a_device_can_do(monkeypatch):
    def measured(cfg, device, console):
        if cfg.what == "kernels":
            raise ValueError("no compiler")
        return {"measured": cfg.what}

    monkeypatch.setattr(run, "_measure", measured)
    report = run.benchmark(settings(what="all", device="cpu"))
    assert [report[what] for what in ("ops", "infer", "train")] == [
        {"measured": "ops"},
        {"measured": "infer"},
        {"measured": "train"},
    ]
    assert report["kernels"] == {"left_out": "no compiler"}


def test_a_peer_that_is_not_installed_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(model_rows, "matrix_peak", lambda *_: 1.0)
    monkeypatch.setattr(model_rows.importlib.util, "find_spec", lambda name: None)
    console = Console(record=True)
    report = measure_models(settings(what="train", against="detectron2"), CPU, console)
    assert report["comparisons"] == {} and "detectron2" in report["left_out"]
    assert "not installed" in console.export_text()
