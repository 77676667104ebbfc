"""Keypoint R-CNN beside torchvision's with the same weights, and beside the other models."""

import dataclasses

import hydra
import pytest
import torch
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from detector.rcnn import KeypointRCNN, MaskKeypointRCNN
from tests.rcnn.conftest import NUM_KEYPOINTS
from tests.rcnn.test_against_torchvision import (
    SETTINGS,
    make_reference,
    normalized_images,
    our_name,
    theirs_from_ours,
)
from tests.rcnn.test_fixed_shapes import FOUR, Guard, guarded_step, keep_empty_slots


def our_keypoint_name(name: str) -> str:
    """Of torchvision's keypoint branch: convolution i is its layer 2 i, ReLUs being counted too."""
    kind, _, rest = name.partition(".")[2].partition(".")
    if kind == "keypoint_predictor":
        return rest.replace("kps_score_lowres", "keypoint_branch.head.deconv")
    if kind == "keypoint_head":
        layer, _, parameter = rest.partition(".")
        return f"keypoint_branch.head.convs.{int(layer) // 2}.0.{parameter}"
    return our_name(name)


@pytest.fixture
def pair(make_model):
    """Both in training mode, as no layer of theirs tells the modes apart."""
    ours, theirs = make_model(*SETTINGS, masks=False, keypoints=True), make_reference()
    heads = theirs.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
    heads.keypoint_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=56)
    heads.keypoint_head = KeypointRCNNHeads(16, (16, 16))
    heads.keypoint_predictor = KeypointRCNNPredictor(16, NUM_KEYPOINTS)
    state = ours.state_dict()
    converted = {
        name: theirs_from_ours(name, state.pop(our_keypoint_name(name)))
        for name in theirs.state_dict()
    }
    assert not state, "every weight has a counterpart"
    theirs.load_state_dict(converted)
    # torchvision rounds its anchors.
    for level, anchors in enumerate(theirs.rpn.anchor_generator.cell_anchors):
        getattr(ours.rpn.anchors, f"base{level}").copy_(anchors)
    return ours, theirs


@torch.no_grad()
def test_detected_keypoints_are_torchvisions(pair, make_batch):
    ours, theirs = (model.eval() for model in pair)
    batch = make_batch(sizes=((128, 96), (96, 128)))
    images = normalized_images(ours, theirs, batch)
    features = theirs.backbone(images.tensors)
    proposals, _ = theirs.rpn(images, features)
    results, _ = theirs.roi_heads(features, proposals, images.image_sizes)
    detections = ours.detect(batch.images, batch.image_sizes)
    assert detections.masks is None
    for image, result in enumerate(results):
        count = len(result["boxes"])
        assert count > 5 and detections.valid[image].sum() == count
        boxes = detections.boxes[image, :count]
        torch.testing.assert_close(boxes, result["boxes"], atol=1e-3, rtol=1e-4)
        found = detections.keypoints[image, :count]
        assert found.shape == (count, NUM_KEYPOINTS, 3)
        # Boxes differ in their last bits, and where a side is all but a whole number of pixels,
        # in what it is rounded up to: a pixel of another grid.
        distance = (found[..., :2] - result["keypoints"][..., :2]).abs().amax(-1)
        assert (distance < 1e-2).float().mean() > 0.97 and distance.max() < 1.5
        assert found[..., 2].min() > 0 and found[..., 2].std() > 0.01
        spread = found[..., :2].std(1).max()
        assert spread > 2, "keypoints lie apart"


