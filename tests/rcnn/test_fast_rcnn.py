"""Fast R-CNN: the second stage on proposals that come with the images."""

import pytest
import torch
from torch import nn

from detector.ops.slots import keep_empty_slots
from detector.rcnn import FastRCNN
from detector.structures import Proposals
from tests.rcnn.conftest import spread_weights
from tests.rcnn.test_fixed_shapes import FOUR, Guard

SECOND_STAGE = (
    "backbone=resnet18_fpn",
    "model.backbone.out_channels=16",
    "model.backbone.freeze_at=0",
    "model.roi_sampler.num_samples=2400",
    "model.box_branch.pooler.canonical_size=56",
    "model.box_branch.head.width=32",
    "model.box_branch.detections.max_detections=30",
)


def make_proposals(targets, count: int = 40) -> Proposals:
    """Boxes near the objects and elsewhere, the last quarter of the slots empty."""
    generator = torch.Generator().manual_seed(0)
    batch = len(targets.boxes)
    corner = torch.rand(batch, count, 2, generator=generator) * 50
    boxes = torch.cat(
        (corner, corner + 5 + torch.rand(batch, count, 2, generator=generator) * 20), 2
    )
    near = targets.boxes[:, :4] + torch.randn(batch, 4, 4, generator=generator)
    boxes[:, :4] = torch.where(targets.valid[:, :4, None], near.clamp(min=0), boxes[:, :4])
    valid = (torch.arange(count) < count * 3 // 4).expand(batch, -1)
    return Proposals(boxes * valid[..., None], torch.zeros(batch, count), valid)


@pytest.fixture
def pair(compose_model):
    """Fast R-CNN, and a Faster R-CNN with the same second stage."""
    torch.manual_seed(0)
    fast = compose_model("model=fast_rcnn_fpn", *SECOND_STAGE)
    faster = compose_model("model=faster_rcnn_fpn", *SECOND_STAGE)
    spread_weights(faster)
    fast.load_state_dict({k: v for k, v in faster.state_dict().items() if not k.startswith("rpn.")})
    return fast.eval(), faster.eval()


def test_it_is_faster_rcnn_without_its_rpn(pair, make_batch):
    """The RPN's proposals given from outside lead to the same losses and detections."""
    fast, faster = pair
    assert type(fast) is FastRCNN
    assert fast.needs_proposals and not faster.needs_proposals
    batch = make_batch()
    arguments = batch.images, batch.image_sizes
    with torch.no_grad():
        proposals = faster.propose(*arguments)
        expected = faster.detect(*arguments)
        found = fast.detect(*arguments, proposals)
    assert expected.valid.any(1).all()
    for name in ("boxes", "scores", "labels", "valid"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))

    features = faster.backbone(faster.normalizer(*arguments))
    rois = faster.roi_sampler(proposals, batch.targets)
    second_stage = faster.box_branch.losses(features, rois, batch.targets)
    losses = fast(*arguments, batch.targets, proposals)
    assert set(losses) == {"loss_classifier", "loss_box"}
    torch.testing.assert_close(losses, second_stage)


def test_a_step_reaches_every_parameter(pair, make_batch):
    fast = pair[0].train()
    batch = make_batch()
    losses = fast(batch.images, batch.image_sizes, batch.targets, make_proposals(batch.targets))
    sum(losses.values()).backward()
    for name, parameter in fast.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_padding_proposals_changes_nothing(pair, make_batch):
    fast, _ = pair
    batch = make_batch()
    proposals = make_proposals(batch.targets)
    padded = Proposals(
        *(
            nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, 25))
            for x in (proposals.boxes, proposals.scores, proposals.valid)
        )
    )
    arguments = batch.images, batch.image_sizes
    torch.testing.assert_close(
        fast(*arguments, batch.targets, padded), fast(*arguments, batch.targets, proposals)
    )
    with torch.no_grad():
        found, expected = fast.detect(*arguments, padded), fast.detect(*arguments, proposals)
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert torch.equal(found.valid, expected.valid)


def test_without_any_proposal_nothing_is_found(pair, make_batch):
    fast, _ = pair
    batch = make_batch()
    none = Proposals(torch.zeros(2, 64, 4), torch.zeros(2, 64), torch.zeros(2, 64).bool())
    with torch.no_grad():
        assert not fast.detect(batch.images, batch.image_sizes, none).valid.any()
    losses = fast(batch.images, batch.image_sizes, batch.targets, none)
    assert losses["loss_classifier"] > 0, "the gts are still learnt"


def test_neither_training_nor_detection_asks_for_values(pair, make_batch):
    fast = pair[0]
    calls = []
    for count, objects in ((2, (3, 0)), (5, (5, 0, 1, 8, 2))):
        batch = make_batch(FOUR[:count], objects)
        proposals = make_proposals(batch.targets)
        fast.zero_grad()
        with keep_empty_slots(), Guard() as guard:
            losses = fast(batch.images, batch.image_sizes, batch.targets, proposals)
            sum(losses.values()).backward()
        calls.append(guard.calls)
        with torch.no_grad(), keep_empty_slots(), Guard():
            fast.detect(batch.images, batch.image_sizes, proposals)
    assert calls[0] == calls[1]


def test_the_papers_fast_rcnn(compose_model):
    """Section 2.3: 128 RoIs of two images, a quarter foreground, background from IoU .1 on."""
    with torch.device("meta"):
        fast = compose_model("model=fast_rcnn_vgg16", "backbone=vgg16", "num_classes=20")
    sampler = fast.roi_sampler
    assert (2 * sampler.num_samples, sampler.positive_fraction) == (128, 0.25)
    assert (sampler.positive_iou, sampler.background_iou) == (0.5, 0.1)
    assert fast.box_branch.box_loss.beta == 1
    assert type(fast.box_branch.pooler.op).__name__ == "RoIPool"
    # VGG16 without its 1000 classes, 21 scores and 80 deltas.
    count = sum(parameter.numel() for parameter in fast.parameters())
    assert count == 138_357_544 - 4_097_000 + 101 * 4097
