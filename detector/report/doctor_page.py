"""The doctor's page: findings with pictures and remedies, then the dataset in numbers."""

from __future__ import annotations

import numpy as np

from detector.data.doctor.anchor_fit import AnchorFit
from detector.data.doctor.examine import Diagnosis
from detector.data.doctor.findings import LEVELS, Finding, Record, Spot
from detector.data.doctor.statistics import (
    ASPECT_EDGES,
    COUNT_EDGES,
    SIZE_EDGES,
    SplitStatistics,
    bin_labels,
)
from detector.data.index import AnnotationIndex
from detector.report.charts import bar_rows, histogram, legend, short_number
from detector.report.drawing import draw_objects, read_small
from detector.report.html import Html, details, document, join, section, table, tag
from detector.report.pictures import figure

# What one page shows of a finding; check.json has all.
RECORDS_SHOWN = 40
PICTURES_SHOWN = 6
CLASSES_SHOWN = 40


def doctor_page(diagnosis: Diagnosis, title: str = "Dataset check") -> str:
    """The page as one HTML text."""
    splits = diagnosis.statistics
    return document(
        title,
        _tiles(diagnosis),
        section(
            "Findings",
            [_finding(finding, diagnosis.indices) for finding in diagnosis.findings]
            or tag("p", "Nothing was found. The charts below may still tell something."),
        ),
        _classes(splits),
        _shapes(splits),
        None if diagnosis.fit is None else _anchors(diagnosis.fit),
        subtitle=", ".join(f"{split}: {each.source}" for split, each in splits.items()),
    )


def _tiles(diagnosis: Diagnosis) -> Html:
    counts = [
        (sum(finding.level == level for finding in diagnosis.findings), level) for level in LEVELS
    ]
    counts = [(count, level if count == 1 else f"{level}s") for count, level in counts]
    for split, each in diagnosis.statistics.items():
        counts.append((each.num_images, f"images in {split}"))
        counts.append((each.num_objects, f"objects in {split}"))
    return tag(
        "div",
        [tag("div", tag("b", f"{n:,}"), tag("span", what), class_="tile") for n, what in counts],
        class_="tiles",
    )


def _finding(finding: Finding, indices: dict[str, AnnotationIndex]) -> Html:
    shown = finding.records[:RECORDS_SHOWN]
    rest = len(finding.records) - len(shown)
    own_remedies = any(record.remedy for record in shown)
    head = ["where", "what", "remedy"] if own_remedies else ["where", "what"]
    rows = [[r.where, r.what, r.remedy or ""] if own_remedies else [r.where, r.what] for r in shown]
    records = tag("div", table(head, rows, text_columns=3), class_="records")
    if rest:
        records = join(records, tag("p", f"... and {rest} more in check.json", class_="soft"))
    if len(shown) > 6:
        records = details(f"all {len(finding.records)}", records)
    pictures = [
        picture for record in shown if record.spots for picture in _record_pictures(record, indices)
    ][:PICTURES_SHOWN]
    count = f" ({len(finding.records)})" if len(finding.records) > 1 else ""
    return tag(
        "article",
        tag(
            "h3",
            tag("span", finding.level, class_=f"badge {finding.level}"),
            f"{finding.title}{count}",
        ),
        tag("p", finding.why),
        tag("p", tag("b", "Remedy: "), finding.remedy),
        tag("div", pictures, class_="pictures") if pictures else None,
        records,
        class_=f"finding {finding.level}",
        id=finding.kind,
    )


def _record_pictures(record: Record, indices: dict[str, AnnotationIndex]) -> list[Html]:
    return [_spot_figure(spot, indices[spot.split]) for spot in record.spots[:2]]


def _spot_figure(spot: Spot, index: AnnotationIndex) -> Html:
    name = f"{spot.split}: {index.file_name(spot.image)}"
    return figure(draw_spot(spot, index), name, name)


def draw_spot(spot: Spot, index: AnnotationIndex) -> np.ndarray | None:
    """The image with the objects that are meant, or all of them, lit where there is something.

    ``None``: the image cannot be read.
    """
    small = read_small(index, spot.image)
    if small is None:
        return None
    lit = [box for box in spot.boxes if np.isfinite(box).all()]
    lit += [tuple(box) for box in index.boxes[list(spot.annotations)]]
    places = list(spot.annotations) or None
    return draw_objects(index, spot.image, small, places, np.array(lit).reshape(-1, 4))


