import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from detector.data.augmentation import Augmentation
from detector.data.end_of_training import Moment
from tests.data.test_augmentation import make_sample

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [
    *(CONFIGS / "experiment").glob("*.yaml"),
    *(CONFIGS / "experiment").glob("ablation/*.yaml"),
]
EXPERIMENTS = sorted(
    str(path.relative_to(CONFIGS / "experiment").with_suffix("")) for path in FILES
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_resolve_and_say_what_they_are(name: str, compose_recipe) -> None:
    cfg = compose_recipe(name)
    OmegaConf.resolve(cfg)
    assert cfg.name in (name, name.partition("/")[2])
    instantiate(cfg.schedule)
    header = (CONFIGS / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert ("command" in header and f"experiment={name}" in header) or name == "shapes"
    assert "AP" in header and "time" in header


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_model_of_every_experiment_builds(name: str, compose_recipe) -> None:
    """Parts that do not fit refuse each other when they are put together."""
    cfg = compose_recipe(name)
    cfg.num_classes = 5
    cfg.num_keypoints = 17
    cfg.model.backbone.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if re.search("_[13]x", name)])
def test_the_1x_and_3x_recipes_are_the_published_ones(name: str, compose_recipe) -> None:
    """What Detectron2's files of these recipes say, or the defaults behind them."""
    cfg = compose_recipe(name)
    steps, drops = (90000, (60000, 80000)) if "_1x" in name else (270000, (210000, 250000))
    assert (cfg.training.max_steps, cfg.data.batch_size) == (steps, 16)
    schedule = instantiate(cfg.schedule)
    rates = [cfg.optimizer.lr * schedule(step) for step in (0, 500, 1000, drops[0] - 1, *drops)]
    assert rates == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 0.002, 0.0002])
    optimizer = cfg.optimizer
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.9, 1e-4, False)
    decays = (optimizer.norm_weight_decay, optimizer.bias_weight_decay, optimizer.bias_lr_factor)
    assert decays == (0.0, None, 1.0)
    train, val = cfg.augment.train[0], cfg.augment.val[0]
    assert (list(train.shortest), train.longest) == ([640, 672, 704, 736, 768, 800], 1333)
    assert (val.shortest, val.longest) == (800, 1333)
    assert not cfg.data.train.keep_empty and cfg.data.aspect_ratio_grouping
    norm = {"gn": "gn", "syncbn": "sync_bn"}.get(name.rpartition("_")[2], "frozen_bn")
    assert (cfg.model.backbone.freeze_at, cfg.model.backbone.norm) == (2, norm)
    if norm != "frozen_bn":
        model = cfg.model
        assert model.backbone.fpn_norm == model.box_branch.head.norm == norm
        assert model.mask_branch.head.norm == norm and model.box_branch.head.num_convs == 4
    assert cfg.training.precise_bn_steps == (200 if norm == "sync_bn" else 0)


@pytest.mark.parametrize(
    ("name", "proposals"),
    [
        ("faster_rcnn_r50_fpn_1x", (2000, 1000, 1000, 1000)),
        ("mask_rcnn_r50_dc5_1x", (12000, 2000, 6000, 1000)),
        ("cascade_mask_rcnn_r50_fpn_1x", (2000, 2000, 1000, 1000)),
        ("keypoint_rcnn_r50_fpn_1x", (2000, 1500, 1000, 1000)),
        ("rpn_r50_fpn_1x", (2000, 1000, 1000, 2000)),
        ("rpn_r50_c4_1x", (12000, 2000, 12000, 2000)),
    ],
)
def test_numbers_of_proposals_are_those_of_the_published_recipes(
    name: str, proposals: tuple[int, ...], compose_tool
) -> None:
    """Detectron2's RPN.{PRE,POST}_NMS_TOPK_{TRAIN,TEST}, what its file of the recipe says or the
    defaults behind it."""
    rpn = compose_tool("train", f"experiment={name}").model.rpn
    layers = (rpn.train_proposals, rpn.test_proposals)
    assert proposals == tuple(n for x in layers for n in (x.pre_nms_top_n, x.post_nms_top_n))


