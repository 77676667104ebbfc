"""The whole detector beside torchvision's Mask R-CNN with the same weights: the same features,
proposals, detections, masks, losses and gradients."""

import itertools

import pytest
import torch
import torchvision.models.detection.roi_heads as torchvision_roi_heads
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from detector.rcnn import MaskRCNN
from detector.structures import Batch

K = 3
SIZES = (8, 16, 32, 64, 128)
# What torchvision does differently from the configs' defaults.
SETTINGS = (
    "roi_op.aligned=false",
    f"model.rpn.smooth_l1_beta={1 / 9}",
    f"model.box_branch.smooth_l1_beta={1 / 9}",
)


def make_reference() -> TorchvisionMaskRCNN:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    # The same pyramid, but 16 channels wide.
    backbone.fpn = type(backbone.fpn)([64, 128, 256, 512], 16, backbone.fpn.extra_blocks)
    backbone.out_channels = 16
    levels = ["0", "1", "2", "3"]
    return TorchvisionMaskRCNN(
        backbone,
        min_size=96,
        max_size=128,
        _skip_resize=True,
        image_mean=[v / 255 for v in (123.675, 116.28, 103.53)],
        image_std=[v / 255 for v in (58.395, 57.12, 57.375)],
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in SIZES), ((0.5, 1.0, 2.0),) * 5),
        rpn_head=RPNHead(16, 3),
        rpn_pre_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=300,
        rpn_batch_size_per_image=100_000,
        box_batch_size_per_image=100_000,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=56),
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, K + 1),
        box_detections_per_img=30,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=56),
        mask_head=MaskRCNNHeads(16, (16, 16), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, K + 1),
    )


NAMES = {
    "backbone.body.": "backbone.trunk.",
    "backbone.fpn.inner_blocks.": "backbone.lateral.",
    "backbone.fpn.layer_blocks.": "backbone.output.",
    "rpn.head.conv.": "rpn.head.convs.",
    "rpn.head.cls_logits.": "rpn.head.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.deltas.",
    "roi_heads.box_head.fc6.": "box_branch.head.fc1.",
    "roi_heads.box_head.fc7.": "box_branch.head.fc2.",
    "roi_heads.box_predictor.cls_score.": "box_branch.predictor.scores.",
    "roi_heads.box_predictor.bbox_pred.": "box_branch.predictor.deltas.",
    "roi_heads.mask_head.": "mask_branch.head.convs.",
    "roi_heads.mask_predictor.conv5_mask.": "mask_branch.head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_branch.head.logits.",
}


def our_name(name: str) -> str:
    (prefix,) = (prefix for prefix in NAMES if name.startswith(prefix))
    return NAMES[prefix] + name.removeprefix(prefix)


def theirs_from_ours(name: str, ours: Tensor) -> Tensor:
    """Background stands first there, and has deltas and a mask of its own, which nothing uses."""
    if "cls_score" in name:
        return torch.cat((ours[-1:], ours[:-1]))
    if "roi_heads.box_predictor.bbox_pred" in name:
        return torch.cat((torch.zeros_like(ours[:4]), ours))
    if "mask_fcn_logits" in name:
        return torch.cat((torch.zeros_like(ours[:1]), ours))
    return ours


@pytest.fixture
def pair(make_model) -> tuple[MaskRCNN, TorchvisionMaskRCNN]:
    ours, theirs = make_model(*SETTINGS), make_reference()
    state = ours.state_dict()
    converted = {
        name: theirs_from_ours(name, state.pop(our_name(name))) for name in theirs.state_dict()
    }
    assert not state, "every weight has a counterpart"
    theirs.load_state_dict(converted)
    # torchvision rounds its anchors.
    for level, anchors in enumerate(theirs.rpn.anchor_generator.cell_anchors):
        buffer = getattr(ours.rpn.anchors, f"base{level}")
        assert (buffer - anchors).abs().max() <= 0.5
        buffer.copy_(anchors)
    return ours.eval(), theirs.eval()


