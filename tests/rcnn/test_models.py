"""Every configuration of the group ``model``, narrowed: it builds, trains and detects."""

from __future__ import annotations

import copy
import inspect
from contextlib import nullcontext

import hydra
import omegaconf
import pytest
import torch
import torchvision

from detector.ops.slots import keep_empty_slots
from tests.rcnn.conftest import CONFIGS
from tests.rcnn.test_fixed_shapes import Guard, guarded_step, training_step

# Few proposals and RoIs; every anchor is sampled, so that each level of a pyramid has some.
FEW = (
    "model.rpn.num_samples=9000",
    "model.rpn.train_proposals.pre_nms_top_n=100",
    "model.rpn.train_proposals.post_nms_top_n=60",
    "model.rpn.test_proposals.pre_nms_top_n=60",
    "model.rpn.test_proposals.post_nms_top_n=20",
    "model.roi_sampler.num_samples=24",
    "model.box_branch.detections.max_detections=10",
)
PYRAMID = (
    "backbone=resnet18_fpn",
    "model.backbone.out_channels=16",
    "model.rpn.anchors.sizes=[[8],[16],[32],[64],[128]]",
    "model.box_branch.pooler.canonical_size=56",
    "model.box_branch.head.width=32",
)
ONE_LEVEL = ("model.rpn.anchors.sizes=[[8,16,32,64,128]]",)
C4 = (
    "backbone=resnet50_c4",
    "model.backbone.name=resnet18",
    "model.backbone.out_channels=256",
    "model.box_branch.pooler.out_channels=512",
    *ONE_LEVEL,
)
DC5 = (
    "backbone=resnet50_dc5",
    "model.backbone.name=resnet18",
    "model.backbone.out_channels=512",
    "model.box_branch.head.width=32",
    *ONE_LEVEL,
)
# Half of the paper's anchors lie inside such small images.
PAPER = ("model.rpn.anchors.sizes=[[16,32,64]]", "model.box_branch.head.width=32")
MASKS = ("model.mask_branch.head.width=16",)
MODELS = {
    "faster_rcnn_fpn": PYRAMID,
    "mask_rcnn_fpn": (*PYRAMID, *MASKS),
    "mask_rcnn_fpn_mlp": (*PYRAMID, *MASKS),
    "faster_rcnn_c4": C4,
    "mask_rcnn_c4": (*C4, *MASKS),
    "faster_rcnn_dc5": DC5,
    "mask_rcnn_dc5": (*DC5, *MASKS),
    "faster_rcnn_vgg16": ("backbone=vgg16", *PAPER),
    "faster_rcnn_zf": ("backbone=zf", "model.backbone.freeze_at=1", *PAPER),
    "cascade_rcnn_fpn": PYRAMID,
    "cascade_mask_rcnn_fpn": (*PYRAMID, *MASKS),
}
MASK_SIZES = {"mask_rcnn_c4": 14}


@pytest.fixture
def small(compose_model):
    def build(name: str, *overrides: str):
        torch.manual_seed(0)
        return compose_model(f"model={name}", *MODELS[name], *FEW, *overrides)

    return build


def check_step(model, batch, precision: torch.dtype | None = None) -> None:
    autocast = torch.autocast("cpu", precision) if precision else nullcontext()
    torch.manual_seed(0)
    with autocast:
        losses = model(batch.images, batch.image_sizes, batch.targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    frozen = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
            frozen += 1
    assert frozen > 0, "the first layers of the trunk should be frozen"


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_reaches_every_trainable_parameter(small, make_batch, name, precision):
    check_step(small(name).train(), make_batch(), precision)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_detection(small, make_batch, name):
    model = small(name).eval()
    batch = make_batch()
    found = model.detect(batch.images, batch.image_sizes)
    assert found.boxes.shape == (2, 10, 4)
    assert found.valid.any(1).all()
    assert found.boxes.isfinite().all()
    if "mask" in name:
        side = MASK_SIZES.get(name, 28)
        assert found.masks.shape == (2, 10, side, side)
        assert found.masks[found.valid].gt(0).all()
    else:
        assert found.masks is None


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mask_rcnn_fpn"])
def test_neither_training_nor_detection_asks_for_values(small, make_batch, name):
    model = small(name).train()
    sizes = ((128, 96), (90, 128), (128, 128))
    few = guarded_step(model, make_batch(sizes[:2], (3, 0)))
    many = guarded_step(model, make_batch(sizes, (5, 0, 8)))
    assert few == many
    model.eval()
    batch = make_batch(sizes, (1, 1, 1))
    with torch.no_grad(), keep_empty_slots(), Guard():
        model.detect(batch.images, batch.image_sizes)


ROI_OPS = sorted(path.stem for path in (CONFIGS / "roi_op").glob("*.yaml"))


@pytest.mark.parametrize("op", [op for op in ROI_OPS if op != "spatial_pyramid"])
def test_every_roi_op_trains_a_pyramid(small, make_batch, op):
    """And asks for no value."""
    model = small("mask_rcnn_fpn", f"roi_op={op}").train()
    check_step(model, make_batch())
    guarded_step(model, make_batch())


@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "faster_rcnn_zf", "cascade_rcnn_fpn"])
def test_a_pyramid_of_grids_fits_fully_connected_layers(small, make_batch, name):
    model = small(name, "roi_op=spatial_pyramid").train()
    check_step(model, make_batch())
    guarded_step(model, make_batch())


