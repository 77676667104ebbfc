"""Detectron's Caffe2 blobs under the names that Detectron2 gives to the same tensors.

The ImageNet networks that Detectron2 starts from (MSRA's R-50 and R-101, FAIR's X-101) are such
files, and so are the models of Detectron's own zoo. Two things differ beside the names: the
background was the first class and had boxes and masks, which nothing used; and where a batch norm
was trained long ago, only its scale and shift are left, its statistics having been merged into
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from detector.interop.key_rules import BackgroundFirst, Transform, UnusedBackground

# What no detector has: the classifier of ImageNet, the solver's state, the bias of the first
# convolution, which the norm behind it takes up (zeros in the published files), and the fixed
# weights by which heatmaps were resized.
_LEFT_OUT = re.compile(
    r".*_momentum|fc1000_[wb]|pred_[wb]|conv1_b|kps_score_[wb]|lr|model_iter|weight_order"
)
_KINDS = {"w": "weight", "b": "bias"}
_NORMS = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
_BRANCHES = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_NORM = r"[bg]n_(\w+)"
# Names that Detectron2 composes otherwise: theirs up to the last underscore, and its.
_LAYERS = (
    (r"conv_rpn(?:_fpn\d)?", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(?:_fpn\d)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn\d)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"head_conv(\d+)", r"roi_heads.box_head.conv\1"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_\[mask\]_fcn(\d+)", r"roi_heads.mask_head.mask_fcn\1"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
    (r"conv_fcn(\d+)", r"roi_heads.keypoint_head.conv_fcn\1"),
    (r"kps_score_lowres", "roi_heads.keypoint_head.score_lowres"),
)
_CLASSES: dict[str, Transform] = {
    "cls_score": BackgroundFirst(),
    "bbox_pred": UnusedBackground(4),
    "mask_fcn_logits": UnusedBackground(),
}


def is_caffe2(names: Iterable[str]) -> bool:
    """Whether these are the blobs of a residual network."""
    return {"conv1_w", "res2_0_branch2a_w"} <= set(names)


def detectron2_tensors(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as Detectron2 names and orders them; blobs of unknown names keep theirs.

    Batch norms without statistics get a mean of 0 and a variance of 1, as Detectron2 reads them.
    """
    prefix = trunk_prefix(blobs)
    in_head = _has_head_stage(blobs)
    result: dict[str, Tensor] = {}
    for blob, value in blobs.items():
        if _LEFT_OUT.fullmatch(blob):
            continue
        name = detectron2_name(blob, prefix, in_head)
        layer = blob.rpartition("_")[0]
        # A detector with the boxes of one class for all has them for the background, too.
        result[name] = _CLASSES[layer].to_ours(value) if layer in _CLASSES else value
        if blob.endswith("bn_s"):
            norm = name.removesuffix("weight")
            stem = blob.removesuffix("s")
            if f"{stem}rm" not in blobs and f"{stem}running_mean" not in blobs:
                result[f"{norm}running_mean"] = torch.zeros_like(value)
                result[f"{norm}running_var"] = torch.ones_like(value)
    return result


def trunk_prefix(blobs: Iterable[str]) -> str:
    """What stands before the trunk's names in Detectron2: nothing in an ImageNet network."""
    blobs = list(blobs)
    if any(blob.startswith("fpn_inner_") for blob in blobs):
        return "backbone.bottom_up."
    is_detector = any(blob.startswith(("conv_rpn", "cls_score")) for blob in blobs)
    return "backbone." if is_detector else ""


def detectron2_name(blob: str, prefix: str, in_head: bool = False) -> str:
    """What Detectron2 calls a blob; the blob's own name if it is of no kind known here.

    Args:
        blob: such as ``res2_0_branch2a_bn_s``.
        prefix: of the trunk's names, see :func:`trunk_prefix`.
        in_head: res5 is the RoI head's (C4).
    """
    match = re.fullmatch(rf"(?:res_)?conv1_(?:{_NORM}|w)", blob)
    if match:
        return f"{prefix}stem.conv1.{_kind(match[1], 'w')}"
    match = re.fullmatch(rf"res(\d)_(\d+)_(branch\w+?)_(?:{_NORM}|w)", blob)
    if match and match[3] in _BRANCHES:
        place = "roi_heads." if in_head and match[1] == "5" else prefix
        return f"{place}res{match[1]}.{match[2]}.{_BRANCHES[match[3]]}.{_kind(match[4], 'w')}"
    for pattern, layer in _LAYERS:
        match = re.fullmatch(rf"(?P<layer>{pattern})_(?:{_NORM}|(?P<kind>[wb]))", blob)
        if match:
            norm = match[match.lastindex] if match["kind"] is None else None
            return f"{re.sub(pattern, layer, match['layer'])}.{_kind(norm, match['kind'])}"
    return blob


def _kind(norm: str | None, kind: str | None) -> str:
    return f"norm.{_NORMS.get(norm, norm)}" if norm is not None else _KINDS[kind or "w"]


def _has_head_stage(blobs: Iterable[str]) -> bool:
    """Whether res5 runs on RoIs: a detector without FPN or fully connected layers."""
    blobs = set(blobs)
    return "cls_score_w" in blobs and not {"fc6_w", "head_conv1_w"} & blobs
