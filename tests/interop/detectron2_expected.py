"""What Detectron2 gave, which ``compare_detectron2.py`` wrote, and how it is compared."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from tests.interop.detectron2_cases import CASES, Case

HERE = Path(__file__).parent / "detectron2"
# Absolute, but for losses and gradients, which are relative.
TOLERANCES = {
    "feature": 1e-4,
    "logits": 1e-4,
    "deltas": 1e-4,
    "proposals": 1e-2,
    "objectness": 1e-4,
    "boxes": 1e-2,
    "scores": 1e-5,
    "labels": 0.0,
    "masks": 1e-4,
    "keypoints": 1e-2,
    "losses": 1e-5,
    "gradients": 1e-3,
}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """What differs by more than :data:`TOLERANCES`, one line for each name of ``theirs``."""
    problems = []
    for name, expected in theirs.items():
        found = ours[name]
        if found.shape != expected.shape:
            problems.append(f"{name}: shape {found.shape}, expected {expected.shape}")
            continue
        kind = name.rstrip("0123456789")
        error = largest_difference(kind, found, expected)
        if not error <= TOLERANCES[kind]:
            problems.append(f"{name}: differs by up to {error:.2g}")
    return problems


def largest_difference(kind: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two outputs of one shape.

    Proposals are a set: of hundreds, some have scores that are equal but for rounding, and change
    places. Each of either side is compared with the nearest of the other.
    """
    found = found.astype(np.float64)
    if kind != "proposals":
        return np.abs(found - expected).max(initial=0.0)
    apart = np.abs(found[:, None] - expected).max(2)
    return max(apart.min(0).max(initial=0.0), apart.min(1).max(initial=0.0))


def summarise(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A part of the outputs that is small enough to keep: some numbers of each level, and some
    masks of each image."""
    result = {}
    for name, value in outputs.items():
        kind = name.rstrip("0123456789")
        if kind in ("feature", "logits", "deltas"):
            flat = value.reshape(-1)
            result[name] = flat[:: max(len(flat) // 61, 1)][:61]
        else:
            result[name] = value[:2] if kind == "masks" else value
    return result


def gradient_errors(differences: dict[str, float], lengths: dict[str, float]) -> dict[str, float]:
    """Relative errors of gradients by the lengths of their differences and their own.

    A softmax does not see a number that is added to all its inputs: gradients that are zero but
    for rounding are measured by the longest of all.
    """
    least = 1e-6 * max(lengths.values())
    return {name: error / max(lengths[name], least) for name, error in differences.items()}


def summarise_gradients(gradients: dict[str, Tensor]) -> np.ndarray:
    """Two numbers of each gradient, in the order of their names: its length, and its projection on
    a vector of signs that follow from its name."""
    return np.stack([_projections(name, gradients[name]) for name in sorted(gradients)])


def _projections(name: str, value: Tensor) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    flat = value.flatten().double().numpy()
    signs = generator.integers(0, 2, len(flat)) * 2 - 1
    return np.array((np.linalg.norm(flat), flat @ signs))


# Of the zoo, whose names and shapes are kept.
TABLES = (
    *(case.config for case in CASES.values()),
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_C4_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x",
    "Cityscapes/mask_rcnn_R_50_FPN",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/mask_rcnn_R_50_FPN_3x_gn",
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn",
    "PascalVOC-Detection/faster_rcnn_R_50_C4",
)


def caffe2_blobs(kind: str) -> list[str]:
    """The blobs of Detectron's R-50 models, by the part of the name before and after ``_``."""
    task, trunk = kind.split("_")
    names = ["conv1_w", "conv1_b", "res_conv1_bn_s", "res_conv1_bn_b", "fc1000_w", "fc1000_b"]
    for stage, blocks in zip(range(2, 6), (3, 4, 6, 3), strict=True):
        for block in range(blocks):
            for branch in ("branch1", "branch2a", "branch2b", "branch2c"):
                if block == 0 or branch != "branch1":
                    name = f"res{stage}_{block}_{branch}"
                    names += [f"{name}_w", f"{name}_bn_s", f"{name}_bn_b"]
    layers = []
    level = ""
    if trunk == "fpn":
        level = "_fpn2"
        for stage, block in ((2, 2), (3, 3), (4, 5), (5, 2)):
            inner = f"fpn_inner_res{stage}_{block}_sum"
            layers += [inner if stage == 5 else f"{inner}_lateral", f"fpn_res{stage}_{block}_sum"]
    layers += [f"conv_rpn{level}", f"rpn_cls_logits{level}", f"rpn_bbox_pred{level}"]
    if task != "rpn":
        layers += [*(("fc6", "fc7") * (trunk == "fpn")), "cls_score", "bbox_pred"]
    if task == "mask":
        layers += [f"_[mask]_fcn{n}" for n in range(1, 5) if trunk == "fpn"]
        layers += ["conv5_mask", "mask_fcn_logits"]
    if task == "keypoint":
        layers += [*(f"conv_fcn{n}" for n in range(1, 9)), "kps_score_lowres", "kps_score"]
    return names + [f"{layer}_{part}" for layer in layers for part in "wb"]


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's state dict, as Detectron2 has them."""
    return {name: tuple(shape) for name, shape in read_tables()[case.config].items()}


@cache
def read_tables() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the state dicts of :data:`TABLES`."""
    with gzip.open(HERE / "keys.json.gz", "rt") as file:
        return json.load(file)
