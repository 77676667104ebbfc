"""Results: slots trimmed, boxes in the image's own pixels, and what goes to COCO and to eyes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detector.results import Result, to_results
from detector.structures import Detections

NAMES = ["cat", "dog", "emu"]


def two_images(with_masks=True):
    """Three detections in the first image, in slots 0, 1 and 3, and none in the second."""
    boxes = torch.zeros(2, 5, 4)
    boxes[0, 0] = torch.tensor([10.0, 20.0, 30.0, 40.0])
    boxes[0, 1] = torch.tensor([0.0, 0.0, 200.0, 100.0])
    boxes[0, 3] = torch.tensor([50.0, 50.0, 60.0, 80.0])
    valid = torch.zeros(2, 5, dtype=torch.bool)
    valid[0, [0, 1, 3]] = True
    scores = torch.tensor([[0.9, 0.7, 0.0, 0.2, 0.0], [0.0] * 5])
    labels = torch.tensor([[2, 0, 0, 2, 0], [0] * 5])
    masks = torch.ones(2, 5, 28, 28) if with_masks else None
    return Detections(boxes, scores, labels, valid, masks)


SIZES = torch.tensor([[100, 200], [64, 64]])
ORIGINAL = torch.tensor([[50, 600], [32, 32]])  # half as high, three times as wide


def results(**options):
    return to_results(
        two_images(options.pop("with_masks", True)), SIZES, ORIGINAL, NAMES, **options
    )


def test_slots_are_trimmed_and_boxes_scaled_per_axis():
    first, second = results()
    assert len(first) == 3 and len(second) == 0
    expected = [[30, 10, 90, 20], [0, 0, 600, 50], [150, 25, 180, 40]]
    np.testing.assert_allclose(first.boxes, expected, rtol=1e-6)
    assert first.labels.tolist() == [2, 0, 2]
    assert first.names == ["emu", "cat", "emu"]
    np.testing.assert_allclose(first.scores, [0.9, 0.7, 0.2])
    assert first.boxes.dtype == np.float32 and second.boxes.shape == (0, 4)


def test_boxes_end_at_the_border_of_the_image():
    detections = two_images()
    detections.boxes[0, 1] = torch.tensor([-3.0, -2.0, 200.5, 130.0])
    first, _ = to_results(detections, SIZES, ORIGINAL, NAMES)
    assert first.boxes[1].tolist() == [0, 0, 600, 50]


def test_masks_are_of_the_size_of_the_image_file():
    first, second = results()
    assert first.masks.shape == (3, 50, 600) and first.masks.dtype == bool
    assert second.masks.shape == (0, 32, 32)
    expected = np.zeros((50, 600), bool)
    expected[10:20, 30:90] = True
    assert np.array_equal(first.masks[0], expected)


def test_score_threshold_and_selection():
    above = results(score_threshold=0.5)[0]
    assert above.scores.tolist() == results()[0].above(0.5).scores.tolist()
    assert len(above) == 2 and above.masks.shape == (2, 50, 600)
    last = results()[0].select(np.array([2]))
    assert last.names == ["emu"] and last.boxes[0].tolist() == [150, 25, 180, 40]
    boxes_alone = results(with_masks=False)[0].above(0.5)
    assert len(boxes_alone) == 2 and boxes_alone.masks is None


def test_coco_records():
    first, second = results(image_ids=torch.tensor([42, 43]), category_ids=[1, 5, 90])
    records = json.loads(json.dumps(first.to_coco()))
    assert [record["image_id"] for record in records] == [42] * 3
    assert [record["category_id"] for record in records] == [90, 1, 90]
    assert records[0]["bbox"] == [30, 10, 60, 10]
    assert [np.float32(record["score"]) for record in records] == first.scores.tolist()
    for record, mask in zip(records, first.masks, strict=True):
        assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask)
    assert second.to_coco() == []


def test_coco_records_of_boxes_have_no_segmentation():
    first, _ = results(with_masks=False)
    records = first.to_coco(image_id=1, category_ids=[1, 2, 3])
    assert all("segmentation" not in record for record in records)


def test_coco_records_need_ids():
    with pytest.raises(ValueError, match="image_id"):
        results(category_ids=[1, 2, 3])[0].to_coco()
    with pytest.raises(ValueError, match="category_ids"):
        results()[0].to_coco(image_id=1)


def test_repr_counts_instances():
    first, second = results()
    assert repr(first) == "Result(600x50: 2 emu, 1 cat; boxes and masks)"
    assert "nothing" in repr(second)


def test_plot_needs_the_image_and_draws_on_a_copy(tmp_path):
    with pytest.raises(ValueError, match="image"):
        results()[0].plot()
    assert results()[0]._repr_png_() is None
    images = [np.zeros((50, 600, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)]
    first, second = results(images=images)
    assert np.asarray(first.plot()).any() and not images[0].any()
    # Nothing found: the image itself, enlarged.
    assert not np.asarray(second.plot()).any()
    first.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
    assert first._repr_png_()[1:4] == b"PNG"


def test_saving_makes_the_folder(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b" / "seen.png"
    monkeypatch.setattr(Result, "plot", lambda self: Image.new("RGB", (4, 3)))
    Result.save(object.__new__(Result), path)
    assert Image.open(path).size == (4, 3)
