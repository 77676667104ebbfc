"""Tables become the index: columns, empty images, polygons, and every kind of damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detector.data.class_names import choose_classes
from detector.data.csv_table import CSVDataset, read_csv
from tests.data.photos import objects, write_photo

HEADER = "image,x1,y1,x2,y2,label,polygon,crowd\n"
GOOD = "a.jpg,5,6,15,14,cat,,\n"


class Table:
    """A table with two images of 40x30."""

    def __init__(self, root):
        self.root = root
        for name in ("a", "b"):
            write_photo(root / f"images/{name}.jpg")

    def read(self, text, on_error="raise", classes=None):
        (self.root / "table.csv").write_text(text)
        return read_csv(self.root / "table.csv", self.root / "images", classes, on_error)


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path)


def test_columns_in_any_order_and_others_beside(table):
    text = "label,note,image,x2,y2,x1,y1\nzebra,x,b.jpg,15.5,14,5,6\ncat,,b.jpg,4,4,0,0\n"
    index = table.read(text)
    assert objects(index, 0) == [
        ("zebra", [5, 6, 15.5, 14], [], False),
        ("cat", [0, 0, 4, 4], [], False),
    ]
    assert index.category_names == ["cat", "zebra"] and len(index) == 1


def test_polygons_crowd_regions_and_images_without_objects(table):
    text = (
        HEADER
        + 'a.jpg,,,,,cat,"5 6 15 6 15 14; 20 1 25 1 25 9",0\na.jpg,0,0,9,9,cat,,1\nb.jpg,,,,,,,\n'
    )
    index = table.read(text)
    first = (
        "cat",
        [5, 1, 25, 14],
        [[[5, 6], [15, 6], [15, 14]], [[20, 1], [25, 1], [25, 9]]],
        False,
    )
    assert objects(index, 0) == [first, ("cat", [0, 0, 9, 9], [], True)]
    assert objects(index, 1) == []


def test_classes_from_the_setting_or_a_file(table):
    assert table.read(HEADER + GOOD, classes=["dog", "cat"]).labels.tolist() == [1]
    (table.root / "classes.txt").write_text("dog\n\ncat \n")
    dataset = CSVDataset("table.csv", "images", root=table.root)
    assert dataset.index.category_names == ["dog", "cat"]
    (table.root / "other.txt").write_text("cat\n")
    dataset = CSVDataset("table.csv", "images", "other.txt", root=table.root)
    assert dataset.index.category_names == ["cat"] and len(dataset[0]) == 1
    with pytest.raises(FileNotFoundError, match="no such file of classes"):
        choose_classes("none.txt", table.root)
    for names in ([], ["cat", "cat"], ["cat", 3], [" "]):
        with pytest.raises(ValueError, match="classes"):
            choose_classes(names, table.root)


def test_the_file_of_classes_is_found_in_a_relative_folder(table, monkeypatch):
    (table.root / "labels.txt").write_text("dog\ncat\n")
    monkeypatch.chdir(table.root.parent)
    assert choose_classes(None, Path(table.root.name)) == ["dog", "cat"]
    assert choose_classes("labels.txt", Path(table.root.name)) == ["dog", "cat"]


def test_a_second_reading_parses_nothing_until_something_changes(table, monkeypatch):
    import detector.data.csv_table as csv_table

    table.read(HEADER + GOOD)
    calls = []
    parse = csv_table._parse_rows
    monkeypatch.setattr(csv_table, "_parse_rows", lambda *a: calls.append(1) or parse(*a))
    table.read(HEADER + GOOD)
    assert not calls
    write_photo(table.root / "images/a.jpg", (80, 60))
    assert table.read(HEADER + GOOD).widths.tolist() == [80] and calls == [1]
    os.utime(table.root / "images/a.jpg", (1, 1))
    table.read(HEADER + GOOD)
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,5,6,15,x,cat,,", r"line 2, image a.jpg: its box \(5, 6, 15, x\) is not made of"),
        ("a.jpg,5,6,15,,cat,,", "its box .5, 6, 15, nothing. is not made of numbers"),
        ("a.jpg,5,6,5,14,cat,,", r"box \(5, 6, 5, 14\) has no area; correct the box or remove"),
        ("a.jpg,5,6,4,14,cat,,", "has no area"),
        ("a.jpg,5,6,nan,14,cat,,", "is not finite"),
        ("a.jpg,5,6,45,14,cat,,", "reaches outside the 40x30 image"),
        ("a.jpg,5,6,15,14,,,", "it has no class; give it the name of a class"),
        ("a.jpg,5,6,15,14,cat,1 2 3 4,", "2 vertices, fewer than 3"),
        ("a.jpg,5,6,15,14,cat,1 2 3 4 5,", "5 numbers, not x, y pairs"),
        ("a.jpg,5,6,15,14,cat,1 2 3 x 5 6,", "its polygon .1, 2, 3, x, 5, 6. is not made"),
        ("a.jpg,5,6,15,14,cat,20 20 30 20 30 29,", "do not overlap"),
        ("a.jpg,5,6,15,14,cat,,yes", 'crowd is "yes"; set it to 0 or 1'),
        ("none.jpg,5,6,15,14,cat,,", r"image none.jpg \(line 2\): no file .*none.jpg"),
        (",5,6,15,14,cat,,", "no image file; write its name into the column image"),
    ],
)  # fmt: skip
def test_damaged_lines_are_refused_or_skipped(table, line, message):
    text = HEADER + line + "\nb.jpg,1,1,9,9,cat,,\n"
    with pytest.raises(ValueError, match=message):
        table.read(text)
    index = table.read(text, "skip")
    assert index.num_annotations == 1 and len(index.skipped) == 1


def test_an_unknown_class_is_refused(table):
    with pytest.raises(ValueError, match=r'no such class as "cat"; .* now dog'):
        table.read(HEADER + GOOD, classes=["dog"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first line names no column image, x1, y1, x2, y2, label"),
        (b"image,x1,y1,x2,y2\n", "names no column label"),
        (b"image,x1,y1,x2,y2,label\n", "empty dataset"),
        (b"image,x1,y1,x2,y2,label\na.jpg,,,,,\n", "empty dataset, no usable annotation"),
        (b"\xff\xff", "not a CSV file in UTF-8"),
    ],
)
def test_a_wrong_table_is_refused(table, content, message):
    (table.root / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_csv(table.root / "table.csv", table.root / "images")


def test_missing_files_are_named(table):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such table"):
        read_csv(table.root / "none.csv", table.root / "images")
    (table.root / "table.csv").write_text(HEADER)
    with pytest.raises(FileNotFoundError, match="none: no such image folder"):
        read_csv(table.root / "table.csv", table.root / "none")
