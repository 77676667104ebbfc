"""Labelme files become the index: every shape, groups, and every kind of damage."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from detector.data.labelme import LabelmeDataset, read_labelme
from tests.data.photos import objects, write_photo

SQUARE = [[5, 6], [15, 6], [15, 14], [5, 14]]


def shape(label="cat", kind="polygon", points=SQUARE, **more):
    return {"label": label, "shape_type": kind, "points": points, "group_id": None} | more


def encoded(bitmap) -> str:
    file = io.BytesIO()
    Image.fromarray((np.asarray(bitmap) * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Folder:
    """A folder with one image of 40x30."""

    def __init__(self, root):
        self.root = root
        write_photo(root / "a.jpg")

    def read(self, *shapes, on_error="raise", classes=None, **changes):
        content = {
            "imagePath": "a.jpg",
            "imageWidth": 40,
            "imageHeight": 30,
            "shapes": list(shapes),
        }
        (self.root / "a.json").write_text(json.dumps(content | changes))
        return read_labelme(self.root, classes, on_error)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "set")


def test_polygons_rectangles_and_groups(folder):
    other = [[20, 1], [25, 1], [25, 9]]
    index = folder.read(
        shape("dog", "rectangle", [[9, 8], [2, 3]]),
        shape(group_id=1),
        shape("cat", points=other, group_id=1),
        shape("dog", group_id=1, flags={"crowd": True}),
    )
    assert objects(index, 0) == [
        ("dog", [2, 3, 9, 8], [], False),
        ("cat", [5, 1, 25, 14], [SQUARE, other], False),
        ("dog", [5, 6, 15, 14], [SQUARE], True),
    ]
    assert index.category_names == ["cat", "dog"]


def test_circles_and_masks(folder, rasterize):
    bitmap = np.ones((6, 5), bool)
    bitmap[2, 2] = False
    index = folder.read(
        shape(kind="circle", points=[[20, 15], [20, 20]]),
        shape(kind="mask", points=[[3, 4], [7, 9]], mask=encoded(bitmap)),
    )
    (_, circle, _, _), (_, box, rings, _) = objects(index, 0)
    assert circle == pytest.approx([15, 10, 25, 20]) and box == [3, 4, 8, 10]
    expected = np.zeros((30, 40), bool)
    expected[4:10, 3:8] = bitmap
    assert np.array_equal(rasterize([np.array(ring) for ring in rings], 30, 40), expected)


def test_folders_below_and_paths_of_windows(folder):
    write_photo(folder.root / "sub/b.png")
    content = {"imagePath": "..\\sub\\b.png", "imageWidth": 40, "imageHeight": 30, "shapes": []}
    (folder.root / "sub/b.json").write_text(json.dumps(content))
    index = folder.read(shape())
    assert [index.file_name(0), index.file_name(1)] == ["a.jpg", "sub/b.png"]


def test_labels_txt_orders_the_classes(folder):
    (folder.root.parent / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    folder.read(shape())
    dataset = LabelmeDataset("set", root=folder.root.parent)
    assert dataset.index.category_names == ["dog", "cat"] and dataset[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (shape(kind="line"), "a.json, shape 1: it is a line of 4 points; draw polygons"),
        (shape(kind="circle"), "it is a circle of 4 points"),
        (shape(points=[[1, 2], [3, 4]]), "2 vertices, fewer than 3"),
        (shape(points=[[1, 2], [3, 4], [5, 6]]), "a degenerate polygon, it has no area"),
        (shape(points=[[1, 2], [3, "x"], [5, 9]]), "points are not pairs of finite numbers"),
        (shape(points=[[1, 2], [3, float("nan")], [5, 9]]), "not pairs of finite numbers"),
        (shape(points=None), "not pairs of finite numbers"),
        (shape(label=None), "it has no class"),
        (shape(points=[[1, 2], [50, 4], [5, 9]]), "reaches outside the 40x30 image"),
        (shape(kind="mask", points=[[1, 2], [3, 4]], mask="???"), "its mask is no base64"),
        (shape(kind="mask", points=[[1, 2], [3, 4]], mask="abcd"), "its mask is no image"),
        (shape(kind="mask", points=[[1, 2], [3, 4]], mask=encoded(np.zeros((3, 3)))), "empty"),
        (shape(kind="mask", points=[[1, 2], [3, 4]], mask=encoded(np.ones((99, 3)))), "larger"),
        ("text", "it is no JSON object"),
    ],
)
def test_damaged_shapes_are_refused_or_skipped(folder, damaged, message):
    with pytest.raises(ValueError, match=message):
        folder.read(damaged, shape("dog"))
    index = folder.read(damaged, shape("dog"), on_error="skip")
    assert index.num_annotations == 1 and len(index.skipped) == 1


def test_a_rectangle_in_a_group_of_polygons_is_refused(folder):
    with pytest.raises(ValueError, match="shape 1 and 2: a rectangle is grouped with polygons"):
        folder.read(shape(group_id=1), shape(kind="rectangle", points=SQUARE[:2], group_id=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagePath": ""}, "image of a.json: it names no imagePath"),
        ({"imageWidth": "40"}, "imageWidth is '40' and imageHeight 30; set the size in pixels"),
        ({"imageWidth": -40}, "its size is -40x30"),
        ({"imageWidth": 41}, "a.jpg is 40x30 but the annotations say 41x30"),
        ({"shapes": None}, 'there is no list "shapes"'),
        ({"imagePath": "none.jpg"}, "no file .*none.jpg"),
    ],
)
def test_damaged_files_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        folder.read(shape(), **changes)


def test_files_that_are_no_labelme_files(folder):
    folder.read(shape())
    for text, message in (("[]", "it is no Labelme file"), ("{", "it is no JSON")):
        (folder.root / "b.json").write_text(text)
        with pytest.raises(ValueError, match=f"image of b.json: {message}"):
            read_labelme(folder.root)
        assert len(read_labelme(folder.root, on_error="skip")) == 1
    (folder.root / "b.json").write_text((folder.root / "a.json").read_text())
    with pytest.raises(ValueError, match=r"a\.json annotates a\.jpg too; remove one"):
        read_labelme(folder.root)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of Labelme files"):
        read_labelme(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no JSON file"):
        read_labelme(tmp_path)
