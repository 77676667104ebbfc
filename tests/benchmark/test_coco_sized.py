"""The generated annotation file is COCO's, as pycocotools and the reader see it."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO

from detector.benchmark.coco_sized import write_coco_sized, write_its_images
from detector.data.coco import read_coco


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path / "cache"))
    write_coco_sized(tmp_path / "a.json", num_images=12, num_annotations=300)
    return tmp_path / "a.json"


def test_every_record_is_sound_and_has_its_image(file):
    write_its_images(file.parent / "images", num_images=12)
    index = read_coco(file, file.parent / "images")
    assert len(index) == 12 and index.num_annotations == 300 and not index.skipped
    assert index.num_classes == 80 and index.has_masks and 0 < index.crowd.sum() < 20
    coco = COCO(str(file))
    for row in (0, 100, 299):
        record = coco.anns[int(index.annotation_ids[row])]
        x, y, width, height = record["bbox"]
        assert index.boxes[row] == pytest.approx([x, y, x + width, y + height])


def test_it_is_as_long_as_coco_and_always_the_same(file, tmp_path):
    assert 400 < file.stat().st_size / 300 < 650
    write_coco_sized(tmp_path / "b.json", num_images=12, num_annotations=300)
    assert (tmp_path / "b.json").read_bytes() == file.read_bytes()
    index = read_coco(file, file.parent, check_files=False)
    assert np.diff(index.vertex_offsets).mean() == pytest.approx(23, abs=6)
