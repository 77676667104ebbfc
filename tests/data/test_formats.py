"""Every format: an index written and read again is the same, as far as the format can hold it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.data.coco import read_coco
from detector.data.csv_table import read_csv
from detector.data.labelme import read_labelme
from detector.data.outlines import clip_ring, ellipse, join_rings, trace_bitmap
from detector.data.rings import ring_areas
from detector.data.via import read_via
from detector.data.voc import read_voc
from detector.data.writers.coco import coco_records, rings_to_rle
from detector.data.writers.formats import FORMATS
from detector.data.writers.image_files import place_images, placed_names
from detector.data.yolo import read_yolo
from tests.data.photos import masks_of, objects

READERS = {
    "coco": lambda root, _: read_coco(root / "annotations/val.json", root / "val"),
    "voc": lambda root, names: read_voc([(root / "val", "val")], names),
    "yolo": lambda root, _: read_yolo(root / "data.yaml", "val"),
    "csv": lambda root, names: read_csv(root / "val.csv", root / "val", names),
    "labelme": lambda root, names: read_labelme(root / "val", names),
    "via": lambda root, names: read_via(root / "val/via_region_data.json", root / "val", names),
}
ARRAYS = (
    "image_ids", "widths", "heights", "annotation_offsets", "boxes", "labels", "crowd",
    "ring_offsets", "vertex_offsets", "vertices",
)  # fmt: skip


@pytest.fixture
def index(coco_folder):
    """Polygons of one and two parts, a run-length encoding with a hole, a box, a crowd region."""
    hole = np.zeros((32, 20), np.uint8, order="F")
    hole[4:14, 3:15] = 1
    hole[7:9, 6:10] = 0
    counts = coco_mask.encode(hole)["counts"].decode()
    coco_folder.data["images"].sort(key=lambda image: image["id"])  # as files are listed
    segmentation = {"size": [32, 20], "counts": counts}
    coco_folder.data["annotations"] += [
        coco_folder.annotation(30, 7, 90, [3, 4, 12, 10], segmentation),
        coco_folder.annotation(31, 1, 90, [0.3, 1.7, 10.25, 3.01], []),
    ]
    return coco_folder.read()


def convert(index, form, root, way="copy"):
    names = placed_names(index)
    place_images(index, names, root / FORMATS[form].images.format(split="val"), way)
    notes = FORMATS[form].write(index, names, root, "val")
    return READERS[form](root, index.category_names), notes


@pytest.mark.parametrize("form", ["coco", "csv"])
def test_nothing_is_lost(index, form, tmp_path, rasterize):
    again, notes = convert(index, form, tmp_path / "out")
    assert notes == []
    assert again.category_names == index.category_names
    masks = zip(masks_of(again, rasterize), masks_of(index, rasterize), strict=True)
    assert all(np.array_equal(one, other) for one, other in masks)
    # CSV joins the hole to its ring by a bridge.
    exact = ARRAYS if form == "coco" else ARRAYS[:-2]
    for name in exact:
        if form == "csv" and name == "ring_offsets":
            continue
        assert np.array_equal(getattr(again, name), getattr(index, name)), name
    if form == "coco":
        assert np.array_equal(again.annotation_ids, index.annotation_ids)
        assert np.array_equal(again.category_ids, index.category_ids)


def test_voc_keeps_boxes_and_says_that_masks_are_lost(index, tmp_path):
    again, notes = convert(index, "voc", tmp_path / "out")
    for name in ("image_ids", "widths", "heights", "annotation_offsets", "labels", "crowd"):
        assert np.array_equal(getattr(again, name), getattr(index, name)), name
    assert np.allclose(again.boxes, index.boxes, atol=1e-5)  # ten digits, plus and minus 1
    assert notes == ["VOC has boxes only: masks are lost (5 objects, first annotation 11 of 1.png)"]


def test_voc_leaves_out_boxes_it_cannot_hold(coco_folder, tmp_path):
    coco_folder.data["annotations"].append(coco_folder.annotation(40, 4, 3, [2, 2, 0.9, 5], []))
    again, notes = convert(coco_folder.read(), "voc", tmp_path / "out")
    assert again.num_annotations == 4
    assert any("up to a pixel wide or high: left out (1 object, first" in note for note in notes)


@pytest.mark.parametrize("form", ["yolo", "labelme", "via"])
def test_masks_and_their_extents_remain(index, form, tmp_path, rasterize):
    again, notes = convert(index, form, tmp_path / "out")
    kept = ~index.crowd if form == "yolo" else np.ones(len(index.crowd), bool)
    assert np.array_equal(again.image_ids, index.image_ids)
    assert [again.category_names[label] for label in again.labels] == [
        index.category_names[label] for label in index.labels[kept]
    ]
    assert np.array_equal(again.crowd, index.crowd[kept])
    assert np.allclose(again.boxes, index.boxes[kept], atol=1e-4)  # nine digits of fractions
    expected = [mask for mask, keep in zip(masks_of(index, rasterize), kept, strict=True) if keep]
    for one, other in zip(masks_of(again, rasterize), expected, strict=True):
        # Fractions of 9 digits may move an edge over a pixel's centre that it runs through.
        assert (one != other).sum() <= (2 if form == "yolo" else 0)
    if form == "yolo":
        assert notes == [
            "YOLO has no crowd regions or difficult objects: left out "
            "(1 object, first annotation 19 of 7.png)"
        ]
    else:
        assert notes == []


def test_a_box_that_is_not_the_extent_is_told(coco_folder, tmp_path):
    coco_folder.data["annotations"][0]["bbox"] = [2, 6, 13, 8]
    for form in ("yolo", "labelme", "via"):
        _, notes = convert(coco_folder.read(), form, tmp_path / form)
        [note] = [note for note in notes if "extent" in note]
        assert "boxes change (1 object, first annotation 11 of 1.png)" in note


def test_polygons_end_at_the_border_where_boxes_are_extents(coco_folder, tmp_path):
    square = coco_folder.data["annotations"][0]
    square["segmentation"], square["bbox"] = [[-9, -9, 9, -9, 9, 9, -9, 9]], [0, 0, 9, 9]
    for form in ("yolo", "labelme", "via"):
        again, _ = convert(coco_folder.read(), form, tmp_path / form)
        assert again.boxes[0].tolist() == [0, 0, 9, 9]


def test_real_masks_survive_every_format(test_data, tmp_path, rasterize):
    folder = test_data / "fruits_nuts"
    index = read_coco(folder / "trainval.json", folder / "images")
    index = index.keep_images(np.arange(len(index)) < 3)
    for form in ("coco", "csv", "labelme", "via", "yolo"):
        again, _ = convert(index, form, tmp_path / form, "hardlink")
        assert np.abs(again.boxes - index.boxes).max() < 1e-3 + (form not in ("coco", "csv"))
        if form != "yolo":
            assert np.array_equal(again.vertices, index.vertices)
        else:
            assert np.abs(again.vertices - index.vertices).max() < 1e-3


def test_written_areas_are_those_of_pycocotools(index):
    _, annotations, _ = coco_records(index)
    sizes = {int(i): (int(h), int(w)) for i, h, w in
             zip(index.image_ids, index.heights, index.widths, strict=True)}  # fmt: skip
    for record in annotations:
        mask = record.get("segmentation")
        if isinstance(mask, dict):
            assert record["area"] == coco_mask.area(mask)
        elif mask:
            height, width = sizes[record["image_id"]]
            runs = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
            assert record["area"] == coco_mask.area(runs)  # corners lie on pixels


def test_runs_of_rings_are_those_of_pycocotools():
    rng = np.random.default_rng(5)
    for size in ((1, 1), (7, 9), (16, 5)):
        for _ in range(20):
            bitmap = rng.random(size) < 0.6
            if not bitmap.any():
                continue
            rings = _rings_of(bitmap)
            expected = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
            assert rings_to_rle(rings, *size)["counts"] == expected["counts"].decode()


def _rings_of(bitmap):
    from detector.data.rings import trace_runs

    flat = np.concatenate([[False], bitmap.ravel(order="F"), [False]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], borders, [bitmap.size]]))
    height, width = bitmap.shape
    rings = trace_runs(counts, np.array([0, len(counts)]), np.array([height]), np.array([width]))
    return np.split(rings.vertices.astype(np.float64), rings.vertex_offsets[1:-1])


def test_bridges_cover_nothing(rasterize):
    rng = np.random.default_rng(3)
    for _ in range(20):
        bitmap = rng.random((9, 12)) < 0.5
        bitmap[4, 4] = True
        assert np.array_equal(rasterize(trace_bitmap(bitmap), 9, 12), bitmap)
        joined = join_rings(_rings_of(bitmap))
        assert np.array_equal(rasterize([joined], 9, 12), bitmap)
        assert ring_areas(joined, np.array([0, len(joined)]))[0] == bitmap.sum()


def test_a_clipped_ring_covers_the_same_of_the_image(rasterize):
    rng = np.random.default_rng(4)
    for _ in range(40):
        ring = rng.uniform(-12, 24, (7, 2))
        clipped = clip_ring(ring, 12, 9)
        assert ((clipped >= 0) & (clipped <= (12, 9))).all()
        expected = rasterize([ring], 9, 12)
        found = rasterize([clipped], 9, 12) if len(clipped) else np.zeros_like(expected)
        assert np.array_equal(found, expected)


def test_an_ellipse_has_its_area_and_direction():
    ring = np.array(ellipse((10, 20), (6, 2), np.pi / 2)).reshape(-1, 2)
    assert ring.min(axis=0) == pytest.approx([8, 14]) and ring.max(axis=0) == pytest.approx(
        [12, 26]
    )
    assert ring_areas(ring, np.array([0, 64]))[0] == pytest.approx(np.pi * 12, rel=0.003)


def test_what_other_tools_expect_of_the_files(index, tmp_path):
    for form in ("csv", "labelme", "via", "yolo"):
        convert(index, form, tmp_path / form)
    with open(tmp_path / "csv/val.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "x1", "y1", "x2", "y2", "label", "polygon", "crowd"]
    assert rows[1] == ["1.png", "5.0", "6.0", "15.0", "14.0", "cat",
                       "5.0 6.0 15.0 6.0 15.0 14.0 5.0 14.0", "0"]  # fmt: skip
    assert ["4.png", "", "", "", "", "", "", ""] in rows
    shapes = json.loads((tmp_path / "labelme/val/1.json").read_text())["shapes"]
    assert [shape["group_id"] for shape in shapes] == [None, 2, 2, None]
    assert shapes[-1]["shape_type"] == "rectangle"
    lines = (tmp_path / "yolo/labels/val/1.txt").read_text().splitlines()
    assert lines[0] == "1 0.125 0.2 0.375 0.2 0.375 0.466666667 0.125 0.466666667"
    assert len(lines[2].split()) == 5
    assert (tmp_path / "yolo/labels/val/4.txt").read_text() == ""


def test_names_that_differ_in_folders_or_suffix_only(index):
    def named(*names):
        encoded = [name.encode() for name in names]
        index.file_name_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        index.file_name_offsets = np.cumsum([0, *map(len, encoded)])
        return placed_names(index)

    assert named("a/1.png", "a/2.png", "b/3.png") == ["1.png", "2.png", "3.png"]
    assert named("a/1.png", "b/1.png", "b/3.png") == ["a__1.png", "b__1.png", "b__3.png"]
    with pytest.raises(ValueError, match="two images would be called a__1"):
        named("a/1.png", "a/1.jpg", "b/3.png")


def test_objects_are_those_of_the_file(index):
    assert objects(index, 0)[0] == (
        "cat", [5, 6, 15, 14], [[[5, 6], [15, 6], [15, 14], [5, 14]]], False
    )  # fmt: skip