def _classes(splits: dict[str, SplitStatistics]) -> Html:
    names = list(dict.fromkeys(name for each in splits.values() for name in each.objects))
    counts = {name: [each.objects.get(name, 0) for each in splits.values()] for name in names}
    order = sorted(names, key=lambda name: -sum(counts[name]))
    totals = [max(each.num_objects, 1) for each in splits.values()]
    shares = {
        name: [n / total for n, total in zip(counts[name], totals, strict=True)] for name in names
    }
    most = max((max(values) for values in shares.values()), default=0)
    shown = order
    if len(order) > CLASSES_SHOWN:
        shown = order[: CLASSES_SHOWN // 2] + order[-CLASSES_SHOWN // 2 :]
    rows = [(name, shares[name], " / ".join(f"{n:,}" for n in counts[name])) for name in shown]
    left = len(order) - len(shown)
    note = (
        tag("p", f"the {len(shown) // 2} most and least frequent; {left} between") if left else None
    )
    head = [f"{what}, {split}" for split in splits for what in ("objects", "images")]
    return section(
        "Classes",
        legend([f"{split}, share of objects" for split in splits]),
        bar_rows(rows, most),
        note if left else None,
        details(
            "as a table",
            table(
                ["class", *head],
                [
                    [name, *(n for each in splits.values()
                             for n in (each.objects.get(name, 0), each.images.get(name, 0)))]
                    for name in order
                ],
                sortable=True,
            ),
        ),
        lead="Objects of each class as shares of their split, so that the splits compare; numbers "
        "behind the bars. Crowd regions are not counted.",
    )  # fmt: skip


def _shapes(splits: dict[str, SplitStatistics]) -> Html:
    each = list(splits.values())
    empty = ", ".join(f"{s.num_empty} of {split}" for split, s in splits.items())
    return section(
        "Sizes, shapes, numbers",
        legend(list(splits)),
        tag(
            "div",
            histogram("Objects by size", bin_labels(SIZE_EDGES), [s.sizes for s in each],
                      "square root of the box's area, pixels of the file"),
            histogram("Objects by shape", bin_labels(ASPECT_EDGES), [s.aspects for s in each],
                      "height / width"),
            histogram("Images by objects", bin_labels(COUNT_EDGES, whole=True),
                      [s.per_image for s in each], "objects in an image"),
            class_="charts",
        ),
        lead=f"Images without objects: {empty}.",
    )  # fmt: skip


def _anchors(fit: AnchorFit) -> Html:
    sizes, aspects = bin_labels(SIZE_EDGES), bin_labels(ASPECT_EDGES)
    used = np.flatnonzero(fit.grid_counts.any(1))
    wide = np.flatnonzero(fit.grid_counts.any(0))
    rows = []
    for size in used:
        cells = [tag("th", sizes[size])]
        for aspect in wide:
            count, mean = int(fit.grid_counts[size, aspect]), fit.grid[size, aspect]
            if not count:
                cells.append(tag("td"))
                continue
            # What is far from being matched is shown in the colour of errors.
            color = f"rgba(var(--wrong), {min(0.85, max(0.0, (0.7 - mean) * 1.8)):.2f})"
            title = f"{count} objects, mean best IoU {mean:.2f}"
            cells.append(tag("td", f"{mean:.2f}", style=f"background:{color}", title=title))
        rows.append(tag("tr", cells))
    head = tag("tr", tag("th", "size"), [tag("th", aspects[aspect]) for aspect in wide])
    grid = tag("table", tag("thead", head), tag("tbody", rows), class_="matrix")
    each = [
        [f"{size:.0f}", f"{ratio:.2g}", stride, f"{best:,}", f"{positive:,}"]
        for size, ratio, stride, best, positive in fit.anchors
    ]
    return section(
        "Anchors",
        tag("div", grid, class_="scroll"),
        details(
            "each anchor",
            table(["size", "height/width", "stride", "best for", "positive for"], each, 0),
        ),
        lead=f"The mean best IoU that an anchor has with objects of a size (rows, pixels at the "
        f"network's input) and shape (columns, height / width), of {short_number(len(fit.boxes))} "
        f"objects in {fit.num_images} augmented images. Red is out of reach; a pointer that rests "
        "on a cell shows how many objects it stands for.",
    )
