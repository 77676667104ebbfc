"""Files of Detectron2's: names, recipes and round trips, against tables that Detectron2 wrote."""

import pickle
import re

import numpy as np
import pytest
import torch

from detector.backbones.resnet import ResNet
from detector.engine.assembly import build
from detector.engine.checkpoint import checkpoint_config
from detector.interop import detectron2
from detector.interop.caffe2_names import detectron2_name, detectron2_tensors
from detector.interop.convert import load_any
from detector.interop.detectron2_networks import imagenet_network
from detector.interop.files import StateFile
from detector.interop.key_rules import UnknownKeys
from detector.interop.recipes import compose_config
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.stage import RoIStage
from tests.interop.detectron2_expected import (
    TABLES,
    caffe2_blobs,
    read_tables,
)

KEYS = read_tables()
# What the files of Detectron2's configs/ say: the numbers of proposals before and after NMS, in
# training and at inference, where the blocks stride, and the standard deviation of red.
PROPOSALS = {
    "rpn_R_50_C4": (12000, 2000, 12000, 2000),
    "rpn_R_50_FPN": (2000, 1000, 1000, 2000),
    "keypoint_rcnn": (2000, 1500, 1000, 1000),
    "cascade": (2000, 2000, 1000, 1000),
    "C4": (12000, 2000, 6000, 1000),
    "DC5": (12000, 2000, 6000, 1000),
    "FPN": (2000, 1000, 1000, 1000),
}
DIFFERENT = {
    "mask_rcnn_X_101_32x8d_FPN_3x": (False, 58.395),
    "mask_rcnn_R_50_FPN_3x_gn": (False, 1.0),
}


