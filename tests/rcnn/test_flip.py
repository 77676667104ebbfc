"""Flipping the image flips what is detected.

No ordinary network does that: its kernels are not mirror images of themselves, and a stride of two
reads an even width off centre. Here all kernels are mirrored, the trunk's strided convolutions have
windows as wide as their stride, and no horizontal shift is predicted. Then every stage must commute
with the flip, and half a pixel in the anchors, in RoIAlign, the coder or the clipping would show.
"""

import pytest
import torch
from torch import Tensor, nn

from detector.backbones.fpn import FPN
from detector.backbones.normalization import PixelNormalizer
from detector.rcnn import MaskRCNN
from detector.roi_heads.box import BoxBranch, BoxPredictor, TwoFCHead
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.mask import MaskBranch
from detector.roi_heads.mask_heads import FCNMaskHead
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.sampler import RoISampler
from detector.rpn.anchors import AnchorGenerator
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.rpn.rpn import RPN

K, WIDTH, STRIDES = 3, 96, (4, 8, 16)


class Patches(nn.Module):
    """A trunk of convolutions whose windows do not overlap."""

    out_channels = (8, 12, 16)
    strides = STRIDES

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 12, 2, 2), nn.Conv2d(12, 16, 2, 2)]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features, x = [], images
        for stage in self.stages:
            x = stage(x).tanh()
            features.append(x)
        return features


@pytest.fixture
def model() -> MaskRCNN:
    torch.manual_seed(0)
    model = MaskRCNN(
        num_classes=K,
        normalizer=PixelNormalizer(),
        backbone=FPN(Patches(), out_channels=8, extra="none"),
        rpn=RPN(
            # Centred in their cells: at the corners, flipped anchors would not be anchors.
            AnchorGenerator([[16], [32], [48]], strides=STRIDES, offset=0.5),
            RPNHead(8, 3),
            ProposalLayer(2000, 200),
            ProposalLayer(1000, 100),
            num_samples=4000,
        ),
        roi_sampler=RoISampler(K, num_samples=1600),
        box_branch=BoxBranch(
            K,
            RoIPooler(6, STRIDES, canonical_size=96.0),
            TwoFCHead(8, 6, 24),
            BoxPredictor(24, K),
            DetectionLayer(score_threshold=0.1, max_detections=40),
        ),
        mask_branch=MaskBranch(RoIPooler(8, STRIDES), FCNMaskHead(8, K, 2, 8)),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name:
                fan_in = parameter[0].numel()
                parameter.normal_(std=1.5 / fan_in**0.5)
            else:
                parameter.normal_(std=0.1)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
        flat = model.box_branch.head.fc1.weight
        square = flat.view(24, 8, 6, 6)
        flat.copy_(((square + square.flip(-1)) / 2).view_as(flat))
        for deltas in (model.rpn.head.deltas, model.box_branch.predictor.deltas):
            deltas.weight[0::4], deltas.bias[0::4] = 0, 0
    return model


def flip_boxes(boxes: Tensor, valid: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((WIDTH - x2, y1, WIDTH - x1, y2), -1) * valid[..., None]


@torch.no_grad()
def test_detections_flip_with_the_image(model, make_batch):
    batch = make_batch(((64, WIDTH),) * 2, (3, 2), (64, WIDTH))
    model.eval()
    detections = model.detect(batch.images, batch.image_sizes)
    flipped = model.detect(batch.images.flip(-1), batch.image_sizes)
    assert detections.valid.sum(1).ge(10).all()
    assert detections.boxes.diff(dim=1).abs().amax() > 10, "the boxes should differ"
    assert detections.masks[detections.valid].std() > 0.05
    # Sums of float32 in mirrored order.
    torch.testing.assert_close(flipped.valid, detections.valid)
    torch.testing.assert_close(flipped.labels, detections.labels)
    torch.testing.assert_close(flipped.scores, detections.scores, atol=1e-4, rtol=1e-4)
    expected = flip_boxes(detections.boxes, detections.valid)
    torch.testing.assert_close(flipped.boxes, expected, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(flipped.masks, detections.masks.flip(-1), atol=1e-3, rtol=1e-3)


def test_losses_stay_when_image_and_targets_flip(model, make_batch):
    batch = make_batch(((64, WIDTH),) * 2, (3, 2), (64, WIDTH))
    targets = batch.targets
    edges = targets.polygons.edges.clone()
    edges[..., [0, 2]] = WIDTH - edges[..., [0, 2]]
    flipped = type(targets)(
        flip_boxes(targets.boxes, targets.valid),
        targets.labels,
        targets.valid,
        type(targets.polygons)(edges, targets.polygons.offsets, targets.polygons.max_edges),
    )
    losses = model(batch.images, batch.image_sizes, targets)
    assert losses["loss_mask"] > 0.1
    mirrored = model(batch.images.flip(-1), batch.image_sizes, flipped)
    for name, value in losses.items():
        # Anchors and proposals whose overlap with two objects ties, or lies on a threshold, may
        # turn over; a single one of the hundreds moves a loss by less than this.
        torch.testing.assert_close(mirrored[name], value, rtol=2e-3, atol=1e-5, msg=name)
