"""VIA files become the index: projects, exported JSON and CSV, attributes, and every damage."""

from __future__ import annotations

import csv
import json

import pytest

from detector.data.via import VIADataset, read_via
from tests.data.photos import objects, write_photo

POLYGON = {"name": "polygon", "all_points_x": [5, 15, 15, 5], "all_points_y": [6, 6, 14, 14]}
RECT = {"name": "rect", "x": 2, "y": 3, "width": 7, "height": 5}
SQUARE = [[5, 6], [15, 6], [15, 14], [5, 14]]


def region(shape=POLYGON, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


class Project:
    """A VIA file with two images of 40x30, the second without regions."""

    def __init__(self, root):
        self.root = root
        for name in ("a", "b"):
            write_photo(root / f"{name}.jpg")

    def read(self, *regions, form="project", on_error="raise", classes=None, attribute=None):
        images = {
            "a.jpg1": {"filename": "a.jpg", "size": 1, "regions": list(regions)},
            "b.jpg1": {"filename": "b.jpg", "size": 1, "regions": []},
        }
        file = self.root / ("via.csv" if form == "csv" else "via.json")
        if form == "csv":
            self._write_csv(file, images)
        elif form == "old":
            for image in images.values():
                image["regions"] = {str(n): each for n, each in enumerate(image["regions"])}
            file.write_text(json.dumps(images))
        else:
            content = {"_via_img_metadata": images, "_via_settings": {}}
            file.write_text(json.dumps(content if form == "project" else images))
        return read_via(file, self.root, classes, attribute, on_error)

    def _write_csv(self, file, images):
        with open(file, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(
                ["#filename", "file_size", "file_attributes", "region_count", "region_id",
                 "region_shape_attributes", "region_attributes"]
            )  # fmt: skip
            for image in images.values():
                regions = image["regions"]
                for number, each in enumerate(regions or [region({})]):
                    words = [
                        json.dumps(each[key]) for key in ("shape_attributes", "region_attributes")
                    ]
                    writer.writerow([image["filename"], 1, "{}", len(regions), number, *words])


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize("form", ["project", "json", "old", "csv"])
def test_every_way_to_save_gives_the_same(project, form):
    index = project.read(region(kind="dog"), region(RECT, kind="cat", crowd="1"), form=form)
    assert objects(index, 0) == [
        ("dog", [5, 6, 15, 14], [SQUARE], False),
        ("cat", [2, 3, 9, 8], [], True),
    ]
    assert objects(index, 1) == [] and index.category_names == ["cat", "dog"]
    assert index.widths.tolist() == [40, 40]


def test_round_shapes(project):
    circle = {"name": "circle", "cx": 20, "cy": 15, "r": 5}
    ellipse = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 5, "ry": 2, "theta": 0}
    index = project.read(region(circle, kind="x"), region(ellipse, kind="x"))
    assert index.boxes.tolist() == [[15, 10, 25, 20], [15, 13, 25, 17]]


def test_checkboxes_and_a_named_attribute(project):
    boxes = region(kind={"cat": True, "dog": False}, colour="red")
    index = project.read(boxes, attribute="kind")
    assert index.category_names == ["cat"]


def test_one_class_needs_no_attribute(project):
    index = project.read(region(), classes=["balloon"])
    assert index.category_names == ["balloon"] and index.num_annotations == 1
    dataset = VIADataset("via.json", ".", ["balloon"], root=project.root)
    assert len(dataset[0]) == 1 and len(dataset[1]) == 0


def test_an_open_attribute_is_asked_for(project):
    with pytest.raises(ValueError, match="have the attributes colour, kind; name the one"):
        project.read(region(kind="cat", colour="red"))
    with pytest.raises(ValueError, match="have the attributes none"):
        project.read(region())


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (region({"name": "point", "cx": 1}, kind="x"), "image a.jpg, region 1: it is a 'point'"),
        (region(POLYGON | {"all_points_x": [1, 2]}, kind="x"), "its polygon has 2 x and 4 y"),
        (region(POLYGON | {"all_points_x": None}, kind="x"), "not made of finite numbers"),
        (region(RECT | {"width": 0}, kind="x"), "has no area"),
        (region(RECT | {"width": 70}, kind="x"), "reaches outside the 40x30 image"),
        (region(RECT | {"x": "2"}, kind="x"), "not made of finite numbers"),
        (region(kind=""), "it has no class"),
        (region(kind={"cat": True, "dog": True}), "it has no class"),
        ({"region_attributes": {"kind": "x"}}, "it has no shape_attributes"),
        (None, "it has no shape_attributes"),
    ],
)  # fmt: skip
def test_damaged_regions_are_refused_or_skipped(project, damaged, message):
    with pytest.raises(ValueError, match=message):
        project.read(damaged, region(kind="cat"))
    index = project.read(damaged, region(kind="cat"), on_error="skip")
    assert index.num_annotations == 1 and len(index.skipped) == 1


def test_damaged_images(project):
    (project.root / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"image b\.jpg: no file"):
        project.read(region(kind="cat"))
    assert len(project.read(region(kind="cat"), on_error="skip")) == 1
    write_photo(project.root / "b.jpg")
    assert len(project.read(region(kind="cat"))) == 2, "what was restored is there again"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.json", "{", "neither JSON nor CSV of VIA"),
        ("v.json", "[]", "no VIA project"),
        ("v.json", '{"a": {"filename": "a.jpg"}}', "its images have filename and regions"),
        ("v.json", '{"a": {"filename": "a.jpg", "regions": 3}}', "are no list"),
        ("v.json", "{}", "empty dataset, it names no image"),
        ("v.csv", "a,b\n", "it has no column filename"),
    ],
)
def test_a_wrong_file_is_refused(project, name, content, message):
    (project.root / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_via(project.root / name, project.root)


def test_missing_files_are_named(project):
    with pytest.raises(FileNotFoundError, match="no such VIA file"):
        read_via(project.root / "none.json", project.root)
    (project.root / "v.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        read_via(project.root / "v.json", project.root / "none")
