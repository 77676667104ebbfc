"""What the groups ``model`` and ``backbone`` build."""

import inspect
from pathlib import Path

import hydra
import omegaconf
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.rcnn import FasterRCNN, MaskRCNN

CONFIGS = Path(__file__).parents[2] / "configs"

# Of the published networks without their classifier: torchvision's counts less 512 or 2048 inputs
# by 1000 classes and as many biases.
TRUNK_PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
}


@pytest.mark.parametrize("name", TRUNK_PARAMETERS)
def test_backbones(compose_model, name):
    with torch.device("meta"):
        model = compose_model(f"backbone={name}_fpn")
    trunk = model.backbone.trunk
    norms = [module for module in trunk.modules() if isinstance(module, FrozenBatchNorm2d)]
    # Frozen batch norms hold their scale and shift as buffers.
    affine = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    assert sum(p.numel() for p in trunk.parameters()) + affine == TRUNK_PARAMETERS[name]
    assert not trunk.layer1[0].conv1.weight.requires_grad
    assert trunk.layer2[0].conv1.weight.requires_grad
    assert model.backbone.strides == (4, 8, 16, 32, 64)
    pyramid = [
        feature.shape for feature in model.backbone(torch.zeros(1, 3, 64, 96, device="meta"))
    ]
    assert pyramid == [(1, 256, 16 >> i, 24 >> i) for i in range(4)] + [(1, 256, 1, 2)]


def test_mask_rcnn_has_the_parameters_of_the_reference(compose_model):
    """torchvision publishes 44 401 393 for 91 classes with background; a frozen batch norm has no
    parameters in either, and it counts deltas and a mask for the background too."""
    with torch.device("meta"):
        model = compose_model("backbone=resnet50_fpn", "num_classes=90")
    assert type(model) is MaskRCNN
    assert model.has_masks
    assert model.num_classes == 90
    background = 4 * (1024 + 1) + (256 + 1)
    assert sum(p.numel() for p in model.parameters()) + background == 44_401_393


def test_faster_rcnn_is_mask_rcnn_without_its_branch(compose_model):
    with torch.device("meta"):
        faster, mask = compose_model("model=faster_rcnn_fpn"), compose_model()
    assert type(faster) is FasterRCNN
    assert not faster.has_masks
    shapes = {name: value.shape for name, value in mask.state_dict().items()}
    for name in list(shapes):
        if name.startswith("mask_branch."):
            del shapes[name]
    assert {name: value.shape for name, value in faster.state_dict().items()} == shapes


@pytest.mark.parametrize("norm", ["bn", "gn", "sync_bn", "none"])
def test_norms_train(make_model, make_batch, norm):
    """One step lowers the loss of its own batch and reaches every parameter."""
    model = make_model(f"model.backbone.norm={norm}").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    batch = make_batch()

    def total() -> torch.Tensor:
        return sum(model(batch.images, batch.image_sizes, batch.targets).values())

    before = total()
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert total() < before


def test_numbers_are_written_where_constructors_take_them(compose_model):
    """Every default of a constructor stands in the config, so that a reader of it sees all."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        config = hydra.compose(
            overrides=["+model=mask_rcnn_fpn", "+backbone=resnet50_fpn", "+num_classes=80"]
        )
    left_out = {"FPN.extra_level"}

    def walk(node) -> None:
        if not isinstance(node, omegaconf.DictConfig):
            return
        if "_target_" in node:
            target = hydra.utils.get_object(node["_target_"])
            parameters = inspect.signature(target).parameters
            names = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            absent = {f"{target.__name__}.{name}" for name in names - set(node)}
            assert absent <= left_out, f"{node['_target_']}: {absent}"
        for key in node:
            walk(node[key])

    walk(config.model)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone.name=resnet51", "resnet51"),
        ("model.backbone.norm=batch", "batch"),
        ("model.backbone.weights=/no/such/file.pth", "no such weights file"),
        ("model.rpn.anchors.sizes=[[8],[16]]", "2 lists of sizes for 5 levels"),
        ("model.rpn.head.num_anchors=5", "set rpn.head.num_anchors=3"),
        ("model.rpn.anchors.aspect_ratios=[1.0]", "set rpn.head.num_anchors=1"),
        ("model.rpn.anchors.strides=[4,8,16,32,128]", "strides [4, 8, 16, 32, 64]"),
        ("model.box_branch.pooler.strides=[8,16,32]", "box_branch.pooler.strides=[8, 16, 32]"),
        ("model.mask_branch.pooler.strides=[4,16]", "mask_branch.pooler.strides=[4, 16]"),
        ("roi_op.sampling_ratio=-1", "roi_op.sampling_ratio=-1"),
        ("model.rpn.num_samples=0", "rpn.num_samples=0"),
        ("model.rpn.positive_fraction=0.0", "rpn.positive_fraction=0.0"),
        ("model.rpn.negative_iou=0.8", "rpn.negative_iou=0.8 and rpn.positive_iou=0.7"),
        ("model.roi_sampler.positive_fraction=2.0", "roi_sampler.positive_fraction=2.0"),
        ("model.roi_sampler.positive_iou=50", "roi_sampler.positive_iou=50"),
    ],
)
def test_impossible_settings_are_refused(compose_model, override, message):
    with pytest.raises(hydra.errors.InstantiationException) as error:
        compose_model(override)
    chain = f"{error.value} {error.value.__cause__}"
    assert message in chain


def test_norms_of_the_pyramid_and_the_mask_head(make_model, make_batch):
    model = make_model("model.backbone.fpn_norm=gn", "model.mask_branch.head.norm=gn")
    assert isinstance(model.mask_branch.head.convs[0][1], nn.GroupNorm)
    assert isinstance(model.backbone.output[3][1], nn.GroupNorm)
    batch = make_batch(objects=(0, 0))
    losses = model(batch.images, batch.image_sizes, batch.targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
