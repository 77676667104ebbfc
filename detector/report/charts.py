"""Charts as inline SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detector.report.html import Html, tag

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 8, 32
MARKS = ("a", "b")  # of the page's two colours


@dataclass(frozen=True)
class Line:
    """A curve of points ``(x, y)``, both in 0..1; ``mark`` is its style: a, b or each."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: str = "a"
    dot: tuple[float, float] | None = None


def curves(title: str, lines: Sequence[Line], x_label: str) -> Html:
    """Curves over the unit square; a pointer that rests on one shows its name."""
    pieces = []
    for step in range(6):
        value = step / 5
        y, x = _y(value), _x(value)
        pieces.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        pieces.append(_text(LEFT - 6, y + 4, f"{value:.1f}", "end"))
        pieces.append(_text(x, HEIGHT - BOTTOM + 15, f"{value:.1f}", "middle"))
    # Thin lines first, so that the main ones lie on top.
    for line in sorted(lines, key=lambda line: line.mark != "each"):
        points = " ".join(f"{_x(x)},{_y(y)}" for x, y in zip(line.x, line.y, strict=True))
        name = tag("title", line.name)
        pieces.append(tag("polyline", name, points=points, class_=f"line {line.mark}"))
        if line.dot is not None:
            x, y = line.dot
            pieces.append(tag("circle", name, cx=_x(x), cy=_y(y), r=4, class_=f"dot {line.mark}"))
    pieces.append(_text((LEFT + WIDTH) / 2, HEIGHT - 2, x_label, "middle"))
    return _figure(title, pieces, title)


def histogram(
    title: str, edges: Sequence[str], series: Sequence[Sequence[float]], x_label: str
) -> Html:
    """Bars beside each other, of up to two series.

    Args:
        title: above it.
        edges: what stands below each bar; an empty text for nothing.
        series: the bars' heights, each series as long as ``edges``.
        x_label: below.
    """
    most = max((max(values, default=0) for values in series), default=0) or 1
    top = _round_up(most)
    pieces = []
    for step in range(5):
        y = _y(step / 4)
        pieces.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        pieces.append(_text(LEFT - 6, y + 4, short_number(top * step / 4), "end"))
    room = (WIDTH - LEFT - RIGHT) / max(len(edges), 1)
    width = 0.82 * room / max(len(series), 1)
    for place, label in enumerate(edges):
        start = LEFT + room * (place + 0.09)
        for number, values in enumerate(series):
            y = _y(values[place] / top)
            bar = tag(
                "rect",
                tag("title", f"{label or edges[place - 1]}: {short_number(values[place])}"),
                x=round(start + width * number, 1),
                y=y,
                width=round(width, 1),
                height=round(HEIGHT - BOTTOM - y, 1),
                rx=1.5,
                class_=f"bar {MARKS[number]}",
            )
            pieces.append(bar)
        if label:
            pieces.append(_text(start + 0.41 * room, HEIGHT - BOTTOM + 15, label, "middle"))
    pieces.append(_text((LEFT + WIDTH) / 2, HEIGHT - 2, x_label, "middle"))
    return _figure(title, pieces, f"{title}, by {x_label}")


def bar_rows(rows: Sequence[tuple[object, Sequence[float], object]], most: float) -> Html:
    """Lying bars: ``(name, one length for each series, text behind)``; ``most`` fills the track."""
    cells = []
    for name, values, text in rows:
        tracks = [
            tag("div", tag("i", style=f"width:{_percent(v, most)}%", class_=mark), class_="track")
            for v, mark in zip(values, MARKS, strict=False)
        ]
        cells += [tag("span", name, class_="name"), tag("div", tracks)]
        cells.append(tag("span", text, class_="number"))
    return tag("div", cells, class_="rows")


def legend(names: Sequence[str]) -> Html:
    """Which colour is which, of up to two."""
    entries = [
        tag("span", tag("i", class_=mark), name) for name, mark in zip(names, MARKS, strict=False)
    ]
    return tag("p", entries, class_="legend")


def short_number(value: float) -> str:
    """At most four characters or so: ``"0.25"``, ``"120"``, ``"4.5k"``, ``"2M"``."""
    for limit, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if suffix == 'M' else 1e3):.3g}{suffix}"
    return f"{value:.4g}"


def _figure(title: str, pieces: list[Html], description: str) -> Html:
    picture = tag(
        "svg", pieces, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description
    )
    return tag("figure", tag("figcaption", title), picture)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return tag("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor)


def _x(value: float) -> float:
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float) -> float:
    return round(TOP + (1 - value) * (HEIGHT - TOP - BOTTOM), 1)


def _percent(value: float, most: float) -> float:
    return round(100 * min(max(value / most, 0.0), 1.0), 1) if most > 0 else 0.0


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten, whose quarters are easy to read."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if value <= step * power * (1 + 1e-9))
