"""HTML put together from elements, in which every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from detector.report.style import SCRIPT, STYLE

VOID = frozenset({"br", "hr", "img", "meta"})


class Html(str):
    """Text that is HTML already; any other text is escaped when it comes into an element."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        name: such as ``"td"``.
        children: texts, numbers, :class:`Html`, lists of them; ``None`` is nothing.
        attributes: ``class_`` stands for ``class`` and ``stroke_width`` for ``stroke-width``;
            ``None`` and ``False`` are left out, ``True`` is an attribute without value.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.removesuffix("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening if name in VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Pieces one after another, see :func:`tag`."""
    return Html("".join(_pieces(children)))


def _pieces(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield str(child)
        elif isinstance(child, str):
            # What no encoding can hold, of file names of other systems, is shown as a question.
            yield html.escape(child.encode("utf-8", "replace").decode())
        elif isinstance(child, Iterable):
            yield from _pieces(child)
        else:
            yield html.escape(str(child))


def section(title: str, *children: Any, lead: Any = None, id_: str | None = None) -> Html:
    """A part of the page under a heading, with a sentence that says how to read it."""
    text = tag("p", lead, class_="lead") if lead else None
    return tag("section", tag("h2", title), text, *children, id=id_)


def table(
    head: list[Any], rows: Iterable[list[Any]], text_columns: int = 1, sortable: bool = False
) -> Html:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: of the columns.
        rows: the cells; those after the first ``text_columns`` are numbers, set to the right.
        text_columns: how many columns are text.
        sortable: whether a click on a head sorts by it.
    """

    def row(cells: list[Any], name: str) -> Html:
        return tag(
            "tr",
            [
                tag(name, cell, class_=None if place < text_columns else "number")
                for place, cell in enumerate(cells)
            ],
        )

    body = tag("tbody", [row(cells, "td") for cells in rows])
    inner = tag(
        "table", tag("thead", row(head, "th")), body, class_="sortable" if sortable else None
    )
    return tag("div", inner, class_="scroll")


def details(title: Any, *children: Any, is_open: bool = False) -> Html:
    """What is shown when its title is clicked."""
    return tag("details", tag("summary", title), *children, open=is_open)


def document(title: str, *body: Any, subtitle: Any = None) -> str:
    """The whole page: needs no other file and no network, light and dark, narrow and wide.

    The first children of ``body`` come right below the title.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    header = tag(
        "header", tag("h1", title), tag("p", subtitle, class_="subtitle") if subtitle else None
    )
    content = tag("body", tag("main", header, *body), tag("script", Html(SCRIPT)))
    return f"<!DOCTYPE html>\n{tag('html', head, content, lang='en')}\n"