def test_losses_and_gradients_are_torchvisions(pair, make_batch):
    ours, theirs = (model.train() for model in pair)
    batch = make_batch()
    targets = batch.targets
    their_targets = [
        {
            "boxes": targets.boxes[image, targets.valid[image]],
            "labels": targets.labels[image, targets.valid[image]] + 1,
            "keypoints": targets.keypoints[image, targets.valid[image]],
        }
        for image in range(2)
    ]
    images = normalized_images(ours, theirs, batch)
    features = theirs.backbone(images.tensors)
    proposals, expected = theirs.rpn(images, features, their_targets)
    _, roi_losses = theirs.roi_heads(features, proposals, images.image_sizes, their_targets)
    expected |= roi_losses
    losses = ours(batch.images, batch.image_sizes, targets)
    names = {"loss_rpn_box_reg": "loss_rpn_box", "loss_box_reg": "loss_box"}
    assert set(losses) == {names.get(name, name) for name in expected}
    for name, value in expected.items():
        assert value > 1e-4, name
        torch.testing.assert_close(
            losses[names.get(name, name)], value, atol=0, rtol=1e-4, msg=lambda m, n=name: n + m
        )
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        gradient = theirs_from_ours(name, parameters.pop(our_keypoint_name(name)).grad)
        # float32 sums over thousands of terms in another order, relative to the largest.
        scale = parameter.grad.abs().max().item()
        if "kps_score_lowres.bias" in name:  # a softmax does not see what all cells have more
            assert max(scale, gradient.abs().max()) < 1e-6
            continue
        assert scale > 0, name
        torch.testing.assert_close(
            gradient, parameter.grad, atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: n + m
        )
    assert not parameters


def test_both_branches_do_what_each_does_alone(make_model, make_batch):
    """With the same weights: the losses are those of both models together, and so is what they
    find."""
    both = make_model(masks=True, keypoints=True)
    assert type(both) is MaskKeypointRCNN and both.has_masks and both.has_keypoints
    batch = make_batch()
    arguments = (batch.images, batch.image_sizes)
    losses = both(*arguments, batch.targets)
    with torch.no_grad():
        found = both.eval().detect(*arguments)
    assert found.valid.any()
    for name, kept, unused in (("keypoint", "mask", "keypoints"), ("mask", "keypoint", "polygons")):
        alone = make_model(masks=kept == "mask", keypoints=kept == "keypoint")
        state = {k: v for k, v in both.state_dict().items() if f"{name}_branch" not in k}
        alone.load_state_dict(state)
        targets = dataclasses.replace(batch.targets, **{unused: None})
        for key, value in alone(*arguments, targets).items():
            torch.testing.assert_close(value, losses[key])
        with torch.no_grad():
            single = alone.eval().detect(*arguments)
        field = f"{kept}s"
        torch.testing.assert_close(getattr(single, field), getattr(found, field))
        assert getattr(single, f"{name}s") is None


def test_training_and_detection_ask_nothing_and_do_not_loop_over_images(make_model, make_batch):
    settings = ("model.roi_sampler.num_samples=32", "model.rpn.num_samples=64")
    model = make_model(*settings, masks=False, keypoints=True)
    assert type(model) is KeypointRCNN
    few = guarded_step(model, make_batch(FOUR[:2], (3, 0)))
    many = guarded_step(model, make_batch(FOUR, (5, 0, 1, 8, 2)))
    assert many == few and sum(few.values()) > 500
    assert all(parameter.grad is not None for parameter in model.parameters())

    calls, shapes = [], []
    for count in (2, 5):
        batch = make_batch(FOUR[:count], (1,) * count)
        with torch.no_grad(), keep_empty_slots(), Guard() as guard:
            shapes.append(model.eval().detect(batch.images, batch.image_sizes).keypoints.shape)
        calls.append(guard.calls)
    assert calls[0] == calls[1]
    assert calls[0]["detector.heatmaps_to_keypoints.default"] == 1
    assert shapes == [(2, 30, NUM_KEYPOINTS, 3), (5, 30, NUM_KEYPOINTS, 3)]


def test_published_parameters(compose_model):
    """torchvision publishes 59 137 258 for people and 17 keypoints, with deltas of background."""
    with torch.device("meta"):
        model = compose_model("model=keypoint_rcnn_fpn", "num_classes=1", "num_keypoints=17")
    assert sum(p.numel() for p in model.parameters()) + 4 * (1024 + 1) == 59_137_258


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.keypoint_branch.pooler.strides=[4,16]", "keypoint_branch.pooler.strides=[4, 16]"),
        ("model.keypoint_branch.normalizer=none", "keypoint_branch.normalizer='none'"),
        ("num_keypoints=0", "num_keypoints=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(compose_model, override, message):
    with pytest.raises(hydra.errors.InstantiationException) as error:
        compose_model("model=keypoint_rcnn_fpn", override)
    assert message in f"{error.value} {error.value.__cause__}"
