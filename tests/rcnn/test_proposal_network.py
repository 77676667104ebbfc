"""The Region Proposal Network as a detector of its own."""

import pytest
import torch
from hydra.errors import InstantiationException
from torch import nn

from detector.rcnn import ProposalNetwork

SMALL = (
    "model=rpn_fpn",
    "backbone=resnet18_fpn",
    "model.backbone.out_channels=16",
    "model.backbone.freeze_at=0",
    "model.backbone.norm=bn",
    "model.rpn.anchors.sizes=[[8],[16],[32],[64],[128]]",
    "model.rpn.num_samples=9000",
    "model.rpn.test_proposals.post_nms_top_n=50",
)


@pytest.fixture
def network(compose_model) -> ProposalNetwork:
    torch.manual_seed(0)
    network = compose_model(*SMALL)
    nn.init.normal_(network.rpn.head.objectness.weight, std=0.5)
    return network


def test_losses_are_the_rpns_own_and_train_everything(network, make_batch):
    batch = make_batch()
    network.train()
    losses = network(batch.images, batch.image_sizes, batch.targets)
    assert set(losses) == {"loss_objectness", "loss_rpn_box"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    network.eval()  # so that batch norm sees the same twice
    losses = network(batch.images, batch.image_sizes, batch.targets)
    features = network.backbone(network.normalizer(batch.images, batch.image_sizes))
    _, expected = network.rpn(features, batch.image_sizes, batch.targets)
    torch.testing.assert_close(losses, expected)


def test_it_is_the_first_stage_of_faster_rcnn(network, compose_model):
    """Weights go from the one to the other by name: the alternating training's exchange."""
    with torch.device("meta"):
        faster = compose_model("model=faster_rcnn_fpn", *SMALL[1:])
    state = faster.state_dict()
    own = {name: value.shape for name, value in network.state_dict().items()}
    first_stage = {
        name: value.shape for name, value in state.items() if not name.startswith("box_branch.")
    }
    assert own == first_stage


@torch.no_grad()
def test_detections_are_the_proposals_with_probabilities(network, make_batch):
    network.eval()
    batch = make_batch()
    found = network.detect(batch.images, batch.image_sizes)
    features = network.backbone(network.normalizer(batch.images, batch.image_sizes))
    proposals = network.rpn.propose(features, batch.image_sizes)
    assert found.boxes.shape == (len(batch.images), 50, 4)
    assert torch.equal(found.boxes, proposals.boxes)
    assert torch.equal(found.valid, proposals.valid)
    assert found.labels.eq(0).all()
    assert found.masks is None
    torch.testing.assert_close(found.scores[found.valid], proposals.scores.sigmoid()[found.valid])
    assert found.scores[~found.valid].eq(0).all()
    assert found.scores.diff(dim=1).le(0).all()


def test_images_without_objects_train_objectness_only(network, make_batch):
    batch = make_batch(objects=(0, 0))
    losses = network(batch.images, batch.image_sizes, batch.targets)
    assert losses["loss_rpn_box"] == 0
    assert losses["loss_objectness"] > 0


@pytest.mark.parametrize(
    ("model", "backbone", "anchors", "outputs", "width"),
    [
        ("rpn_fpn", "resnet50_fpn", 3, 3, 256),
        ("rpn_c4", "resnet50_c4", 15, 15, 1024),
        ("rpn_vgg16", "vgg16", 9, 18, 512),
    ],
)
def test_configs(compose_model, model, backbone, anchors, outputs, width):
    with torch.device("meta"):
        network = compose_model(f"model={model}", f"backbone={backbone}")
    assert type(network) is ProposalNetwork
    head = network.rpn.head
    assert head.num_anchors == anchors
    assert head.objectness.out_channels == outputs
    assert head.convs[0][0].out_channels == width
    assert network.rpn.anchors.strides == network.backbone.strides


def test_the_papers_rpn(compose_model):
    """Section 3.1.2 and 3.3 of the paper: 9 anchors, 256 samples, lambda 10, none that crosses."""
    with torch.device("meta"):
        rpn = compose_model("model=rpn_vgg16", "backbone=vgg16").rpn
    assert (rpn.num_samples, rpn.positive_fraction) == (256, 0.5)
    assert (rpn.positive_iou, rpn.negative_iou) == (0.7, 0.3)
    assert (rpn.normalization, rpn.box_weight, rpn.border) == ("paper", 10, 0)
    assert rpn.box_loss.beta == pytest.approx(1 / 3**2)
    assert rpn.test_proposals.post_nms_top_n == 300
    assert rpn.train_proposals.post_nms_top_n == 2000


def test_anchors_that_do_not_fit_the_backbone_are_refused(compose_model):
    with pytest.raises(InstantiationException) as error:
        compose_model(*SMALL, "model.rpn.anchors.strides=[4,8,16,32,128]")
    assert "rpn.anchors.strides" in f"{error.value.__cause__}"
