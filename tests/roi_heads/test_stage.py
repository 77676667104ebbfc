"""Res5 as the RoI head: against torchvision's layers, alone and shared by two branches."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detector.backbones.normalization import PixelNormalizer
from detector.ops.slots import keep_empty_slots
from detector.rcnn import MaskRCNN
from detector.roi_heads.box import BoxBranch, BoxPredictor
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.mask import MaskBranch
from detector.roi_heads.mask_heads import FCNMaskHead
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.roi_ops import RoIPool, SpatialPyramid
from detector.roi_heads.sampler import RoISampler
from detector.roi_heads.stage import GlobalAveragePool, RoIStage
from detector.rpn.anchors import AnchorGenerator
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.rpn.rpn import RPN
from detector.structures import Batch, Polygons, Targets

K = 3
BOXES = torch.tensor([[1.0, 2, 40, 50], [10, 20, 60, 60], [0, 0, 64, 64]])
IMAGES = torch.tensor([1, 0, 1])


class Shallow(nn.Module):
    """A map of stride 16 with as many channels as ResNet-18 has at C4."""

    out_channels = 256
    strides = (16,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 256, 16, 16)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images).relu()]


def make_stage(**settings) -> RoIStage:
    torch.manual_seed(0)
    return RoIStage(RoIPooler(14, (16,)), **{"name": "resnet18", "norm": "bn", **settings})


@pytest.fixture
def model() -> MaskRCNN:
    stage = make_stage()
    model = MaskRCNN(
        num_classes=K,
        normalizer=PixelNormalizer(),
        backbone=Shallow(),
        rpn=RPN(
            AnchorGenerator([[16, 32]], strides=(16,)),
            RPNHead(256, 6),
            ProposalLayer(200, 40),
            ProposalLayer(200, 20),
            num_samples=64,
        ),
        roi_sampler=RoISampler(K, num_samples=16),
        box_branch=BoxBranch(
            K,
            stage,
            GlobalAveragePool(),
            BoxPredictor(512, K),
            DetectionLayer(score_threshold=0.0, max_detections=8),
        ),
        mask_branch=MaskBranch(None, FCNMaskHead(512, K, 0, 8)),
    )
    for layer in (model.box_branch.predictor, model.mask_branch.head):
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 64), generator=generator).to(torch.uint8)
    sizes = torch.tensor([[64, 64], [64, 64]])
    corners = [(8.0, 8.0), (40.0, 8.0), (40.0, 24.0), (8.0, 24.0)]
    edges = torch.tensor([(*corners[i - 1], *corners[i]) for i in range(4)])
    targets = Targets(
        boxes=torch.tensor([[[8.0, 8, 40, 24]]] * 2),
        labels=torch.tensor([[2], [1]]),
        valid=torch.tensor([[True]] * 2),
        polygons=Polygons(edges.expand(2, -1, -1), torch.tensor([[0, 4]] * 2), max_edges=4),
    )
    return Batch(images, sizes, sizes, torch.arange(2), targets)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_it_is_torchvisions_layer_after_the_pooler(name):
    stage = make_stage(name=name).eval()
    reference = getattr(torchvision.models, name)()
    reference.layer4.load_state_dict(stage.layer4.state_dict())
    features = [torch.randn(2, stage.in_channels, 4, 4)]
    with torch.no_grad():
        found = stage(features, BOXES, IMAGES)
        rois = torch.cat((IMAGES[:, None].float(), BOXES), 1)
        pooled = torchvision.ops.roi_align(features[0], rois, 14, 1 / 16, 2, True)
        expected = reference.layer4.eval()(pooled)
    assert found.shape == (3, stage.out_channels, 7, 7)
    assert (stage.output_size, stage.num_bins, stage.strides) == (7, 49, [16])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    head = GlobalAveragePool()
    torch.testing.assert_close(head(found), found.flatten(2).sum(2) / 49, atol=1e-5, rtol=1e-4)


def test_it_takes_layer4_of_the_backbones_file(tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.resnet18().state_dict()
    torch.save(whole, tmp_path / "resnet18.pth")
    stage = make_stage(norm="frozen_bn", weights=str(tmp_path / "resnet18.pth"))
    state = stage.state_dict()
    assert all(name.startswith("layer4.") for name in state)
    for name, value in state.items():
        assert torch.equal(value, whole[name]), name
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no layer4"):
        make_stage(weights=str(tmp_path / "other.pth"))


def test_weights_stand_once_in_the_state_dict(model):
    names = list(model.state_dict())
    owners = {name.split("layer4")[0] for name in names if "layer4" in name}
    assert owners == {"box_branch.pooler."}
    assert {name for name in names if name.startswith("mask_branch.")} == {
        f"mask_branch.head.{layer}.{kind}"
        for layer in ("deconv", "logits")
        for kind in ("weight", "bias")
    }
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


@torch.no_grad()
def test_both_branches_of_a_copy_use_the_copys_layers(model):
    """As the average of the weights does."""
    batch = make_batch()
    model.eval()
    twin = copy.deepcopy(model)
    before = model.detect(batch.images, batch.image_sizes)
    for parameter in model.parameters():
        parameter.mul_(0.5)
    after = model.detect(batch.images, batch.image_sizes)
    again = twin.detect(batch.images, batch.image_sizes)
    torch.testing.assert_close(again.masks, before.masks)
    torch.testing.assert_close(again.scores, before.scores)
    assert (after.masks - before.masks).abs().max() > 1e-3
    # And a changed stage of the copy changes its masks.
    for parameter in twin.box_branch.pooler.parameters():
        parameter.mul_(0.9)
    changed = twin.mask_branch.detect(
        twin.backbone(twin.normalizer(batch.images, batch.image_sizes)),
        before,
        shared=twin.box_branch.pooler,
    )
    assert (changed.masks - before.masks).abs().max() > 1e-4


@pytest.mark.parametrize("keep", [False, True])
def test_training_computes_the_stage_once_and_the_gradient_is_of_both_losses(model, keep):
    """The same losses and gradients as when the foreground RoIs are pooled anew."""
    batch = make_batch()
    model.eval()  # batch norms by their running statistics: the same for any number of RoIs
    features = model.backbone(model.normalizer(batch.images, batch.image_sizes))
    torch.manual_seed(0)
    rois = model.roi_sampler(
        model.rpn(features, batch.image_sizes, batch.targets)[0], batch.targets
    )
    assert rois.foreground.sum() >= 2
    calls = []
    hook = model.box_branch.pooler.layer4.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    results = []
    for anew in (False, True):
        inputs = [features[0].detach().clone().requires_grad_()]
        model.zero_grad()

        def losses_of(anew: bool = anew, inputs: list[Tensor] = inputs) -> dict[str, Tensor]:
            if not anew:
                return model.roi_losses(inputs, rois, batch.targets, batch.image_sizes)
            masks = MaskBranch(model.box_branch.pooler, model.mask_branch.head)
            return {
                **model.box_branch.losses(inputs, rois, batch.targets),
                **masks.losses(inputs, rois, batch.targets),
            }

        if keep:
            with keep_empty_slots():
                losses = losses_of()
        else:
            losses = losses_of()
        sum(losses.values()).backward()
        stage = [p.grad.clone() for p in model.box_branch.pooler.parameters()]
        results.append((losses, stage, inputs[0].grad))
    hook.remove()
    first, *anew = calls
    assert first == (rois.valid.numel() if keep else int(rois.valid.sum()))
    assert len(anew) == 2, "shared: one call for both losses"
    assert results[0][0]["loss_mask"] > 0.1
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_another_op_feeds_it():
    stage = RoIStage(RoIPooler(14, (16,), RoIPool()), name="resnet18", norm="bn").eval()
    features = [torch.randn(2, 256, 4, 4)]
    rois = torch.cat((IMAGES[:, None].float(), BOXES), 1)
    expected = stage.layer4(torchvision.ops.roi_pool(features[0], rois, 14, 1 / 16))
    torch.testing.assert_close(stage(features, BOXES, IMAGES), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_stage(name="resnet51"), "pooler.name='resnet51' is not known"),
        (lambda: make_stage(out_channels=2048), "set pooler.out_channels=512"),
        (
            lambda: RoIStage(RoIPooler(14, (16,), SpatialPyramid()), "resnet18"),
            "pooler.pooler.op=SpatialPyramid gives vectors",
        ),
        (
            lambda: BoxBranch(
                K, make_stage(), GlobalAveragePool(), BoxPredictor(256, K), DetectionLayer()
            ),
            "set box_branch.predictor.in_channels=512",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stage_of_another_backbone_is_refused(model):
    parts = {
        name: getattr(model, name)
        for name in ("num_classes", "normalizer", "backbone", "rpn", "roi_sampler", "mask_branch")
    }
    box_branch = copy.deepcopy(model.box_branch)
    box_branch.pooler.in_channels = 1024
    with pytest.raises(ValueError, match="takes 1024 channels, but the backbone gives 256"):
        MaskRCNN(box_branch=box_branch, **parts)
