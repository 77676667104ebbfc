"""Soft-NMS against the paper's pseudocode in numpy, and against plain NMS at its limits."""

import math

import numpy as np
import pytest
import torch

from detector.ops.nms import batched_nms
from detector.ops.soft_nms import soft_nms


def random_case(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 4
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cat((corner, corner + size), 1), scores


def pseudocode(boxes, scores, groups, threshold, method, sigma, score_threshold):
    """Figure 2 of the paper, pair by pair in float64."""
    left = {i: float(score) for i, score in enumerate(scores)}
    kept = []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score <= score_threshold:
            break
        kept.append((best, score))
        ax1, ay1, ax2, ay2 = boxes[best]
        for i in left:
            if groups[i] != groups[best]:
                continue
            bx1, by1, bx2, by2 = boxes[i]
            width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
            shared = max(width, 0.0) * max(height, 0.0)
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            iou = shared / union
            if method == "gaussian":
                left[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                left[i] *= 1 - iou
    return [i for i, _ in kept], [score for _, score in kept]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_equals_the_papers_pseudocode(method, num_groups):
    boxes, scores = random_case(60)
    groups = torch.arange(60) % num_groups
    options = {"method": method, "sigma": 0.4, "score_threshold": 0.05}
    indices, values = soft_nms(
        boxes, scores, 0.3, groups=groups if num_groups > 1 else None, **options
    )
    arrays = (np.asarray(x) for x in (boxes, scores, groups))
    expected_indices, expected_values = pseudocode(*arrays, 0.3, *options.values())
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values.numpy(), expected_values, rtol=1e-12)
    assert 10 < len(indices) < 60, "some should fall below the threshold, and some not"

    indices, values = soft_nms(
        boxes.float(), scores.half(), 0.3, groups=groups if num_groups > 1 else None, **options
    )
    assert values.dtype == torch.float16
    np.testing.assert_allclose(values.sort()[0], np.sort(expected_values), rtol=5e-3)


def test_first_pair_by_hand():
    """IoU 1/3: the second score becomes 0.9 * 2/3, or 0.9 * exp(-2/9)."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]])
    scores = torch.tensor([1.0, 0.9])
    assert soft_nms(boxes, scores, 0.3)[1].tolist() == pytest.approx([1, 0.6])
    assert soft_nms(boxes, scores, 0.34)[1].tolist() == pytest.approx([1, 0.9])
    gaussian = soft_nms(boxes, scores, 0.34, "gaussian", sigma=0.5)[1]
    assert gaussian.tolist() == pytest.approx([1, 0.9 * math.exp(-2 / 9)])


def test_a_narrow_gaussian_is_plain_nms():
    """With sigma near 0 whatever overlaps at all is dropped."""
    boxes, scores = random_case(80, seed=1)
    groups = torch.arange(80) % 2
    indices, values = soft_nms(boxes, scores, 0.5, "gaussian", sigma=1e-12, groups=groups)
    assert torch.equal(indices, batched_nms(boxes, scores, groups, 0.0))
    assert torch.equal(values, scores[indices])


def test_scores_never_rise_and_come_sorted():
    boxes, scores = random_case(80, seed=2)
    indices, values = soft_nms(boxes, scores, 0.2)
    assert (values <= scores[indices]).all() and (values.diff() <= 0).all()
    assert len(indices.unique()) == len(indices)


def test_empty_ties_and_numbers_that_are_not_finite():
    indices, values = soft_nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (len(indices), indices.dtype, len(values)) == (0, torch.int64, 0)
    boxes = torch.tensor([[math.nan, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 9, 9]])
    scores = torch.tensor([0.5, 0.7, 0.7, math.nan])
    indices, values = soft_nms(boxes, scores, 0.5)
    assert indices.tolist() == [1, 0]
    assert values.tolist() == scores[indices].tolist()


def test_wrong_arguments_are_named():
    boxes, scores = random_case(3)
    for arguments, message in (
        ((boxes[0], scores, 0.5), "boxes"),
        ((boxes, scores[:2], 0.5), r"scores \(2,\)"),
        ((boxes, scores, 0.5, "cubic"), "method='cubic'"),
        ((boxes, scores, 1.5), "iou_threshold=1.5"),
        ((boxes, scores, 0.5, "gaussian", 0.0), "sigma=0.0"),
        ((boxes, scores, 0.5, "gaussian", 0.5, 0.1, torch.zeros(2)), r"groups \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            soft_nms(*arguments)
