"""Evaluations as tables for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.evaluation.coco import Evaluation
from detector.evaluation.keypoints import MAX_DETECTIONS

SIZES = {"s": "small", "m": "medium", "l": "large"}


def evaluation_table(evaluation: Evaluation) -> Group:
    """The twelve numbers, the AP of each class, and the notes, for ``rich.print``."""
    notes = [Text(note, style="yellow") for note in evaluation.notes]
    tables = [voc_table(evaluation) if "voc" in evaluation.metrics else summary_table(evaluation)]
    if "keypoint" in evaluation.metrics:
        tables.append(keypoint_table(evaluation))
    if evaluation.errors:
        tables.append(error_table(evaluation))
    return Group(*tables, per_class_table(evaluation), *notes)


def voc_table(evaluation: Evaluation) -> Table:
    """The numbers of PASCAL VOC; an undefined number is shown as a dash."""
    table = Table("", "IoU", "precision", title="VOC evaluation", title_justify="left")
    table.add_column("box", justify="right", no_wrap=True)
    for key, value in evaluation.metrics["voc"].items():
        threshold = f".{key[2:4]}" if key[2:4].isdigit() else ".50:.95"
        curve = "at 11 recalls (VOC 2007)" if key.endswith("11point") else "area (since VOC 2010)"
        style = "bold" if key == "AP50" else ""
        table.add_row(Text(key, style=style), threshold, curve, Text(_shown(value), style=style))
    return table


def summary_table(evaluation: Evaluation) -> Table:
    """COCO's twelve numbers of boxes and masks or LVIS's thirteen; an undefined one is a dash."""
    kinds = [kind for kind in ("box", "mask", "boundary") if kind in evaluation.metrics]
    keys = list(evaluation.metrics[kinds[0]]) if kinds else []
    title = f"{'LVIS' if 'APr' in keys else 'COCO'} evaluation"
    table = Table("", "IoU", "size", "detections", title=title, title_justify="left")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    limits = [key[2:] for key in keys if key.startswith("AR") and key[2:].isdigit()]
    for key in keys:
        threshold = f".{key[2:]}" if key in ("AP50", "AP75") else ".50:.95"
        limit = key[2:] if key[2:] in limits and key.startswith("AR") else limits[-1]
        values = [_shown(evaluation.metrics[kind][key]) for kind in kinds]
        table.add_row(
            Text(key, style="bold" if key == "AP" else ""),
            threshold,
            SIZES.get(key[-1], "all"),
            limit,
            *(Text(value, style="bold" if key == "AP" else "") for value in values),
            end_section=key in ("APl", f"AR{limits[-1]}"),
        )
    return table


def keypoint_table(evaluation: Evaluation) -> Table:
    """The ten COCO numbers of keypoints; an undefined number is shown as a dash."""
    title = "COCO evaluation of keypoints"
    table = Table("", "OKS", "size", "detections", title=title, title_justify="left")
    table.add_column("keypoint", justify="right", no_wrap=True)
    for key, value in evaluation.metrics["keypoint"].items():
        style = "bold" if key == "AP" else ""
        table.add_row(
            Text(key, style=style),
            f".{key[2:]}" if key[2:].isdigit() else ".50:.95",
            SIZES.get(key[-1], "all"),
            str(MAX_DETECTIONS),
            Text(_shown(value), style=style),
            end_section=key == "APl",
        )
    return table


def error_table(evaluation: Evaluation) -> Table:
    """What AP50 would gain without the errors of each kind, and how many there are."""
    table = Table("without its errors", title="What costs AP50", title_justify="left")
    for kind in evaluation.errors:
        table.add_column(kind, justify="right", no_wrap=True)
        table.add_column("errors", justify="right", no_wrap=True)
    first = next(iter(evaluation.errors.values()))
    for name in first.gains:
        cells = []
        for analysis in evaluation.errors.values():
            count = analysis.counts.get(name)
            cells += [f"+{analysis.gains[name]:.3f}", "" if count is None else str(count)]
        table.add_row(name.replace("_", " "), *cells, end_section=name == "missed")
    return table


def per_class_table(evaluation: Evaluation, classes_per_column: int = 20) -> Table:
    """The AP of each class (VOC's at IoU .50), in up to three columns side by side."""
    per_class = list(evaluation.metrics["per_class"].items())
    keys = {
        "box": "box_AP",
        "mask": "mask_AP",
        "boundary": "boundary_AP",
        "keypoint": "keypoint_AP",
        "voc": "voc_AP50",
    }
    kinds = [kind for kind in keys if kind in evaluation.metrics]
    num_columns = min(3, max(1, -(-len(per_class) // classes_per_column)))
    num_rows = -(-len(per_class) // num_columns)
    table = Table(title="AP of each class", title_justify="left")
    for _ in range(num_columns):
        table.add_column("class")
        for kind in kinds:
            table.add_column("AP50" if kind == "voc" else kind, justify="right", no_wrap=True)
    for row in range(num_rows):
        cells: list[str] = []
        for name, numbers in per_class[row::num_rows]:
            cells += [name, *(_shown(numbers[keys[kind]]) for kind in kinds)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _shown(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "–"