@pytest.mark.parametrize("name", ["faster_rcnn_r50_c4_1x", "mask_rcnn_r50_dc5_3x"])
def test_on_one_level_rois_are_sampled_as_in_the_published_recipes(name: str, compose_tool) -> None:
    """Detectron2's POOLER_SAMPLING_RATIO 0 of ROIAlignV2: a large RoI has many cells in a bin."""
    op = compose_tool("train", f"experiment={name}").roi_op
    assert (op.sampling_ratio, op.aligned, op.mode) == (0, True, "avg")


@pytest.mark.parametrize("name", ["keypoint_rcnn_r50_fpn_1x", "keypoint_rcnn_r50_fpn_3x"])
def test_keypoint_recipes_are_the_published_ones(name: str, compose_tool) -> None:
    """What Detectron2's Base-Keypoint-RCNN-FPN says beside the numbers of proposals, and the
    defaults of its ROI_KEYPOINT_HEAD."""
    cfg = compose_tool("train", f"experiment={name}", "num_keypoints=17")
    branch = cfg.model.keypoint_branch
    assert cfg.model.box_branch.smooth_l1_beta == 0.5
    assert cfg.data.train.min_keypoints == 1 and cfg.data.val.get("min_keypoints", 0) == 0
    assert cfg.data.train.annotations.endswith("annotations/person_keypoints_train2017.json")
    assert (branch.head.num_convs, branch.head.width, branch.pooler.output_size) == (8, 512, 14)
    assert (branch.normalizer, branch.keypoint_weight) == ("visible", 1.0)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "voc07" in name])
def test_voc_recipes_descend_as_in_the_papers(name: str, compose_tool) -> None:
    """Fast R-CNN, section 2.3: rate 1 for weights and 2 for biases of 0.001 in all, momentum 0.9,
    decay 0.0005 on weights and biases."""
    model = torch.nn.Linear(2, 1)
    optimizer = instantiate(compose_tool("train", f"experiment={name}").optimizer)(model)
    weights, biases = optimizer.param_groups
    assert weights["params"] == [model.weight] and biases["params"] == [model.bias]
    assert (weights["lr"], biases["lr"]) == (0.001, 0.002)
    for group in (weights, biases):
        assert (group["momentum"], group["weight_decay"]) == (0.9, 0.0005)


# Images of COCO's train2017 with objects, which an epoch of torchvision's recipes has.
TRAIN2017 = 117266


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "drops", "rate", "decay"),
    [
        ("faster_rcnn_r50_fpn", 16, 26, (16, 22), 0.02, 1e-4),
        ("mask_rcnn_r50_fpn", 16, 26, (16, 22), 0.02, 1e-4),
        ("faster_rcnn_mobilenet_v3_large_320_fpn", 16, 26, (16, 22), 0.02, 1e-4),
        ("faster_rcnn_r50_fpn_v2", 64, 400, (352, 384), 0.1, 4e-5),
        ("mask_rcnn_r50_fpn_v2", 64, 400, (352, 384), 0.1, 4e-5),
    ],
)
def test_torchvisions_recipes_are_the_published_ones(
    name, batch, epochs, drops, rate, decay, compose_recipe
) -> None:
    cfg = compose_recipe(f"torchvision_{name}")
    steps = TRAIN2017 // batch
    assert (cfg.data.batch_size, cfg.training.max_steps) == (batch, epochs * steps)
    assert list(cfg.schedule.milestones) == [epoch * steps for epoch in drops]
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (rate, decay)
    assert cfg.optimizer.norm_weight_decay is None and not cfg.roi_op.aligned
    assert cfg.model.box_branch.smooth_l1_beta == cfg.model.rpn.smooth_l1_beta == 1 / 9


def test_the_lsj_recipe_is_the_published_one(compose_recipe) -> None:
    """Detectron2's new baselines: 100 epochs, of 118000 images each."""
    cfg = compose_recipe("mask_rcnn_r50_fpn_lsj_100ep")
    assert cfg.training.max_steps * cfg.data.batch_size == 100 * 118000
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (0.1, 4e-5)
    jitter = cfg.augment.train[0]
    assert (jitter.size, jitter.min_scale, jitter.max_scale) == (1024, 0.1, 2.0)
    assert list(cfg.data.buckets[0]) == [1024, 1024]
    model = cfg.model
    assert (model.rpn.head.num_convs, model.box_branch.head.num_convs) == (2, 4)
    norms = {model.backbone.norm, model.backbone.fpn_norm, model.box_branch.head.norm}
    assert norms | {model.mask_branch.head.norm} == {"sync_bn"}
    assert (model.backbone.freeze_at, model.backbone.weights) == (0, None)


