"""Keypoints of results: in the image's own pixels, chosen with their instances, drawn, told."""

import json
from dataclasses import replace

import numpy as np
import torch

from detector.results import to_results
from detector.structures import Detections

SIZES = torch.tensor([[100, 200], [64, 64]])
ORIGINAL = torch.tensor([[50, 600], [32, 32]])  # half as high, three times as wide
JOINTS = {"keypoint_names": ["head", "tail"], "skeleton": [(0, 1)]}


def results(masks=False, **options):
    """Two instances in the first image, in slots 0 and 2, and none in the second."""
    boxes = torch.zeros(2, 3, 4)
    boxes[0, 0] = torch.tensor([10.0, 20.0, 30.0, 40.0])
    boxes[0, 2] = torch.tensor([50.0, 50.0, 60.0, 80.0])
    keypoints = torch.zeros(2, 3, 2, 3)
    keypoints[0, 0] = torch.tensor([[10.5, 20.0, 0.5], [30.0, 39.0, 0.01]])
    keypoints[0, 2] = torch.tensor([[55.0, 51.0, 0.25], [60.0, 80.0, 0.75]])
    valid = torch.tensor([[True, False, True], [False] * 3])
    scores = torch.tensor([[0.9, 0.0, 0.2], [0.0] * 3])
    detections = Detections(
        boxes,
        scores,
        torch.zeros(2, 3).long(),
        valid,
        torch.ones(2, 3, 28, 28) if masks else None,
        keypoints,
    )
    return to_results(detections, SIZES, ORIGINAL, ["cat"], **JOINTS, **options)


def test_slots_are_trimmed_and_places_scaled_per_axis():
    first, second = results()
    expected = [[[31.5, 10, 0.5], [90, 19.5, 0.01]], [[165, 25.5, 0.25], [180, 40, 0.75]]]
    np.testing.assert_allclose(first.keypoints, expected, rtol=1e-6)
    assert first.keypoints.dtype == np.float32
    assert second.keypoints.shape == (0, 2, 3)
    assert first.keypoint_names == ["head", "tail"] and first.skeleton == [(0, 1)]


def test_keypoints_are_chosen_with_their_instances():
    first, _ = results()
    assert first.above(0.5).keypoints.tolist() == first.keypoints[:1].tolist()
    assert first.select(np.array([1])).keypoints.tolist() == first.keypoints[1:].tolist()


def test_coco_records_count_from_the_centre_of_the_first_pixel():
    first, second = results(image_ids=[7, 8], category_ids=[1])
    records = json.loads(json.dumps(first.to_coco()))
    assert [record["keypoints"] for record in records] == [
        [31.0, 9.5, 0.5, 89.5, 19.0, 0.01],
        [164.5, 25.0, 0.25, 179.5, 39.5, 0.75],
    ]
    assert records[0]["bbox"] == [30, 10, 60, 10] and "segmentation" not in records[0]
    assert second.to_coco() == []


def test_repr_says_what_was_found():
    assert repr(results()[0]) == "Result(600x50: 2 cat; boxes and keypoints)"
    assert repr(results(masks=True)[0]) == "Result(600x50: 2 cat; boxes, masks and keypoints)"


def test_plot_draws_the_keypoints():
    images = [np.zeros((50, 600, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)]
    first, second = results(images=images)
    plain = np.asarray(replace(first, keypoints=None).plot())
    differs = (np.asarray(first.plot()) != plain).any(2)
    # Of the first instance one keypoint is too uncertain, so its limb is not drawn either.
    assert differs[:, 150:190].any() and differs[5:15, 25:40].any()
    assert not differs[:, 45:150].any()
    assert len(second) == 0 and not np.asarray(second.plot()).any()
