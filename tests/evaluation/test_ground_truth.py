"""The dataset's own JSON, read again for the evaluation."""

import json

import pytest
from PIL import Image

from detector.data.coco import read_coco
from detector.evaluation.ground_truth import load_ground_truth


def test_an_annotation_file_that_changed_is_named(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [number, 2, 5, 5]}
            for number in (1, 2)
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    index = read_coco(file, tmp_path)
    assert len(load_ground_truth(index).anns) == 2
    file.write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    with pytest.raises(ValueError, match=r"instances\.json was changed while in use"):
        load_ground_truth(index)
