"""The page of an evaluation, or of two: how good, where it fails, what to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detector.evaluation.errors import KINDS
from detector.report.charts import Line, bar_rows, curves, legend
from detector.report.confusion import confusion_section
from detector.report.examples import example_sections
from detector.report.html import Html, details, document, join, section, table, tag
from detector.report.scored import Scored

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

SIZES = (("APs", "small, below 32 x 32"), ("APm", "medium"), ("APl", "large, from 96 x 96"))
COCO_LEAD = (
    "Average precision and recall over IoU .50 to .95 unless the name says one; APs, APm and APl "
    "by the objects' size, ARn of at most n detections an image."
)
VOC_LEAD = (
    "By PASCAL VOC's rules: AP50 is the area under the precision-recall curve (since 2010), "
    "AP50_11point its mean height at 11 recalls (2007), AP the mean area over IoU .50 to .95."
)
CLASSES_DRAWN = 40
HEADINGS = {"box": "Boxes", "mask": "Masks", "voc": "Boxes by VOC's rules"}
MEANINGS = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU below .5",
    "both": "wrong class and badly placed",
    "duplicate": "the object was found already",
    "background": "nothing is there",
    "missed": "an object that nothing found",
    "false_positive": "all wrong detections gone",
    "false_negative": "all objects found",
}


def evaluation_page(index: AnnotationIndex, own: Scored, other: Scored | None = None) -> str:
    """The page as one HTML text.

    Args:
        index: the dataset that was evaluated on.
        own: the evaluation.
        other: one to compare it with, on the same data.
    """
    subtitle = f"{own.name} on {index.source_file}, {len(index)} images"
    if other is not None:
        subtitle = join(subtitle, tag("br"), f"compared with {other.name}")
    return document(
        "Evaluation",
        _tiles(own, other),
        [tag("p", note, class_="soft") for note in own.notes],
        _summary(own, other),
        _errors(own, other),
        _sizes(own, other),
        _curves(own, other),
        _per_class(own, other),
        confusion_section(own),
        example_sections(index, own, other),
        subtitle=subtitle,
    )


def _names(own: Scored, other: Scored | None) -> list[str]:
    return [own.name] if other is None else [own.name, other.name]


def _tiles(own: Scored, other: Scored | None) -> Html:
    tiles = []
    for kind in own.kinds:
        for key in ("AP", "AP50", "AP75"):
            if key not in own.metrics[kind]:
                continue
            former = _metric(other, kind, key)
            tiles.append(
                tag(
                    "div",
                    tag("b", _shown(own.metrics[kind][key])),
                    tag("span", f"{kind} {key} "),
                    _change(own.metrics[kind][key], former),
                    class_="tile",
                )
            )
    return tag("div", tiles, class_="tiles")


def _summary(own: Scored, other: Scored | None) -> Html:
    keys = list(dict.fromkeys(key for kind in own.kinds for key in own.metrics[kind]))
    head: list[Any] = [""]
    for kind in own.kinds:
        head += [kind] if other is None else [kind, "other", "change"]
    rows = []
    for key in keys:
        cells: list[Any] = [key]
        for kind in own.kinds:
            value = own.metrics[kind].get(key)
            cells.append(_shown(value))
            if other is not None:
                former = _metric(other, kind, key)
                cells += [_shown(former), _change(value, former)]
        rows.append(cells)
    return section(
        "Summary",
        table(head, rows),
        lead=f"{VOC_LEAD if own.kinds == ['voc'] else COCO_LEAD} A dash is undefined.",
    )


def _errors(own: Scored, other: Scored | None) -> Html | None:
    parts = []
    for kind, analysis in own.errors.items():
        both = [analysis] + ([other.errors[kind]] if other and kind in other.errors else [])
        most = max((gain for each in both for gain in each["gains"].values()), default=0.0)
        for title, names in (("", KINDS), ("all kinds together", tuple(MEANINGS)[len(KINDS) :])):
            rows = [
                (
                    join(tag("b", name.replace("_", " ")), ": ", MEANINGS[name]),
                    [each["gains"][name] for each in both],
                    _gain_text(both, name),
                )
                for name in names
            ]
            heading = HEADINGS[kind]
            parts.append(tag("h3", f"{heading}, {title}" if title else heading))
            parts.append(bar_rows(rows, most))
    if not parts:
        return tag(
            "p",
            "Curves, confusion and kinds of errors are not here: they were not asked for "
            "(evaluation.errors=false), or what was found has no classes, as proposals.",
            class_="soft",
        )
    return section(
        "What the errors cost",
        legend(_names(own, other)) if other else None,
        parts,
        lead="What AP50 would gain if all errors of a kind were mended and all else stayed (Bolya "
        "et al., TIDE, 2020), and how many there are. The gains do not add up.",
    )


def _gain_text(both: list[dict[str, Any]], name: str) -> str:
    texts = []
    for each in both:
        count = each["counts"].get(name)
        texts.append(f"+{each['gains'][name]:.3f}" + ("" if count is None else f" ({count:,})"))
    return " / ".join(texts)


def _sizes(own: Scored, other: Scored | None) -> Html | None:
    parts = []
    for kind in own.kinds:
        if not any(key in own.metrics[kind] for key, _ in SIZES):
            continue
        rows = []
        for key, name in SIZES:
            values = [own.metrics[kind].get(key), _metric(other, kind, key)]
            values = values[: 1 if other is None else 2]
            texts = " / ".join(_shown(value) for value in values)
            rows.append((name, [max(value or 0.0, 0.0) for value in values], texts))
        parts.append(tag("figure", tag("h3", kind), bar_rows(rows, 1.0)))
    if not parts:
        return None
    return section("By size", tag("div", parts, class_="charts"), lead="AP of objects of a size.")


def _curves(own: Scored, other: Scored | None) -> Html | None:
    if not own.errors:
        return None
    parts = []
    for kind, analysis in own.errors.items():
        former = other.errors.get(kind) if other else None
        shown = [
            ("Precision", "recall", lambda c: (_unit(101), c["precision_at_recall"]), False),
            ("F1", "confidence", lambda c: (_unit(101), c["F1"]), True),
            ("Precision", "confidence", lambda c: (_unit(101), c["precision"]), False),
            ("Recall", "confidence", lambda c: (_unit(101), c["recall"]), False),
        ]
        figures = []
        for y_label, x_label, points, with_best in shown:
            lines = []
            for name, curve in zip(analysis["class_names"], analysis["curves"], strict=True):
                if curve["num_objects"] and len(lines) < CLASSES_DRAWN:
                    lines.append(Line(name, *points(curve), mark="each"))
            for mark, each, title in (("a", analysis, own.name), ("b", former, _name(other))):
                if each is not None and each["overall"]["num_objects"]:
                    overall = each["overall"]
                    dot = (overall["best_threshold"], overall["best_F1"])
                    has_dot = with_best and dot[0] >= 0
                    name = f"{title}: all classes"
                    if has_dot:
                        name += f", best F1 {dot[1]:.3f} from a confidence of {dot[0]:.3f}"
                    lines.append(Line(name, *points(overall), mark, dot if has_dot else None))
            figures.append(curves(f"{y_label} over {x_label}", lines, x_label))
        parts += [tag("h3", kind), tag("div", figures, class_="charts narrow")]
    return section(
        "Curves",
        legend([f"{name}, all classes together" for name in _names(own, other)]),
        parts,
        lead="At IoU .50. Thin lines are the classes; a pointer that rests on one names it. The "
        "dot is the confidence with the best F1.",
    )


def _per_class(own: Scored, other: Scored | None) -> Html:
    kinds = [kind for kind in own.kinds if _ap_keys(own, kind)]
    parts = []
    for kind in kinds:
        if len(kinds) > 1:
            parts.append(tag("h3", kind))
        parts.append(_class_table(own, other, kind))
    return section(
        "Classes",
        parts,
        _error_counts(own),
        lead='Click a head to sort. "From" is the confidence from which detections are kept for '
        "the best F1 of the class; precision and recall are there.",
    )


def _class_table(own: Scored, other: Scored | None, kind: str) -> Html:
    analysis = own.errors.get(kind)
    keys = _ap_keys(own, kind)
    head: list[Any] = ["class", *keys]
    if other is not None:
        head.append(f"change of {keys[0]}")
    # VOC's own is there already, and is read from the curve in another way.
    shown = ["AP50"] if analysis is not None and kind != "voc" else []
    if analysis is not None:
        head += [*shown, "best F1", "from", "precision", "recall", "objects", "detections"]
    rows = []
    for k, (name, numbers) in enumerate(own.metrics["per_class"].items()):
        first = f"{kind}_{keys[0]}"
        cells: list[Any] = [name, *(_shown(numbers.get(f"{kind}_{key}")) for key in keys)]
        if other is not None:
            former = other.metrics["per_class"].get(name, {}).get(first)
            cells.append(_change(numbers.get(first), former))
        if analysis is not None:
            curve = analysis["curves"][k]
            names = (*shown, "best_F1", "best_threshold", "best_precision", "best_recall")
            cells += [_shown(curve[each]) for each in names]
            cells += [curve["num_objects"], curve["num_detections"]]
        rows.append(cells)
    return table(head, rows, sortable=True)


def _error_counts(own: Scored) -> Html | None:
    tables = []
    for kind, analysis in own.errors.items():
        rows = [
            [name, *(counts[error] for error in KINDS)]
            for name, counts in zip(
                analysis["class_names"], analysis["counts_per_class"], strict=True
            )
        ]
        title = f"errors of each class, {kind}"
        tables.append(details(title, table(["class", *KINDS], rows, sortable=True)))
    return join(tables) if tables else None


def _ap_keys(own: Scored, kind: str) -> list[str]:
    first = next(iter(own.metrics["per_class"].values()), {})
    keys = [key.removeprefix(f"{kind}_") for key in first if key.startswith(f"{kind}_AP")]
    return keys[:2]


def _metric(scored: Scored | None, kind: str, key: str) -> float | None:
    return None if scored is None else scored.metrics.get(kind, {}).get(key)


def _name(scored: Scored | None) -> str:
    return "" if scored is None else scored.name


def _shown(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"


def _change(value: float | None, former: float | None) -> Html | None:
    if value is None or former is None or min(value, former) < 0:
        return None
    change = value - former
    kind = "better" if change > 0.0005 else "worse" if change < -0.0005 else "soft"
    return tag("em", f"{change:+.3f}", class_=kind)


def _unit(count: int) -> list[float]:
    return [i / (count - 1) for i in range(count)]