def normalized_images(ours: MaskRCNN, theirs: TorchvisionMaskRCNN, batch: Batch) -> ImageList:
    """Their input, which must equal ours; ours is then given to both.

    The last bits differ, torchvision dividing by 255 first, and could swap two boxes whose scores
    are all but the same.
    """
    pixels = ours.normalizer(batch.images, batch.image_sizes)
    expected, _ = theirs.transform(
        [
            image[:, :height, :width] / 255
            for image, (height, width) in zip(batch.images, batch.image_sizes.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(pixels, expected.tensors, atol=1e-5, rtol=1e-5)
    return ImageList(pixels, expected.image_sizes)


@torch.no_grad()
def test_detections_are_the_same(pair, make_batch):
    """Images of two shapes in one padded batch."""
    ours, theirs = pair
    batch = make_batch(sizes=((128, 96), (96, 128)))
    images = normalized_images(ours, theirs, batch)
    their_features = theirs.backbone(images.tensors)
    features = ours.backbone(images.tensors)
    for feature, other in zip(features, their_features.values(), strict=True):
        torch.testing.assert_close(feature, other)

    proposals = ours.rpn.propose(features, batch.image_sizes)
    their_proposals, _ = theirs.rpn(images, their_features)
    for image, boxes in enumerate(their_proposals):
        assert 50 < len(boxes) <= 300
        assert proposals.valid[image].sum() == len(boxes)
        torch.testing.assert_close(
            proposals.boxes[image, : len(boxes)], boxes, atol=1e-3, rtol=1e-4
        )

    detections = ours.detect(batch.images, batch.image_sizes)
    results, _ = theirs.roi_heads(their_features, their_proposals, images.image_sizes)
    assert len(torch.cat([result["labels"] for result in results]).unique()) > 1
    for image, result in enumerate(results):
        count = len(result["boxes"])
        assert count > 5
        assert detections.valid[image].sum() == count
        torch.testing.assert_close(
            detections.boxes[image, :count], result["boxes"], atol=1e-3, rtol=1e-4
        )
        torch.testing.assert_close(
            detections.scores[image, :count], result["scores"], atol=1e-5, rtol=1e-4
        )
        assert torch.equal(detections.labels[image, :count] + 1, result["labels"])
        masks = result["masks"][:, 0]
        assert masks.std() > 0.05
        torch.testing.assert_close(detections.masks[image, :count], masks, atol=1e-4, rtol=1e-4)


def rasterize_rings(rings: list[Tensor], boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """Mask targets by the even-odd rule in float64, in place of torchvision's resampled bitmaps."""
    masks = torch.zeros(len(boxes), size, size)
    for row, (box, gt) in enumerate(zip(boxes.double(), matched.tolist(), strict=True)):
        center = (torch.arange(size).double() + 0.5) / size
        x = (box[0] + center * (box[2] - box[0]))[None, :]
        y = (box[1] + center * (box[3] - box[1]))[:, None]
        crossed = torch.zeros(size, size, dtype=torch.int64)
        for x0, y0, x1, y1 in rings[gt].double():
            if y0 != y1:
                spans = (y0 <= y) != (y1 <= y)
                crossed += spans & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x)
        masks[row] = crossed % 2
    return masks


def test_losses_and_gradients_are_the_same(pair, make_batch, monkeypatch):
    ours, theirs = pair
    theirs.train()
    batch = make_batch()
    targets = batch.targets
    their_targets = []
    for image in range(2):
        valid, offsets = targets.valid[image], targets.polygons.offsets[image].tolist()
        edges = targets.polygons.edges[image]
        their_targets.append(
            {
                "boxes": targets.boxes[image, valid],
                "labels": targets.labels[image, valid] + 1,
                "masks": [edges[a:b] for a, b in itertools.pairwise(offsets) if b > a],
            }
        )
    monkeypatch.setattr(torchvision_roi_heads, "project_masks_on_boxes", rasterize_rings)

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
        gradient = parameters.pop(our_name(name)).grad
        other = parameter.grad
        # The background's deltas and mask have no counterpart, and no gradient there either.
        if "roi_heads.box_predictor.bbox_pred" in name:
            assert other[:4].eq(0).all()
        if "mask_fcn_logits" in name:
            assert other[:1].eq(0).all()
        gradient = theirs_from_ours(name, gradient)
        # float32 sums over thousands of terms in another order, relative to the largest.
        scale = other.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(
            gradient, other, atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: n + m
        )
    assert not parameters
