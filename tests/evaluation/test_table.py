"""The tables: every number where it belongs, a dash where there is none."""

import io

import pytest
from rich.console import Console

from detector.evaluation.analysis import analyse
from detector.evaluation.coco import Evaluation
from detector.evaluation.table import evaluation_table
from tests.evaluation.random_truth import random_case

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR200", "ARs", "ARm", "ARl"]


def rendered(evaluation):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    return console.export_text().splitlines()


@pytest.fixture
def evaluation():
    box = {key: 0.1 + 0.01 * i for i, key in enumerate(KEYS)}
    mask = {key: 0.5 + 0.01 * i for i, key in enumerate(KEYS)}
    box["APs"] = mask["APs"] = -1.0
    per_class = {f"class{k}": {"box_AP": k / 100, "mask_AP": -1.0} for k in range(45)}
    metrics = {"box": box, "mask": mask, "per_class": per_class}
    return Evaluation(metrics, [], ["Something was left out."])


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_rows_name_threshold_size_limit_and_both_values(evaluation):
    rows = {cells(line)[0]: cells(line)[1:] for line in rendered(evaluation) if "│" in line}
    assert rows["AP"] == [".50:.95", "all", "200", "0.100", "0.500"]
    assert rows["AP75"] == [".75", "all", "200", "0.120", "0.520"]
    assert rows["APs"] == [".50:.95", "small", "200", "–", "–"]
    assert rows["AR10"] == [".50:.95", "all", "10", "0.170", "0.570"]
    assert rows["ARl"] == [".50:.95", "large", "200", "0.210", "0.610"]


def test_every_class_is_listed_with_its_numbers(evaluation):
    text = "\n".join(rendered(evaluation))
    flat = [cell for line in rendered(evaluation) if "class" in line for cell in cells(line)]
    for k in range(45):
        at = flat.index(f"class{k}")
        assert flat[at + 1 : at + 3] == [f"{k / 100:.3f}", "–"]
    assert "Something was left out." in text


def test_boxes_alone_have_no_mask_column(evaluation):
    per_class = {name: {"box_AP": 0.25} for name in ("cat", "[dog]")}
    boxes = Evaluation({"box": evaluation.metrics["box"], "per_class": per_class}, [])
    text = "\n".join(rendered(boxes))
    assert "mask" not in text
    assert "[dog]" in text, "a name in brackets is a name, not markup"


def test_lvis_boundaries_and_errors_have_their_places():
    keys = [*KEYS[:6], "APr", "APc", "APf", "AR300", *KEYS[9:]]
    numbers = {key: 0.01 * i for i, key in enumerate(keys)}
    truth, table = random_case(3)
    errors = {kind: analyse(kind, truth, table) for kind in ("box", "mask")}
    per_class = {"cat": {"box_AP": 0.25, "boundary_AP": 0.5}}
    metrics = {"box": numbers, "boundary": numbers, "per_class": per_class}
    lines = rendered(Evaluation(metrics, table, errors=errors))
    assert "LVIS evaluation" in lines[0]
    rows = {cells(line)[0]: cells(line)[1:] for line in lines if "│" in line}
    assert rows["APr"] == [".50:.95", "all", "300", "0.060", "0.060"]
    assert rows["AR300"] == [".50:.95", "all", "300", "0.090", "0.090"]
    assert rows["cat"] == ["0.250", "0.500"]
    box, mask = errors["box"], errors["mask"]
    assert rows["duplicate"] == [
        f"+{box.gains['duplicate']:.3f}",
        str(box.counts["duplicate"]),
        f"+{mask.gains['duplicate']:.3f}",
        str(mask.counts["duplicate"]),
    ]
    assert rows["false positive"][1] == "" and box.gains["false_positive"] > 0.1
