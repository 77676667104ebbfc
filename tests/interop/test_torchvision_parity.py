"""torchvision's detectors and ours with the same weights, on real images: the same numbers.

Each model of torchvision gets random weights that behave like trained ones, is saved as a state
dict, and read by :func:`detector.interop.convert.load_any`; the recipe that it recognises builds
our model.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.models.detection.roi_heads as torchvision_roi_heads
from torch import Tensor

from detector.interop import torchvision
from detector.ops.polygons import rasterize_polygons
from tests.interop.torchvision_pair import Case, Pair, make_pair

CASES = (
    Case("fasterrcnn_resnet50_fpn", 90, frozen=True, eps=0.0),
    Case("fasterrcnn_resnet50_fpn_v2", 5),
    Case("fasterrcnn_mobilenet_v3_large_fpn", 90, frozen=True, longest=288),
    Case("fasterrcnn_mobilenet_v3_large_320_fpn", 3, longest=288),
    Case("maskrcnn_resnet50_fpn", 4, detections=12),
    Case("maskrcnn_resnet50_fpn_v2", 90, detections=12),
    Case("keypointrcnn_resnet50_fpn", 1, detections=4),
)
# Boxes that the heads classify in evaluation: the best of up to 1000.
PROPOSALS = 80


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.builder)
def pair(request, test_data, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("weights")
    return make_pair(request.param, test_data / "coco_mini", folder)


@pytest.fixture(scope="module")
def features(pair) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of ours and of theirs, in evaluation mode."""
    pair.ours.eval(), pair.theirs.eval()
    with torch.no_grad():
        theirs = pair.theirs.backbone(pair.images.tensors)
        return pair.ours.backbone(pair.images.tensors), theirs


def test_input_and_backbone_levels_are_the_same(pair, features):
    batch = pair.batch
    pixels = pair.ours.normalizer(batch.images, batch.image_sizes)
    # The last bits differ, torchvision dividing by 255 first.
    torch.testing.assert_close(pixels, pair.images.tensors, atol=1e-5, rtol=1e-5)
    assert any(side % 64 for side in pixels.shape[2:]), "the coarsest level has no whole stride"
    ours, theirs = features
    for level, other in zip(ours, theirs.values(), strict=True):
        assert other.std() > 1e-3
        torch.testing.assert_close(level, other, atol=1e-5 * other.abs().max().item(), rtol=0)


@torch.no_grad()
def test_rpn_outputs_and_proposals_are_the_same(pair, features):
    ours, theirs = pair.ours.rpn, pair.theirs.rpn
    maps = list(features[1].values())
    anchors = ours.anchors(maps)
    their_anchors = theirs.anchor_generator(pair.images, maps)[0]
    logits, deltas = ours.head(maps)
    their_logits, their_deltas = theirs.head(maps)
    first = 0
    for level in range(len(maps)):
        count = len(anchors[level])
        per_cell = ours.anchors.num_anchors
        order = list(torchvision.ANCHORS) if per_cell == len(torchvision.ANCHORS) else slice(None)

        def ordered(values: Tensor, size: int) -> Tensor:
            """Of theirs ``(..., cells * anchors, size)`` in our order of a cell's anchors."""
            return values.reshape(-1, per_cell, size)[:, order].flatten(0, 1)  # noqa: B023

        level_anchors = their_anchors[first : first + count]
        assert torch.equal(anchors[level], ordered(level_anchors, 4))
        first += count
        for values, other, size in (
            (logits[level], their_logits[level], 1),
            (deltas[level], their_deltas[level], 4),
        ):
            other = other.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2)
            torch.testing.assert_close(
                values.reshape(-1, size), ordered(other, size), atol=1e-5, rtol=1e-5
            )
    assert first == len(their_anchors)

    proposals = ours.propose(maps, pair.batch.image_sizes)
    kept = their_proposals(pair, features)
    for image, (expected, expected_scores) in enumerate(zip(*kept, strict=True)):
        count = len(expected)
        assert count > 20
        assert proposals.valid[image].sum() == count
        found = proposals.scores[image, :count].sigmoid()
        torch.testing.assert_close(found, expected_scores, atol=1e-5, rtol=0)
        boxes = proposals.boxes[image, :count]
        order = order_of(expected, expected_scores, boxes, found)
        torch.testing.assert_close(boxes[order], expected, atol=1e-2, rtol=0)


def order_of(boxes: Tensor, scores: Tensor, our_boxes: Tensor, our_scores: Tensor) -> Tensor:
    """Index of our boxes in their order, which scores that are equal but for rounding leave open.

    Among others, a sigmoid rounds logits that differ to the same score.
    """
    distance = (our_boxes[None] - boxes[:, None]).abs().amax(-1)
    tied = (our_scores[None] - scores[:, None]).abs() <= 1e-5
    order = distance.masked_fill(~tied, torch.inf).argmin(1)
    assert len(order.unique()) == len(order)
    return order


