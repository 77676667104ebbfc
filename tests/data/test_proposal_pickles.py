"""Proposals as Detectron2 and Detectron wrote them."""

import enum
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image

from detector.data.coco import read_coco
from detector.data.proposals import ProposalFile

# Of images 3 and 7, which are 40 pixels wide and 30 high; best last.
BOXES = [
    np.array([[10, 10, 30, 20]], np.float32),
    np.array([[5.5, 6, 20, 25], [-3, 0, 45, 30]], np.float32),
]
SCORES = [np.array([0.7], np.float32), np.array([-1.5, 2.5], np.float32)]
EXPECTED = {3: [[10, 10, 30, 20]], 7: [[0, 0, 40, 30], [5.5, 6, 20, 25]]}


@pytest.fixture
def index(tmp_path):
    images = []
    for image_id in (3, 7):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 30, "width": 40})
    annotations = [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [4, 4, 10, 10]}]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "instances.json", tmp_path)


def write(path, protocol=2, **changes):
    content = {"ids": [3, 7], "boxes": BOXES, "objectness_logits": SCORES, **changes}
    content = {key: value for key, value in content.items() if value is not None}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def check(path, index) -> None:
    proposals = ProposalFile(path, index, 2000)
    for position, image_id in enumerate((3, 7)):
        boxes, scores = proposals(position)
        assert boxes.dtype == scores.dtype == np.float32
        assert boxes.tolist() == EXPECTED[image_id]
        assert scores.tolist() == sorted(scores, reverse=True)
    assert ProposalFile(path, index, 1)(1)[0].tolist() == [[0, 0, 40, 30]]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_best_first_and_clipped(protocol, index, tmp_path):
    check(write(tmp_path / "p.pkl", protocol), index)


def test_other_names_orders_and_modes(index, tmp_path):
    check(write(tmp_path / "p.pkl", ids=["3", "000000000007"]), index)
    check(write(tmp_path / "p.pkl", ids=np.array([7, 3]), boxes=BOXES[::-1],
                objectness_logits=SCORES[::-1]), index)  # fmt: skip
    detectron = {"ids": None, "indexes": [3, 7], "objectness_logits": None, "scores": SCORES}
    check(write(tmp_path / "p.pkl", **detectron), index)
    sizes = [np.hstack((b[:, :2], b[:, 2:] - b[:, :2])) for b in BOXES]
    check(write(tmp_path / "p.pkl", boxes=sizes, bbox_mode=1), index)
    more = [*BOXES, np.zeros((0, 4), np.float32)]  # of an image that the dataset lacks
    check(write(tmp_path / "p.pkl", ids=[3, 7, 9], boxes=more,
                objectness_logits=[*SCORES, np.zeros(0)]), index)  # fmt: skip


def test_the_mode_may_be_detectron2s_enumeration(index, tmp_path, monkeypatch):
    module = types.ModuleType("detectron2.structures.boxes")
    module.BoxMode = enum.IntEnum("BoxMode", [("XYXY_ABS", 0), ("XYWH_ABS", 1)])
    module.BoxMode.__module__ = module.__name__
    # By its value; Python 3.11 began with another way, by getattr and the name.
    module.BoxMode.__reduce_ex__ = lambda mode, protocol: (type(mode), (mode.value,))
    with monkeypatch.context() as patch:
        for name in ("detectron2", "detectron2.structures"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        path = write(tmp_path / "p.pkl", bbox_mode=module.BoxMode.XYXY_ABS)
    check(path, index)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_is_refused_and_not_run(index, tmp_path):
    path = write(tmp_path / "p.pkl", bbox_mode=RunsCode(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"p.pkl: refused.* (posix|nt).system"):
        ProposalFile(path, index, 2000)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "no boxes, it has ids, objectness_logits"),
        ({"boxes": BOXES[:1]}, "2 images, boxes of 1 and scores of 2"),
        ({"boxes": [BOXES[0], BOXES[0]]}, r"image 7 has boxes of shape \(1, 4\)"),
        ({"bbox_mode": 4}, "bbox_mode is 4"),
        ({"ids": ["a", "b"]}, "whole numbers"),
        ({"ids": [3, 4]}, r"no proposals for 1 of the 2 images .*\[7\]"),
        ({"boxes": [BOXES[0] * np.nan, BOXES[1]]}, "is NaN"),
        ({"ids": 3}, "ids is a int, expected a list"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, index, tmp_path):
    with pytest.raises(ValueError, match=message):
        ProposalFile(write(tmp_path / "p.pkl", **changes), index, 2000)


def test_cut_files_are_refused(index, tmp_path):
    path = write(tmp_path / "p.pkl")
    content = path.read_bytes()
    for length in (0, 1, 30, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"p.pkl is no file of proposals"):
            ProposalFile(path, index, 2000)
