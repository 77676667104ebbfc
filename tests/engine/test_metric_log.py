import json
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from detector.engine.metric_log import MetricLog
from detector.evaluation.analysis import analyse
from tests.evaluation.random_truth import random_case

METRICS = {"box": {"AP": 0.5, "APs": 0.25, "APl": -1.0}, "per_class": {"cat": {"box_AP": 0.5}}}


def test_numbers_and_pictures_arrive_in_both_places(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.training(10, {"loss": 1.5, "time/data": 0.25})
    log.evaluation(10, METRICS)
    log.picture(10, "first", np.zeros((4, 6, 3), np.uint8))
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [
        {"kind": "training", "step": 10, "loss": 1.5, "time/data": 0.25},
        {"kind": "evaluation", "step": 10, **METRICS},
    ]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == {
        "training/loss": 1.5,
        "seconds/data": 0.25,
        "box/AP": 0.5,
        "box/APs": 0.25,
        "box_AP_of_classes/cat": 0.5,
    }
    assert events.Tags()["images"] == ["predictions/first"]


def test_resuming_drops_steps_that_will_be_taken_again(tmp_path: Path) -> None:
    lines = tmp_path / "metrics.jsonl"
    for step in (0, 20):
        log = MetricLog(lines, tmp_path / "events", step)
        log.training(step + 10, {"loss": 1.0})
        log.training(step + 20, {"loss": 1.0})
        log.training(step + 30, {"loss": 1.0})
        log.close()
        with open(lines, "a") as file:
            file.write('{"kind": "training", "step": 4')  # a crash within a line
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()[:-1]]
    assert steps == [10, 20, 30, 40, 50]


def test_curves_are_those_of_the_analysis(tmp_path: Path) -> None:
    analysis = analyse("box", *random_case(3))
    log = MetricLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.curves(10, {"box": analysis})
    log.close()
    events = EventAccumulator(str(tmp_path / "events"), {"tensors": 0}).Reload()
    tags = [f"box_precision_recall/{name}" for name in ("all classes", *analysis.class_names[:5])]
    assert sorted(events.Tags()["tensors"]) == sorted(tags), "the last class has no object"
    drawn = tensor_util.make_ndarray(events.Tensors(tags[0])[0].tensor_proto)
    right, wrong, _, missed, precision, recall = drawn
    np.testing.assert_allclose(precision, analysis.overall.precision, atol=1e-6)
    np.testing.assert_allclose(recall, analysis.overall.recall, atol=1e-6)
    assert set(right + missed) == {analysis.overall.num_objects}
    assert (right + wrong)[0] == analysis.overall.num_detections, "all of them, from score 0"