def make_state(config: str, **metadata) -> StateFile:
    """The names and shapes of a zoo model, without numbers."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in KEYS[config].items()}
    return StateFile(tensors, "pickle", metadata, f"{config}.pkl")


@pytest.mark.parametrize("config", TABLES)
def test_models_of_the_zoo_are_recognised_and_fit(config):
    state = make_state(config)
    recipe = detectron2.recognise(state)
    cfg = compose_config(recipe)
    model = build_on_meta(cfg, recipe.num_classes)
    ours = detectron2.to_ours(state, recipe)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in ours.items()} == expected

    theirs = detectron2.from_ours(model.state_dict(), cfg)
    assert theirs.pop("pixel_mean").flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])
    theirs.pop("pixel_std")
    assert {name: list(value.shape) for name, value in theirs.items()} == KEYS[config]
    assert all(detectron2.their_name(name, recipe) in KEYS[config] for name in expected)

    rpn = cfg.model.get("rpn")
    if rpn is not None:
        layers = (rpn.train_proposals, rpn.test_proposals)
        counts = tuple(n for layer in layers for n in (layer.pre_nms_top_n, layer.post_nms_top_n))
        assert counts == next(
            value for part, value in PROPOSALS.items() if part in config.rpartition("/")[2]
        )
    in_1x1, std = DIFFERENT.get(config.rpartition("/")[2], (True, 1.0))
    assert cfg.model.backbone.stride_in_1x1 is in_1x1
    assert cfg.model.normalizer.std[0] == std


def build_on_meta(cfg, num_classes):
    cfg = cfg.copy()
    cfg.num_classes = num_classes
    with torch.device("meta"):
        return build(cfg.model)


def test_classes():
    coco = detectron2.recognise(make_state("COCO-Detection/faster_rcnn_R_50_FPN_1x"))
    assert (coco.class_names[0], coco.class_names[-1]) == ("person", "toothbrush")
    assert len(coco.category_ids) == 80
    assert (coco.category_ids[11], coco.category_ids[-1]) == (13, 90)  # there is no 12
    voc = detectron2.recognise(make_state("PascalVOC-Detection/faster_rcnn_R_50_C4"))
    assert voc.class_names[0] == "aeroplane"
    assert len(voc.class_names) == 20
    person = detectron2.recognise(make_state("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"))
    assert (person.class_names, person.category_ids) == (("person",), (1,))
    cityscapes = detectron2.recognise(make_state("Cityscapes/mask_rcnn_R_50_FPN"))
    assert cityscapes.class_names[-1] == "class 8"


def test_pixels_of_the_file_win():
    """Trained on red, green, blue as torchvision normalises them: then it strides in the 3x3."""
    state = make_state("COCO-Detection/rpn_R_50_FPN_1x")
    state.tensors["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    state.tensors["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    cfg = compose_config(detectron2.recognise(state))
    assert list(cfg.model.normalizer.std) == [58.395, 57.12, 57.375]
    assert list(cfg.model.normalizer.mean) == [123.675, 116.28, 103.53]
    assert not cfg.model.backbone.stride_in_1x1
    state.tensors["backbone.bottom_up.stem.conv1.weight"] = stem = torch.rand(64, 3, 7, 7)
    assert torch.equal(trunk_stem(state), stem)
    del state.tensors["pixel_mean"], state.tensors["pixel_std"]
    assert torch.equal(trunk_stem(state), stem[:, [2, 1, 0]])


def trunk_stem(state):
    return detectron2.to_ours(state, detectron2.recognise(state))["backbone.trunk.conv1.weight"]


@pytest.mark.parametrize("kind", ["faster_fpn", "mask_fpn", "mask_c4", "keypoint_fpn", "rpn_fpn"])
def test_caffe2_blobs_are_the_tensors_of_the_same_model(kind):
    config = {
        "faster_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x",
        "mask_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "mask_c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
        "keypoint_fpn": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
        "rpn_fpn": "COCO-Detection/rpn_R_50_FPN_1x",
    }[kind]
    blobs = {name: torch.zeros(2) for name in caffe2_blobs(kind)}
    assert detectron2_tensors(blobs).keys() == KEYS[config].keys()


def test_caffe2_orders_and_norms():
    blobs = {
        **{name: torch.zeros(2) for name in caffe2_blobs("mask_fpn")},
        "cls_score_w": torch.arange(6.0).view(3, 2),  # background first
        "bbox_pred_w": torch.arange(24.0).view(12, 2),
        "mask_fcn_logits_w": torch.arange(3.0).view(3, 1, 1, 1),
        "cls_score_w_momentum": torch.ones(3, 2),
        "lr": torch.tensor(0.1),
    }
    tensors = detectron2_tensors(blobs)
    predictor = "roi_heads.box_predictor."
    assert tensors[f"{predictor}cls_score.weight"].tolist() == [[2, 3], [4, 5], [0, 1]]
    assert torch.equal(tensors[f"{predictor}bbox_pred.weight"], blobs["bbox_pred_w"][4:])
    assert tensors["roi_heads.mask_head.predictor.weight"].flatten().tolist() == [1, 2]
    norm = "backbone.bottom_up.res4.3.conv2.norm."
    assert tensors[f"{norm}running_mean"].tolist() == [0, 0]
    assert tensors[f"{norm}running_var"].tolist() == [1, 1]


def blobs_of(kind: str, config: str) -> dict[str, torch.Tensor]:
    """Blobs of the shapes that a model of one class more, the background, has."""
    shapes = KEYS[config]
    blobs = {}
    for blob in caffe2_blobs(kind):
        name = detectron2_name(blob, "backbone.bottom_up.")
        shape = list(shapes.get(name, [1]))
        shape[0] += {"bbox_pred": 4, "mask_fcn_logits": 1}.get(blob.rpartition("_")[0], 0)
        blobs[blob] = torch.empty(shape, device="meta")
    return blobs


def test_detectrons_models_have_its_anchors_pixels_and_pooling():
    config = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    state = StateFile(blobs_of("mask_fpn", config), "pickle", {}, "model_final.pkl")
    recipe = detectron2.recognise(state)
    cfg = compose_config(recipe)
    expected = build_on_meta(cfg, 80).state_dict()
    ours = detectron2.to_ours(state, recipe)
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in expected.items()}
    assert recipe.name.startswith("Detectron mask_rcnn_fpn")
    assert (cfg.roi_op.aligned, cfg.roi_op.sampling_ratio) == (False, 2)
    assert cfg.model.rpn.anchors.legacy
    # Blue, green, red are 102.9801, 115.9465, 122.7717 in its config.py.
    assert list(cfg.model.normalizer.mean) == [122.7717, 115.9465, 102.9801]


def stem_and_res2() -> dict[str, np.ndarray]:
    """The beginning of MSRA's R-50, as the file has it."""
    generator = np.random.default_rng(0)
    shapes = ResNet("resnet50", outputs=(2,)).state_dict()
    blobs = {"fc1000_w": np.ones((10, 4), np.float32), "conv1_b": np.zeros(64, np.float32)}
    for blob in caffe2_blobs("rpn_fpn"):
        name = detectron2_name(blob, "")
        if not name.startswith(("stem.", "res2.")) or name.endswith("fc.weight"):
            continue
        ours = name.replace("stem.", "").replace("res2.", "layer1.")
        ours = ours.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        ours = re.sub(r"conv(\d)\.norm", r"bn\1", ours)
        if ours in shapes:
            blobs[blob] = generator.random(shapes[ours].shape, np.float32)
    return blobs


def test_a_trunk_starts_from_msras_file(tmp_path):
    path = tmp_path / "R-50.pkl"
    blobs = stem_and_res2()
    path.write_bytes(pickle.dumps(blobs, 2))
    trunk = ResNet("resnet50", outputs=(2,), stride_in_1x1=True, weights=str(path))
    assert torch.equal(trunk.conv1.weight, torch.from_numpy(blobs["conv1_w"]).flip(1))
    block = trunk.layer1[0]
    assert torch.equal(block.bn2.weight, torch.from_numpy(blobs["res2_0_branch2b_bn_s"]))
    assert torch.equal(block.downsample[1].bias, torch.from_numpy(blobs["res2_0_branch1_bn_b"]))
    assert set(block.bn2.running_var.tolist()) == {1.0}
    with pytest.raises(ValueError, match=r"1x1 .*model.backbone.stride_in_1x1=true .*std=\[1.0"):
        ResNet("resnet50", outputs=(2,), weights=str(path))
    with pytest.raises(ValueError, match=r"1x1 .*stride_in_1x1=true"):
        RoIStage(RoIPooler(14, [16]), "resnet50", weights=str(path))


