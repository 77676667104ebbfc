"""The final choice of detections against torchvision's postprocessing, and its slots."""

import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

from detector.roi_heads.detections import DetectionLayer
from detector.structures import Proposals

K = 3
SIZES = torch.tensor([[60, 90], [40, 50]])
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def make_case(slots: int = 40):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, slots, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 5 + torch.rand(2, slots, 2, generator=generator) * 40), 2)
    logits = torch.randn(2, slots, K + 1, generator=generator) * 2
    deltas = torch.randn(2, slots, K, 4, generator=generator) * 0.5
    valid = torch.rand(2, slots, generator=generator) < 0.8
    return Proposals(boxes * valid[..., None], torch.zeros(2, slots), valid), logits, deltas


def detect(proposals, logits, deltas, **settings):
    scores = logits.softmax(2)[..., :K]
    return DetectionLayer(**settings)(scores, deltas, proposals, SIZES, WEIGHTS)


def test_equals_torchvision():
    proposals, logits, deltas = make_case()
    detections = detect(proposals, logits, deltas, score_threshold=0.1, max_detections=25)
    reference = RoIHeads(*[nn.Identity()] * 3, 0.5, 0.5, 512, 0.25, WEIGHTS, 0.1, 0.5, 25)
    rows = proposals.valid
    # Background first, with deltas of its own.
    their_logits = torch.cat((logits[..., -1:], logits[..., :-1]), -1)[rows]
    their_deltas = torch.cat((deltas[:, :, :1], deltas), 2)[rows].flatten(1)
    boxes, scores, labels = reference.postprocess_detections(
        their_logits,
        their_deltas,
        [proposals.boxes[image, rows[image]] for image in range(2)],
        [tuple(size) for size in SIZES.tolist()],
    )
    for image in range(2):
        count = len(boxes[image])
        assert count > 10
        assert detections.valid[image].sum() == count
        torch.testing.assert_close(detections.boxes[image, :count], boxes[image])
        torch.testing.assert_close(detections.scores[image, :count], scores[image])
        assert torch.equal(detections.labels[image, :count] + 1, labels[image])


def test_slots_are_fixed_sorted_inside_and_zero_where_empty():
    proposals, logits, deltas = make_case(10)
    detections = detect(proposals, logits, deltas, score_threshold=0.4, max_detections=20)
    assert detections.boxes.shape == (2, 20, 4)
    assert detections.masks is None
    empty = ~detections.valid
    assert empty.any()
    for values in (detections.boxes, detections.scores, detections.labels):
        assert values[empty].eq(0).all()
    assert detections.scores.diff(dim=1).le(0).all()
    limit = SIZES.flip(1).repeat(1, 2)[:, None]
    assert ((detections.boxes >= 0) & (detections.boxes <= limit)).all()
    assert detections.scores[detections.valid].gt(0.4).all()


def test_candidates_bound_the_work_and_keep_the_best():
    proposals, logits, deltas = make_case()
    everything = detect(proposals, logits, deltas, max_detections=5)
    bounded = detect(proposals, logits, deltas, max_detections=5, max_candidates=60)
    assert torch.equal(everything.boxes, bounded.boxes)
    assert detect(proposals, logits, deltas, max_candidates=3).boxes.shape == (2, 3, 4)


def test_nothing_above_the_threshold():
    proposals, logits, deltas = make_case()
    detections = detect(proposals, logits, deltas, score_threshold=1.0)
    assert not detections.valid.any()
    assert detections.boxes.eq(0).all()


def test_numbers_of_a_diverged_network_are_dropped():
    proposals, logits, deltas = make_case()
    logits[0, :5], deltas[1] = torch.nan, torch.nan
    detections = detect(proposals, logits, deltas, score_threshold=0.0)
    assert detections.boxes.isfinite().all()
    assert detections.scores.isfinite().all()
    assert detections.valid[0].any()
    assert not detections.valid[1].any()