def test_a_pyramid_of_grids_fits_no_convolutions(small):
    for name, *overrides in (
        ("mask_rcnn_fpn",),
        ("mask_rcnn_fpn", "model.mask_branch.pooler=null"),
        ("mask_rcnn_c4",),
    ):
        with pytest.raises(hydra.errors.InstantiationException) as error:
            small(name, "roi_op=spatial_pyramid", *overrides)
        assert "gives vectors" in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize("masks", ["class_agnostic", "softmax"])
@pytest.mark.parametrize("name", ["mask_rcnn_fpn_mlp", "mask_rcnn_c4"])
def test_other_kinds_of_masks(small, make_batch, name, masks):
    model = small(name, f"model.mask_branch.head.masks={masks}").train()
    check_step(model, make_batch())
    guarded_step(model, make_batch())


def test_a_training_step_of_a_cascade_that_shares_its_features_is_one_graph(small, make_batch):
    """Nothing breaks it, and it computes the same."""
    model = small("cascade_mask_rcnn_fpn", "model.mask_branch.pooler=null", "roi_op=roi_pool")
    model, batch = model.train(), make_batch()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, model):
        torch.manual_seed(0)
        with keep_empty_slots():
            training_step(call, batch)
        results.append([p.grad for p in call.parameters() if p.requires_grad])
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_constructor_takes_stands_in_the_config(name):
    backbone = MODELS[name][0]
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        config = hydra.compose(overrides=[f"+model={name}", f"+{backbone}", "+num_classes=80"])

    def walk(node) -> None:
        if isinstance(node, omegaconf.DictConfig):
            if "_target_" in node:
                target = hydra.utils.get_object(node["_target_"])
                parameters = inspect.signature(target).parameters.values()
                open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
                names = {p.name for p in parameters if p.kind not in open_ended}
                assert names <= set(node), node["_target_"]
            for key in node:
                walk(node[key])

    for key in config.model:
        if key != "backbone":
            walk(config.model[key])


def test_the_published_numbers_of_the_c4_baseline():
    """Detectron2's Base-RCNN-C4 and the defaults behind it."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        config = hydra.compose(
            overrides=["+model=mask_rcnn_c4", "+backbone=resnet50_c4", "+num_classes=80"]
        ).model
    rpn, box, mask = config.rpn, config.box_branch, config.mask_branch
    assert rpn.anchors.sizes == [[32, 64, 128, 256, 512]]
    assert rpn.anchors.strides == [16]
    assert (rpn.train_proposals.pre_nms_top_n, rpn.train_proposals.post_nms_top_n) == (12000, 2000)
    assert (rpn.test_proposals.pre_nms_top_n, rpn.test_proposals.post_nms_top_n) == (6000, 1000)
    assert box.pooler.pooler.output_size == 14
    assert (mask.pooler, mask.head.num_convs, mask.head.width) == (None, 0, 256)


def test_the_stage_starts_from_the_backbones_file(small, tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.resnet18().state_dict()
    torch.save(whole, tmp_path / "resnet18.pth")
    model = small("mask_rcnn_c4", f"model.backbone.weights={tmp_path}/resnet18.pth")
    trunk, stage = model.backbone.trunk.state_dict(), model.box_branch.pooler.state_dict()
    taken = {**trunk, **stage}
    assert set(taken) == {
        name for name in whole if not name.startswith("fc.") and "num_batches" not in name
    }
    assert not set(trunk) & set(stage)
    assert all(torch.equal(value, whole[name]) for name, value in taken.items())


@pytest.mark.parametrize(
    ("name", "backbone", "parameters"),
    [
        # torchvision's VGG16 has 138357544, of which 4097000 are its 1000 classes. The RPN adds a
        # 3x3 convolution of 512, 18 scores and 36 deltas; the head 21 scores and 80 deltas.
        (
            "faster_rcnn_vgg16",
            "vgg16",
            138_357_544 - 4_097_000 + (9 * 512**2 + 512) + 54 * 513 + 101 * 4097,
        ),
        # ResNet-50 has 25557032, of which 2049000 are its classes and 53120 those of frozen norms.
        # The RPN on 1024 channels has 15 scores and 60 deltas, the head 21 scores and 80 deltas.
        (
            "faster_rcnn_c4",
            "resnet50_c4",
            25_557_032 - 2_049_000 - 53_120 + (9 * 1024**2 + 1024) + 75 * 1025 + 101 * 2049,
        ),
    ],
)
def test_parameters_are_those_of_the_published_networks(compose_model, name, backbone, parameters):
    with torch.device("meta"):
        model = compose_model(f"model={name}", f"backbone={backbone}", "num_classes=20")
    assert sum(p.numel() for p in model.parameters()) == parameters