def test_networks_say_what_they_expect():
    def conventions(state):
        return imagenet_network(state).conventions

    msra = {name: torch.from_numpy(value) for name, value in stem_and_res2().items()}
    assert conventions(StateFile(msra, "pickle")).stride_in_1x1
    # 32 groups of 8 channels, and statistics.
    fair = {**msra, "res2_0_branch2b_w": torch.zeros(256, 8, 3, 3)}
    fair |= {"res_conv1_bn_rm": torch.ones(64), "res_conv1_bn_riv": torch.full((64,), 2.0)}
    network = imagenet_network(StateFile(fair, "pickle"))
    assert (network.conventions.stride_in_1x1, network.conventions.std[0]) == (False, 58.395)
    assert network.conventions.bgr
    assert network.tensors["bn1.running_var"].tolist() == [2.0] * 64
    # torchvision's, as tools/convert-torchvision-to-d2.py of Detectron2 writes it.
    tensors = {"stem.conv1.weight": torch.rand(64, 3, 7, 7), "stem.fc.weight": torch.ones(3, 3)}
    tensors |= {"stem.conv1.norm.running_mean": torch.ones(64)}
    tensors |= {"res2.0.conv1.weight": torch.ones(64, 64, 1, 1)}
    network = imagenet_network(StateFile(tensors, "pickle", {"__author__": "torchvision"}))
    assert (network.conventions.bgr, network.conventions.stride_in_1x1) == (False, False)
    assert network.conventions.std[0] == 58.395
    assert torch.equal(network.tensors["conv1.weight"], tensors["stem.conv1.weight"])
    assert "fc.weight" not in network.tensors
    assert imagenet_network(StateFile({"conv1.weight": torch.ones(1)}, "torch")) is None


def test_a_file_becomes_a_checkpoint_and_goes_back(tmp_path):
    """Through the file, to ours and back, bit for bit."""
    config = "COCO-Detection/rpn_R_50_C4_1x"
    generator = np.random.default_rng(0)
    arrays = {name: generator.random(shape, np.float32) for name, shape in KEYS[config].items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.ones((15, 4), np.float32)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2"}, 2))
    content = load_any(path)
    cfg = checkpoint_config(content)
    model = build(cfg.model)
    model.load_state_dict(content["model"])
    assert len(content["class_names"]) == 80
    theirs = detectron2.from_ours(model.state_dict(), cfg)
    del arrays["proposal_generator.anchor_generator.cell_anchors.0"]
    assert theirs.keys() == {*arrays, "pixel_mean", "pixel_std"}
    assert all(torch.equal(theirs[name], torch.from_numpy(arrays[name])) for name in arrays)
    again = StateFile(theirs, "torch")
    read = detectron2.to_ours(again, detectron2.recognise(again))
    assert read.keys() == content["model"].keys()
    assert all(torch.equal(read[name], value) for name, value in content["model"].items())
    assert compose_config(detectron2.recognise(again)) == compose_config(
        detectron2.recognise(make_state(config))
    )


def test_what_is_not_here_is_refused():
    config = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    deformable = make_state(config)
    deformable.tensors["backbone.bottom_up.res3.0.conv2_offset.weight"] = torch.zeros(1)
    recipe = detectron2.recognise(deformable)
    with pytest.raises(UnknownKeys, match="conv2_offset"):
        detectron2.to_ours(deformable, recipe)
    no_rpn = {n: v for n, v in make_state(config).tensors.items() if "rpn" not in n}
    with pytest.raises(ValueError, match="mask_rcnn_fpn without an RPN, which is not here"):
        detectron2.recognise(StateFile(no_rpn, "torch"))
    retina = {n: v for n, v in no_rpn.items() if not n.startswith("roi_heads")}
    assert detectron2.recognise(StateFile(retina, "torch")) is None
    assert detectron2.recognise(StateFile({"backbone.body.conv1.weight": 0}, "torch")) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.rpn.head.objectness=softmax", "model.rpn.head.objectness=softmax"),
        ("model.mask_branch.head.masks=softmax", "model.mask_branch.head.masks=softmax"),
        ("model.backbone.extra=none", "model.backbone.extra=none"),
        ("backbone=mobilenet_v3_large_fpn", "no name there"),
    ],
)
def test_what_detectron2_lacks_is_not_written(override, message):
    state = make_state("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x")
    recipe = detectron2.recognise(state)
    names = detectron2.to_ours(state, recipe)
    if override.startswith("backbone="):
        cfg = compose_config(recipe)
        names = {"backbone.trunk.features.0.0.weight": torch.zeros(1)}
    else:
        cfg = compose_config(recipe.with_overrides([override]))
    with pytest.raises(ValueError, match=f"Detectron2 has no .*{message}"):
        detectron2.from_ours(names, cfg)
