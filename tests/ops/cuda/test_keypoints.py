"""The kernel that finds keypoints in heatmaps, run on the CPU, against matrices of weights."""

import pytest
import torch

from detector.ops.cuda import keypoints as kernels
from detector.ops.reference.keypoints import heatmaps_to_keypoints as reference
from tests.ops.cases_keypoints import boxes_of_all_kinds, random_heatmaps


@pytest.mark.parametrize("side", [4, 13, 56])
def test_same_keypoints_as_the_reference(host_kernels, side):
    boxes = boxes_of_all_kinds()
    boxes = boxes[~((boxes[:, 2:] - boxes[:, :2]) > 1e6).any(1)][:7]
    heatmaps = random_heatmaps(len(boxes), 2, side, side)
    found = kernels.heatmaps_to_keypoints(heatmaps, boxes)
    expected = reference(heatmaps, boxes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5, equal_nan=True)


def test_of_equal_heights_the_first_counts_in_any_order(host_kernels_any_order):
    """A flat heatmap has its best pixel first; a plateau, at its upper left corner."""
    heatmaps = torch.zeros(2, 2, 8, 8)
    heatmaps[:, 1, 3:6, 2:5] = 1.0
    boxes = torch.tensor([[4.0, 5.0, 12.0, 13.0], [0.0, 0.0, 24.0, 40.0]])
    found = kernels.heatmaps_to_keypoints(heatmaps, boxes)
    torch.testing.assert_close(found[:, 0], torch.tensor([[4.5, 5.5, 0.0], [0.5, 0.5, 0.0]]))
    assert torch.equal(found[0, 1], torch.tensor([6.5, 8.5, 1.0]))


def test_boxes_and_heatmaps_in_any_strides_and_none(host_kernels):
    heatmaps = random_heatmaps(6, 2, 10, 0).transpose(2, 3)[::2]
    boxes = boxes_of_all_kinds()[:6][::2]
    found = kernels.heatmaps_to_keypoints(heatmaps, boxes)
    torch.testing.assert_close(found, reference(heatmaps, boxes), atol=1e-4, rtol=1e-5)
    assert kernels.heatmaps_to_keypoints(heatmaps[:0], boxes[:0]).shape == (0, 2, 3)
