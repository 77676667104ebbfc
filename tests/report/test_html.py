from __future__ import annotations

import pytest

from detector.report.charts import Line, bar_rows, curves, histogram, short_number
from detector.report.html import Html, document, section, table, tag
from tests.report.page_reader import check_page

HOSTILE = """</script><script>alert(1)</script>" onload='x' &amp; <b>\udcff"""


def test_texts_and_attributes_are_escaped():
    element = tag("td", HOSTILE, title=HOSTILE, class_="a")
    page = check_page(document(HOSTILE, section(HOSTILE, table([HOSTILE], [[element]]))))
    assert "script" not in {tag for tag, _, _ in page.attributes}
    assert page.text.count(HOSTILE.replace("\udcff", "?")) == 5  # title, h1, h2, th, td
    [title] = [value for _, name, value in page.attributes if name == "title"]
    assert title.startswith("</script>")


def test_html_is_not_escaped_again_and_nothing_is_nothing():
    assert tag("p", tag("b", "<"), None, [1, Html("<br>")]) == "<p><b>&lt;</b>1<br></p>"
    assert tag("details", open=True, hidden=False, id=None) == "<details open></details>"


def test_charts_are_well_formed_and_to_scale():
    line = Line(HOSTILE, [0, 0.5, 1], [1, 0.5, 0], dot=(0.5, 0.5))
    page = check_page(document("x", curves(HOSTILE, [line], "recall")))
    [points] = [value for _, name, value in page.attributes if name == "points"]
    (x0, y0), (x1, y1), (x2, y2) = [map(float, p.split(",")) for p in points.split()]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    page = check_page(document("x", histogram("h", ["a", "b"], [[4, 8], [2, 0]], HOSTILE)))
    heights = [float(v) for tag, name, v in page.attributes if (tag, name) == ("rect", "height")]
    assert sorted(heights)[-1] == pytest.approx(2 * sorted(heights)[-2], abs=0.2)
    assert check_page(document("x", histogram("h", ["a"], [[0]], "x")))


def test_bars_fill_their_share():
    page = check_page(document("x", bar_rows([("a", [1, 4], "1 / 4")], 4)))
    assert [v for _, name, v in page.attributes if name == "style"] == [
        "width:25.0%",
        "width:100.0%",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (120, "120"), (45_300, "45.3k"), (2e6, "2M"), (0, "0")]
)
def test_short_numbers(value, text):
    assert short_number(value) == text
