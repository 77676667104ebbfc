"""The row of the annotation index measures starts of the same file, ours mapped the second time."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from detector.benchmark import index_rows


def test_the_report_compares_starts_of_one_file(monkeypatch):
    monkeypatch.setattr(index_rows, "SETTLE_SECONDS", 0.0)
    text = StringIO()
    console = Console(file=text, width=120)
    report = index_rows.measure_index(1, console, num_images=8, num_annotations=40)
    assert (report["images"], report["annotations"]) == (8, 40)
    theirs, first, again = report["rows"]
    assert theirs["side"] == index_rows.THEIRS
    assert report["first_ratio"] == theirs["seconds"] / first["seconds"]
    assert report["second_cpu_ratio"] == theirs["cpu_seconds"] / again["cpu_seconds"]
    assert min(row["peak_bytes"] for row in report["rows"]) > 0
    assert report["worker_bytes"] is None or report["worker_bytes"] < 20 * 2**20
    assert json.loads(json.dumps(report)) == report
    assert "40 annotations of 8 images" in text.getvalue()


def test_a_sample_that_fails_is_no_figure(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RuntimeError, match="not a JSON file"):
        index_rows._run("ours", tmp_path / "a.json", tmp_path / "cache")
