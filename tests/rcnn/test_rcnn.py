"""R-CNN: the whole trunk on each proposal, everything else as in Fast R-CNN."""

import pytest
import torch

from detector.rcnn import RCNN
from tests.rcnn.test_fast_rcnn import make_proposals


@pytest.fixture
def rcnn(compose_model):
    torch.manual_seed(0)
    return compose_model(
        "model=rcnn_resnet",
        "backbone=resnet50_c5",
        "model.backbone.name=resnet18",
        "model.backbone.norm=gn",
        "model.backbone.freeze_at=0",
        "model.backbone.out_channels=512",
        "model.box_branch.pooler.crops.output_size=64",
        "model.box_branch.pooler.output_size=2",
        "model.roi_sampler.num_samples=12",
    )


def test_rcnn_trains_every_parameter_and_detects(rcnn, make_batch):
    assert type(rcnn) is RCNN and rcnn.needs_proposals
    batch = make_batch()
    proposals = make_proposals(batch.targets, 16)
    losses = rcnn.train()(batch.images, batch.image_sizes, batch.targets, proposals)
    sum(losses.values()).backward()
    for name, parameter in rcnn.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.startswith("box_branch.")
    with torch.no_grad():
        found = rcnn.eval().detect(batch.images, batch.image_sizes, proposals)
        features = rcnn.extract_features(
            batch.images, batch.image_sizes, [found.boxes[0, :3], found.boxes[1, :0]]
        )
    assert found.valid.any(1).all()
    assert features.box_features.shape[:2] == (3, 512)


def test_rcnn_refuses_a_pooler_of_features(compose_model):
    fast = compose_model("model=fast_rcnn_vgg16", "backbone=vgg16", "model.box_branch.head.width=8")
    with pytest.raises(ValueError, match="must be a WarpedTrunk, as in model=rcnn_vgg16"):
        RCNN(
            backbone=fast.backbone,
            box_branch=fast.box_branch,
            num_classes=3,
            normalizer=fast.normalizer,
            roi_sampler=fast.roi_sampler,
        )
