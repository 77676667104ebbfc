"""Reads a page as a browser would: what is not well-formed, or comes from elsewhere, fails."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "meta"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page.

    Attributes:
        text: all texts outside styles and scripts, in order.
        attributes: ``(element, name, value)`` of all.
        cells: of each table a list of rows of texts.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.cells: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.cells.append([])
        elif tag == "tr":
            self.cells[-1].append([])
        elif tag in ("td", "th"):
            self.cells[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text.append(data)
        if {"td", "th"} & set(self._open):
            self.cells[-1][-1][-1] += data

    @property
    def elements(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}


def check_page(source: str) -> Page:
    """The page, after making sure that it needs nothing else and runs only its own script."""
    page = Page(source)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", source)
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/webp;base64,")
        assert not name.startswith("on"), name
    assert source.count("<script>") == 1
    return page
