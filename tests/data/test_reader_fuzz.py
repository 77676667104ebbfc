"""Whatever bytes a dataset holds, readers give an index or say what is wrong, as documented."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data.coco import read_coco
from detector.data.csv_table import read_csv
from detector.data.labelme import read_labelme
from detector.data.lvis import read_lvis
from detector.data.via import read_via
from detector.data.voc import read_voc
from detector.data.yolo import read_yolo
from tests.data.photos import write_photo

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
IMAGE = {"id": 1, "file_name": "a.png", "width": 20, "height": 16, "neg_category_ids": [3],
         "not_exhaustive_category_ids": []}  # fmt: skip
ANNOTATION = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 9], "iscrowd": 0,
              "segmentation": [[1, 2, 9, 2, 9, 11]], "area": 36}  # fmt: skip
RUNS = {"id": 6, "image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 16], "iscrowd": 1,
        "segmentation": {"size": [16, 20], "counts": [0, 48, 272]}}  # fmt: skip
COCO = {
    "images": [IMAGE],
    "annotations": [ANNOTATION, RUNS],
    "categories": [{"id": 3, "name": "cat"}],
}
SHAPE = {
    "label": "cat",
    "points": [[1, 2], [9, 2], [9, 11]],
    "shape_type": "polygon",
    "group_id": 1,
}
LABELME = {"imagePath": "a.png", "imageWidth": 20, "imageHeight": 16, "shapes": [SHAPE, SHAPE]}
REGION = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
          "region_attributes": {"kind": "cat"}}  # fmt: skip
VIA = {"a": {"filename": "a.png", "size": 1, "regions": [REGION]}}

# Each format: the file that is damaged, its proper content, and how the dataset is read.
FORMATS = {
    "coco": ("f.json", COCO, lambda root: read_coco(root / "f.json", root, "skip")),
    "lvis": ("f.json", COCO, lambda root: read_lvis(root / "f.json", root, "skip")),
    "labelme": ("set/a.json", LABELME, lambda root: read_labelme(root / "set", None, "skip")),
    "via": ("f.json", VIA, lambda root: read_via(root / "f.json", root, on_error="skip")),
    "via_csv": (
        "f.csv",
        '#filename,region_shape_attributes,region_attributes\na.png,"{""name"":""rect"",""x"":1,'
        '""y"":2,""width"":3,""height"":4}","{""kind"":""cat""}"\n',
        lambda root: read_via(root / "f.csv", root, on_error="skip"),
    ),
    "csv": (
        "f.csv",
        'image,x1,y1,x2,y2,label,polygon\na.png,1,2,9,8,cat,"1 2 9 2 9 8"\na.png,1,2,9,8,dog,\n',
        lambda root: read_csv(root / "f.csv", root, on_error="skip"),
    ),
    "yolo": (
        "labels/a.txt",
        "0 .5 .5 .2 .2\n1 .1 .1 .5 .1 .5 .8\n",
        lambda root: read_yolo(root / "data.yaml", "train", "skip"),
    ),
    "yolo_yaml": (
        "data.yaml",
        "path: .\ntrain: images\nnames: {0: cat, 1: dog}\nnc: 2\n",
        lambda root: read_yolo(root / "data.yaml", "train", "skip"),
    ),
    "voc": (
        "Annotations/a.xml",
        "<annotation><size><width>20</width><height>16</height></size><object><name>cat</name>"
        f"<difficult>0</difficult>{BOX}</object><object><name>cat</name>{BOX}</object></annotation>",
        lambda root: read_voc([(root, "all")], ["cat"], "skip"),
    ),
    "voc_split": (
        "ImageSets/Main/all.txt",
        "a\nb\n",
        lambda root: read_voc([(root, "all")], ["cat"], "skip"),
    ),
}  # fmt: skip

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 10**400, -1, 0, 1e308, -0.0])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["id", "counts", "size", "name", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)
HARD = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # the same cases on every machine
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Makes a sound dataset of a format, anew in one folder, and reads it with one file damaged."""
    root = tmp_path_factory.mktemp("set")
    for name in ("a.png", "images/a.png", "JPEGImages/a.jpg", "set/a.png"):
        write_photo(root / name, (20, 16))
    for name in ("labels", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)

    def read(form: str, content: bytes) -> None:
        for other in ("yolo", "yolo_yaml", "voc", "voc_split"):
            name, text, _ = FORMATS[other]
            (root / name).write_text(text)
        name, _, reader = FORMATS[form]
        (root / name).write_bytes(content)
        try:
            with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
                patch.setenv("DETECTOR_CACHE", cache)
                index = reader(root)
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error), "an error names the file"
            return
        check(index)

    return read


def check(index):
    """What every index promises."""
    assert len(index) > 0 and (~index.crowd).any()
    image = np.repeat(np.arange(len(index)), np.diff(index.annotation_offsets))
    assert (index.boxes[:, :2] >= 0).all() and (index.boxes[:, 2:] > index.boxes[:, :2]).all()
    assert (index.boxes[:, 2] <= index.widths[image]).all()
    assert (index.boxes[:, 3] <= index.heights[image]).all()
    assert ((index.labels >= 0) & (index.labels < index.num_classes)).all()
    assert np.isfinite(index.vertices).all()
    assert index.ring_offsets[-1] == len(index.vertex_offsets) - 1
    assert index.vertex_offsets[-1] == len(index.vertices)


def dump(data) -> bytes:
    return json.dumps(data).encode() if isinstance(data, dict) else data.encode()


@pytest.mark.parametrize("form", FORMATS)
def test_sound_files_are_read(dataset, form):
    dataset(form, dump(FORMATS[form][1]))


@pytest.mark.parametrize("form", FORMATS)
@HARD
@given(data=st.data())
def test_damaged_bytes(dataset, form, data):
    content = bytearray(dump(FORMATS[form][1]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        length = data.draw(st.sampled_from([0, 1, 3, 20]))
        content[place : place + length] = data.draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [b"-", b"9" * 30, b"1e999", b"nan", b"\x00", b'"', b"[", b"}", b"\n"]
                ),
            )
        )
    dataset(form, bytes(content))


@pytest.mark.parametrize("form", FORMATS)
@settings(HARD, max_examples=20)
@given(content=st.binary(max_size=60))
def test_random_bytes(dataset, form, content):
    dataset(form, content)


@pytest.mark.parametrize("form", ["coco", "lvis", "labelme", "via"])
@HARD
@given(data=st.data())
def test_mutated_json(dataset, form, data):
    """A random place of the tree gets another value, or is lost, or stands twice."""
    tree = json.loads(json.dumps(FORMATS[form][1]))
    for _ in range(data.draw(st.integers(1, 2))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            child = node[key]
            if isinstance(child, dict | list) and child and data.draw(st.integers(0, 4)):
                node = child
                continue
            action = data.draw(st.sampled_from(["change", "change", "change", "drop", "twice"]))
            if action == "change":
                node[key] = data.draw(VALUES)
            elif action == "drop":
                del node[key]
            elif isinstance(node, list):
                node.append(child)
            break
    dataset(form, json.dumps(tree).encode())