def test_copy_paste_is_jitter_and_then_pasting(compose_recipe) -> None:
    """Simple Copy-Paste, section 3, and its authors' configuration; else the recipe without it."""
    cfg = compose_recipe("mask_rcnn_r50_fpn_lsj_copy_paste_100ep")
    plain = compose_recipe("mask_rcnn_r50_fpn_lsj_100ep")
    *before, switch = instantiate(cfg.augment.train, _convert_="all")
    (mix,) = switch.transforms
    assert (before[0].size, before[0].min_scale, before[0].max_scale) == (1024, 0.1, 2.0)
    assert [type(each).__name__ for each in before] == ["LargeScaleJitter", "HorizontalFlip"]
    assert (mix.size, mix.blur, mix.p) == ((1024, 1024), 0, 1)
    assert (mix.max_box_shift, mix.min_area) == (10, 300)
    for key in ("model", "optimizer", "schedule", "training"):
        assert cfg[key] == plain[key]
    assert cfg.augment.val == plain.augment.val


@pytest.mark.parametrize(
    "name, former, sides", [("lsj", "lsj", (768, 1024)), ("multi_scale", "default", (800, 1067))]
)
def test_jitter_that_ends_before_training_does(compose_tool, name, former, sides) -> None:
    cfg = compose_tool("train", "experiment=mask_rcnn_r50_fpn_1x", f"augment={name}_then_plain")
    plain = compose_tool("train", "experiment=mask_rcnn_r50_fpn_1x", f"augment={former}")
    jitter = cfg.augment.train[0].transforms
    assert [*jitter, *cfg.augment.train[1:]] == list(plain.augment.train)
    assert cfg.augment.val == plain.augment.val
    augmentation = Augmentation(instantiate(cfg.augment.train, _convert_="all"))
    image, rings = np.zeros((480, 640, 3), np.uint8), [np.float32([[9, 9], [600, 9], [600, 400]])]
    found = {False: set(), True: set()}
    for step in range(90, 100):
        for is_late in (False, True):
            rng = np.random.default_rng(step)
            moment = Moment(step - 10 * (not is_late), 100)
            sample = augmentation(make_sample(rings, image), rng, moment=moment)
            found[is_late].add(sample.image.shape[:2])
    assert found[True] == {sides} and len(found[False]) > 2


def test_the_rows_of_the_tables_are_the_papers(compose_tool) -> None:
    """Mask R-CNN, table 2: each row of a sweep composes to what its name says."""
    rows = {"r50_c4": 64, "r101_c4": 64, "r50_fpn": 512, "r101_fpn": 512, "x101_fpn": 512}
    for row, num_samples in rows.items():
        word = f"experiment/ablation/row@_global_={row}"
        cfg = compose_tool("train", "experiment=ablation/table2a", word, "weights.resnet101=a.pth")
        assert cfg.model.roi_sampler.num_samples == num_samples
        assert cfg.model.rpn.test_proposals.post_nms_top_n == (300 if "c4" in row else 1000)
        assert cfg.model.backbone.name.startswith({"r": "resnet", "x": "resnext101"}[row[0]])
        assert cfg.model.backbone.weights == ("a.pth" if "r101" in row else None)
        assert (cfg.training.max_steps, list(cfg.schedule.milestones)) == (160000, [120000])


def test_the_last_table_compares_layers_of_masks(compose_tool) -> None:
    """Mask R-CNN, table 2e: 1024 outputs of each hidden layer, or the FCN, all with an FPN."""
    for row, kind, number in (("mlp2", "MLP", 2), ("mlp3", "MLP", 3), ("fcn", "FCN", 4)):
        word = f"experiment/ablation/row@_global_={row}"
        model = compose_tool("train", "experiment=ablation/table2e", word).model
        head = model.mask_branch.head
        assert head._target_.endswith(f".{kind}MaskHead")
        assert (head.num_convs if kind == "FCN" else head.num_fcs) == number
        assert head.width == (256 if kind == "FCN" else 1024)
        assert model.backbone._target_.endswith("resnet_fpn")
        assert model.roi_sampler.num_samples == 512
