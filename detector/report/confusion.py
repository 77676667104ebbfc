"""The confusion matrix, whole or, of many classes, its most confused part."""

from __future__ import annotations

import numpy as np

from detector.report.html import Html, details, join, section, table, tag
from detector.report.scored import Scored

MOST_CLASSES = 24
PAIRS_LISTED = 20
NOTHING_FOUND, NOTHING_THERE = "not found", "nothing there"


def confusion_section(own: Scored) -> Html | None:
    """The matrices of what was analysed; ``None`` without an analysis."""
    parts = []
    for kind, analysis in own.errors.items():
        matrix = np.array(analysis["confusion"])
        names = analysis["class_names"]
        parts.append(tag("h3", kind))
        parts.append(_matrix(matrix, names))
        parts.append(details("what is taken for what most", _pairs(matrix, names)))
    if not parts:
        return None
    threshold = next(iter(own.errors.values()))["score_threshold"]
    return section(
        "Confusion",
        parts,
        lead=f"Objects by class (rows) and what they are found as (columns), detections from a "
        f"score of {threshold:g}, IoU from .50. The last column are objects that are not found, "
        "the last row detections where nothing is.",
    )


def _matrix(matrix: np.ndarray, names: list[str]) -> Html:
    num_classes = len(names)
    shown = np.arange(num_classes)
    note = None
    if num_classes > MOST_CLASSES:
        wrong = matrix[:-1, :-1].astype(float)
        np.fill_diagonal(wrong, 0)
        most = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:MOST_CLASSES]
        shown = np.sort(most)
        note = tag("p", f"the {MOST_CLASSES} most confused of {num_classes} classes", class_="soft")
    places = [*shown.tolist(), num_classes]
    totals = np.maximum(matrix.sum(1), 1)
    columns = [*names, NOTHING_FOUND]
    head = tag("tr", tag("th"), [tag("th", columns[c], title=columns[c]) for c in places])
    rows = []
    for r in places:
        title = names[r] if r < num_classes else NOTHING_THERE
        cells = [tag("th", title, title=title)]
        for c in places:
            if r == c == num_classes:
                cells.append(tag("td"))
                continue
            count = int(matrix[r, c])
            share = count / totals[r]
            color = "heat" if r == c else "wrong"
            opacity = 0.06 + 0.7 * share if count else 0
            cells.append(
                tag(
                    "td",
                    f"{count:,}" if count else "",
                    style=f"background:rgba(var(--{color}), {opacity:.2f})",
                    class_="diagonal" if r == c else None,
                    title=f"{title} found as {columns[c]}: {count} ({share:.0%})",
                )
            )
        rows.append(tag("tr", cells))
    body = tag("table", tag("thead", head), tag("tbody", rows), class_="matrix")
    return join(note, tag("div", body, class_="scroll"))


def _pairs(matrix: np.ndarray, names: list[str]) -> Html:
    wrong = matrix[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong.ravel(), kind="stable")[:PAIRS_LISTED]
    rows = []
    for place in order:
        r, c = np.unravel_index(place, wrong.shape)
        if wrong[r, c]:
            share = wrong[r, c] / max(matrix[r].sum(), 1)
            rows.append([names[r], names[c], f"{wrong[r, c]:,}", f"{share:.1%}"])
    if not rows:
        return tag("p", "no class is taken for another")
    return table(["object", "found as", "times", "of its objects"], rows, text_columns=2)
