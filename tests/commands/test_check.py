"""The doctor and the browser of samples through the tool, with the anchors of a recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from detector.commands.data import data
from tests.commands.test_data import compose
from tests.report.page_reader import check_page


def test_the_doctor_finds_the_two_boxes_without_area_of_bccd(test_data, tmp_path, capsys):
    root = test_data / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    words = ["experiment=bccd", f"data.root={root}", f"output={tmp_path}"]
    data(compose("action=check", *words))
    found = {f["kind"]: f for f in json.loads((tmp_path / "check.json").read_text())["findings"]}
    records = found["damaged_record"]["records"]
    assert [(record["where"], record["what"]) for record in records] == [
        (
            'train: image Annotations/BloodImage_00338.xml, object 13 ("RBC")',
            "bndbox (504, 337, 504, 337) has no area",
        ),
        (
            'train: image Annotations/BloodImage_00343.xml, object 4 ("RBC")',
            "bndbox (181, 329, 181, 329) has no area",
        ),
    ]
    assert [record["spots"][0]["boxes"] for record in records] == [
        [[503.0, 336.0, 504.0, 337.0]],
        [[180.0, 328.0, 181.0, 329.0]],
    ]
    page = check_page((tmp_path / "check.html").read_text())
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert names[:2] == [
        "train: JPEGImages/BloodImage_00338.jpg",
        "train: JPEGImages/BloodImage_00343.jpg",
    ]
    said = capsys.readouterr().out
    assert "Damaged records (2)" in said and "data.on_error=skip).\n" not in said


def test_a_good_set_needs_no_folder(shapes_root, capsys):
    words = ["experiment=shapes", f"data.root={shapes_root}", "data.prepare=null"]
    data(compose("action=check", *words, "split=val"))
    said = capsys.readouterr().out
    assert "output=FOLDER writes a page" in said and "error" not in said


def test_what_training_sees_is_shown(shapes_root, tmp_path):
    words = ["experiment=shapes", f"data.root={shapes_root}", "data.prepare=null"]
    words += [f"output={tmp_path}", "num_images=2", "looks=2", "mask_size=14"]
    data(compose("action=browse", *words))
    page = check_page((tmp_path / "browse.html").read_text())
    files = sorted(tmp_path.glob("*_epoch?.jpg"))
    assert len(files) == 4
    first, second = (np.asarray(Image.open(file)) for file in files[:2])
    assert first.shape == second.shape and (first != second).mean() > 0.1
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert sum(name.endswith("the file") for name in names) == 2
    assert any(name.startswith("mask target of ") for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["action=check", "split=test"], "split=test is not known"),
        (["action=browse", "output=x", "looks=0"], "looks=0 must be a whole number"),
        (["action=download", "output=x", "dataset=imagenet"], "dataset=imagenet is not known"),
    ],
)
def test_mistakes_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        data(compose(*words))
