"""Non-maximum suppression against torchvision, and what fixed slots add to it."""

import pytest
import torch
import torchvision

from detector.ops.nms import batched_nms, nms, nms_slots
from detector.ops.reference import nms as reference


def random_case(images: int, slots: int, groups: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=generator) * 60
    boxes = torch.cat(
        (corner, corner + 5 + torch.rand(images, slots, 2, generator=generator) * 30), 2
    )
    scores = torch.rand(images, slots, generator=generator)
    group = torch.randint(groups, (images, slots), generator=generator)
    valid = torch.rand(images, slots, generator=generator) < 0.8
    return boxes, scores, group, valid


def test_published_case_of_mmcv():
    """mmcv tests/test_ops/test_nms.py::test_nms_allclose."""
    boxes = torch.tensor([[6.0, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]])
    scores = torch.tensor([0.6, 0.9, 0.7, 0.2])
    keep = nms_slots(
        boxes[None], scores[None], torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), 0.3
    )
    assert keep[0].nonzero()[:, 0].tolist() == [0, 1, 3]


def test_equals_torchvision_within_each_image_and_group():
    boxes, scores, groups, valid = random_case(3, 80, 4)
    keep = nms_slots(boxes, scores, groups, valid, 0.2)
    assert not keep[~valid].any()
    dropped = 0
    for image in range(3):
        filled = valid[image].nonzero()[:, 0]
        expected = torchvision.ops.batched_nms(
            boxes[image, filled], scores[image, filled], groups[image, filled], 0.2
        )
        assert keep[image].nonzero()[:, 0].tolist() == filled[expected].sort().values.tolist()
        dropped += len(filled) - len(expected)
    assert dropped > 20, "the case should suppress something"


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_equals_the_definition(threshold):
    case = random_case(3, 90, 2, seed=6)
    assert torch.equal(nms_slots(*case, threshold), reference.nms_slots(*case, threshold))


def test_lists_equal_torchvision():
    """Indices in the same order, with ties and NaN scores."""
    boxes, scores, groups, _ = (x[0] for x in random_case(1, 300, 3, seed=7))
    scores = (scores * 40).round() / 40
    scores[[17, 200]] = torch.nan
    for threshold in (0.0, 0.3, 0.6):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes, scores, threshold), expected)
        kept = batched_nms(boxes, scores, groups, threshold)
        apart = torch.cat(
            [
                members[torchvision.ops.nms(boxes[members], scores[members], threshold)]
                for members in (groups.eq(i).nonzero()[:, 0] for i in range(3))
            ]
        ).sort()[0]
        order = scores[apart].argsort(descending=True, stable=True)
        assert torch.equal(kept, apart[order])
        assert 0 < len(expected) < len(kept) < 300
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_wrong_arguments_are_named():
    boxes, scores, groups, valid = random_case(1, 4, 2)
    for case, message in (
        ((boxes[0], scores, groups, valid, 0.5), r"boxes \(4, 4\)"),
        ((boxes, scores[:, :3], groups, valid, 0.5), r"scores \(1, 3\)"),
        ((boxes, scores, groups.float(), valid, 0.5), "groups are torch.float32"),
        ((boxes, scores, groups, valid.long(), 0.5), "valid is torch.int64"),
        ((boxes, scores, groups, valid, 50), "iou_threshold=50"),
    ):
        with pytest.raises(ValueError, match=message):
            nms_slots(*case)
    with pytest.raises(ValueError, match="boxes"):
        nms(boxes, scores[0], 0.5)


def test_empty_slots_neither_suppress_nor_stay():
    boxes, scores, groups, valid = random_case(2, 40, 3, seed=1)
    keep = nms_slots(boxes, scores, groups, valid, 0.4)
    # High-scored garbage in the empty slots, on top of every box.
    boxes = torch.where(valid[..., None], boxes, torch.tensor([0.0, 0, 95, 95]))
    scores = torch.where(valid, scores, torch.tensor(torch.inf))
    assert torch.equal(nms_slots(boxes, scores, groups, valid, 0.4), keep)
    padded = [torch.cat((x, torch.zeros_like(x)), 1) for x in (boxes, scores, groups, valid)]
    assert torch.equal(nms_slots(*padded, 0.4)[:, :40], keep)
    assert not nms_slots(*padded, 0.4)[:, 40:].any()


def test_permuting_slots_permutes_the_answer():
    boxes, scores, groups, valid = random_case(1, 60, 2, seed=2)
    keep = nms_slots(boxes, scores, groups, valid, 0.5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    permuted = nms_slots(*(x[:, order] for x in (boxes, scores, groups, valid)), 0.5)
    assert torch.equal(permuted, keep[:, order])


def test_small_boxes_of_many_groups_keep_their_precision():
    """Two boxes 4e-4 px wide, overlapping by a third: an offset of 80 groups would merge them."""
    left = torch.tensor([[1000.0, 1000.0, 1000.0 + 4e-4, 1000.0 + 4e-4]])
    boxes = torch.cat((left, left + torch.tensor([2e-4, 0, 2e-4, 0]))).repeat(2, 1)[None]
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    groups = torch.tensor([[79, 79, 0, 0]])
    assert nms_slots(boxes, scores, groups, torch.ones(1, 4).bool(), 0.5).all()


def test_custom_op_is_registered_right():
    boxes, scores, groups, valid = random_case(2, 20, 2, seed=4)
    torch.library.opcheck(torch.ops.detector.nms_slots.default, (boxes, scores, groups, valid, 0.5))


def test_gradients_do_not_flow_and_graph_does_not_break():
    boxes, scores, groups, valid = random_case(2, 20, 2, seed=5)
    boxes.requires_grad_(), scores.requires_grad_()
    compiled = torch.compile(nms_slots, fullgraph=True, backend="aot_eager")
    keep = compiled(boxes, scores, groups, valid, 0.5)
    assert not keep.requires_grad
    assert torch.equal(keep, nms_slots(boxes, scores, groups, valid, 0.5))
