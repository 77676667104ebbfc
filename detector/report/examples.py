"""Images to look at, truth beside finding: the worst by kind of error, good and typical ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from detector.evaluation.errors import KINDS
from detector.report.drawing import NO_BOXES, draw_detections, draw_objects, read_small
from detector.report.html import Html, join, section, tag
from detector.report.pictures import picture_or_absent
from detector.report.scored import Scored

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

WORST_SHOWN = 4  # images of each kind of error
SHOWN = 4  # of the best, typical and worst as a whole
ERRORS_TOLD = 3
WHOLE = (
    ("best", "Best images"),
    ("typical", "Typical images"),
    ("worst", "Worst images as a whole"),
)


def example_sections(index: AnnotationIndex, own: Scored, other: Scored | None) -> Html | None:
    """Images with their ground truth and what was found, of the last kind analysed.

    ``None`` without an analysis.
    """
    if not own.errors or own.results is None:
        return None
    kind, analysis = list(own.errors.items())[-1]
    draw = _Drawer(index, own, other, analysis["score_threshold"])
    parts = []
    for name in KINDS:
        listed = analysis["worst"][name]
        if not listed:
            continue
        pairs = [draw.worst(record, analysis["class_names"]) for record in listed[:WORST_SHOWN]]
        parts.append(tag("h3", f"{name.capitalize()}: {analysis['counts'][name]:,}"))
        parts.append(tag("div", pairs, class_=draw.layout))
    worst = section(
        "Worst images by kind of error",
        parts or tag("p", "There are no errors."),
        lead=f"By {'mask' if kind == 'mask' else 'box'}; images with most and surest errors first. "
        "What is wrong is lit.",
    )
    threshold = analysis["score_threshold"]
    whole = []
    for key, title in WHOLE:
        if analysis["images"][key]:
            pairs = [draw.whole(record) for record in analysis["images"][key][:SHOWN]]
            whole += [tag("h3", title), tag("div", pairs, class_=draw.layout)]
    good = section(
        "Best, typical, worst",
        whole,
        lead=f"By F1 of an image's detections from a score of {threshold:g}.",
    )
    return join(worst, good if whole else None)


class _Drawer:
    """Draws truth and detections of an image side by side."""

    def __init__(
        self, index: AnnotationIndex, own: Scored, other: Scored | None, threshold: float
    ) -> None:
        self.index = index
        self.own, self.other = own, other
        self.threshold = threshold
        # Three pictures side by side take the page's width.
        three = other is not None and other.results is not None
        self.layout = "pairs wide" if three else "pairs"
        self.image_of = {int(identifier): i for i, identifier in enumerate(index.image_ids)}

    def worst(self, record: dict[str, Any], class_names: list[str]) -> Html:
        errors = record["errors"]
        lit = [box for e in errors for box in (e["box"], e["object_box"]) if box is not None]
        lit = np.array(lit, dtype=np.float64).reshape(-1, 4)
        lit[:, 2:] += lit[:, :2]
        told = [_tell(error, class_names) for error in errors[:ERRORS_TOLD]]
        more = record["num_errors"] - len(told)
        text = "; ".join(told) + (f"; and {more} more" if more > 0 else "")
        return self._pair(record["image_id"], text, lit, [e for e in errors if e["box"]])

    def whole(self, record: dict[str, Any]) -> Html:
        text = (
            f"F1 {record['F1']:.2f}, {record['num_objects']} objects, "
            f"{record['num_detections']} detections"
        )
        return self._pair(record["image_id"], text, NO_BOXES, [])

    def _pair(
        self, image_id: int, text: str, lit: np.ndarray, errors: list[dict[str, Any]]
    ) -> Html:
        image = self.image_of[image_id]
        name = self.index.file_name(image)
        small = read_small(self.index, image)
        cells = []
        truth = None if small is None else draw_objects(self.index, image, small, None, lit)
        cells.append(_cell("ground truth", truth, name))
        title = "found" if self.other is None else f"found by {self.own.name}"
        found = None
        if small is not None:
            which = self._chosen(self.own, image_id, errors)
            found = draw_detections(self.index, self.own.results, which, small, lit)
        cells.append(_cell(title, found, name))
        if self.other is not None and self.other.results is not None:
            found = None
            if small is not None:
                which = self._chosen(self.other, image_id, [])
                found = draw_detections(self.index, self.other.results, which, small, lit)
            cells.append(_cell(f"found by {self.other.name}", found, name))
        caption = tag("figcaption", tag("b", name), tag("br"), text)
        return tag("figure", tag("div", cells, class_="pair"), caption)

    def _chosen(self, scored: Scored, image_id: int, errors: list[dict[str, Any]]) -> np.ndarray:
        """Detections of an image from the threshold on, and those that the errors are about."""
        table = scored.results
        place = int(np.flatnonzero(table.image_ids == image_id)[0])
        which = np.arange(table.offsets[place], table.offsets[place + 1])
        chosen = table.scores[which] >= self.threshold
        for error in errors:
            chosen |= (
                (table.labels[which] == error["label"])
                & np.isclose(table.scores[which], error["score"], atol=1e-9)
                & np.isclose(table.boxes[which], error["box"], atol=1e-6).all(1)
            )
        return which[chosen]


def _cell(title: str, picture: np.ndarray | None, name: str) -> Html:
    return tag("div", tag("span", title), picture_or_absent(picture, f"{name}, {title}"))


def _tell(error: dict[str, Any], class_names: list[str]) -> str:
    """An error in words: ``"dog .93 is a cat (IoU .81)"``."""
    meant = "" if error["object_label"] is None else class_names[error["object_label"]]
    if error["box"] is None:
        return f"{meant} missed"
    text = f"{class_names[error['label']]} {error['score']:.2f}"
    if not meant:
        return f"{text} where nothing is"
    if error["object_label"] == error["label"]:
        return f"{text}, IoU {error['iou']:.2f} with the object"
    return f"{text} at a {meant} (IoU {error['iou']:.2f})"