def their_proposals(pair: Pair, features) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and scores of each image; a model there keeps the boxes alone."""
    kept = []
    filter_proposals = pair.theirs.rpn.filter_proposals

    def keep(*arguments):
        kept.append(filter_proposals(*arguments))
        return kept[-1]

    pair.theirs.rpn.filter_proposals = keep
    try:
        pair.theirs.rpn(pair.images, features[1])
    finally:
        del pair.theirs.rpn.filter_proposals
    return kept[0]


@torch.no_grad()
def test_detections_are_the_same(pair, features):
    sizes = pair.batch.image_sizes
    ours, theirs = pair.ours, pair.theirs
    boxes, _ = their_proposals(pair, features)
    proposals = ours.rpn.propose(features[0], sizes)
    proposals = replace(
        proposals,
        boxes=proposals.boxes[:, :PROPOSALS],
        scores=proposals.scores[:, :PROPOSALS],
        valid=proposals.valid[:, :PROPOSALS],
    )
    detections = ours.box_branch.detect(features[0], proposals, sizes)
    if ours.has_masks:
        detections = ours.mask_branch.detect(features[0], detections)
    if ours.has_keypoints:
        detections = ours.keypoint_branch.detect(features[0], detections)
    results, _ = theirs.roi_heads(
        features[1], [image[:PROPOSALS] for image in boxes], pair.images.image_sizes
    )
    labels = torch.cat([result["labels"] for result in results])
    assert len(labels.unique()) > min(2, pair.case.num_classes - 1)
    for image, result in enumerate(results):
        count = len(result["boxes"])
        assert count >= min(20, pair.case.detections)
        assert (result["scores"] > 0.5).sum() > min(5, count - 1)
        assert detections.valid[image].sum() == count
        scores = detections.scores[image, :count]
        torch.testing.assert_close(scores, result["scores"], atol=1e-5, rtol=0)
        found = detections.boxes[image, :count]
        order = order_of(result["boxes"], result["scores"], found, scores)
        torch.testing.assert_close(found[order], result["boxes"], atol=1e-2, rtol=0)
        assert torch.equal(detections.labels[image, order] + 1, result["labels"])
        if ours.has_masks:
            masks = result["masks"][:, 0]
            assert masks.std() > 0.1
            torch.testing.assert_close(detections.masks[image, order], masks, atol=1e-4, rtol=0)
        if ours.has_keypoints:
            # Their score is the height of the heatmap, ours a probability.
            points = detections.keypoints[image, order, :, :2]
            torch.testing.assert_close(points, result["keypoints"][..., :2], atol=1e-2, rtol=0)


def their_targets(pair: Pair) -> list[dict]:
    targets = pair.batch.targets
    return [
        {
            "boxes": targets.boxes[image, valid].double(),
            "labels": targets.labels[image, valid] + 1,
            "masks": image,  # what `mask_targets` makes masks of
            "keypoints": targets.keypoints[image, valid],
        }
        for image, valid in enumerate(targets.valid)
    ]


def test_losses_and_gradients_are_the_same(pair, monkeypatch):
    """With every anchor and proposal sampled, and our mask targets on both sides.

    RoIAlign computes in float64 on both sides and from the very same boxes: its last bits, rounded
    in another order, would turn some ReLUs on or off. So would those of batch norms, wherefore
    heads with batch norms compute in float64 too.
    """
    ours, theirs = pair.ours.train(), pair.theirs.train()
    sizes, targets = pair.batch.image_sizes, pair.batch.targets

    def mask_targets(image: int, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
        index = torch.full_like(matched, image)
        masks = rasterize_polygons(targets.polygons, boxes.float(), index, matched, size)
        return masks.double()

    monkeypatch.setattr(torchvision_roi_heads, "project_masks_on_boxes", mask_targets)
    heads = [theirs.roi_heads]
    heads += [branch for name, branch in ours.named_children() if name.endswith("branch")]
    for head in heads:
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in head.modules()):
            head.double()
            continue
        for name, module in head.named_modules():
            if name.endswith(("roi_pool", "pooler")):
                module.register_forward_hook(lambda *call: call[-1].float())
    features = theirs.backbone(pair.images.tensors)
    rpn_targets = [{**target, "boxes": target["boxes"].float()} for target in their_targets(pair)]
    boxes, expected = theirs.rpn(pair.images, features, rpn_targets)
    _, of_regions = theirs.roi_heads(
        {name: level.double() for name, level in features.items()},
        [image.double() for image in boxes],
        pair.images.image_sizes,
        their_targets(pair),
    )
    expected |= of_regions

    features = ours.backbone(pair.images.tensors)
    proposals, losses = ours.rpn(features, sizes, targets)
    for image, image_boxes in enumerate(boxes):
        assert proposals.valid[image].sum() == len(image_boxes)
        proposals.boxes[image, : len(image_boxes)] = image_boxes
    rois = ours.roi_sampler(proposals, targets)
    losses |= ours.roi_losses([level.double() for level in features], rois, targets, sizes)

    names = {"loss_rpn_box_reg": "loss_rpn_box", "loss_box_reg": "loss_box"}
    assert set(losses) == {names.get(name, name) for name in expected}
    for name, value in expected.items():
        assert value > 1e-3, name
        found = losses[names.get(name, name)].to(value.dtype)
        torch.testing.assert_close(found, value, atol=0, rtol=1e-5, msg=lambda m, n=name: n + m)

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    gradients = torchvision.from_ours(gradients, None)
    largest = max(parameter.grad.abs().max().item() for parameter in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        gradient, other = gradients.pop(name), parameter.grad
        scale = other.abs().max().item()
        assert scale > 0, name
        # What a batch norm takes away again, such as a shift before it, has no gradient but noise.
        tolerance = max(1e-3 * scale, 1e-6 * largest)
        torch.testing.assert_close(
            gradient, other, atol=tolerance, rtol=0, msg=lambda m, n=name: n + m
        )
    assert not gradients
