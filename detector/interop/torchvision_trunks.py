"""torchvision's ImageNet networks: which one a state dict is, and what becomes of its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detector.interop.key_rules import KeyRule, KeyTable
from detector.interop.recipes import Recipe

# Residual blocks of each stage, and the shape of the first block's 3x3 convolution (its output
# channels and its input channels in each group); no second shape: blocks of two convolutions.
RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, int] | None]] = {
    "resnet18": ((2, 2, 2, 2), None),
    "resnet34": ((3, 4, 6, 3), None),
    "resnet50": ((3, 4, 6, 3), (64, 64)),
    "resnet101": ((3, 4, 23, 3), (64, 64)),
    "resnet152": ((3, 8, 36, 3), (64, 64)),
    "resnext50_32x4d": ((3, 4, 6, 3), (128, 4)),
    "resnext101_32x8d": ((3, 4, 23, 3), (256, 8)),
    "resnext101_64x4d": ((3, 4, 23, 3), (256, 4)),
}
# How many batches the norms have seen is of no use to frozen ones, nor to those with a momentum.
_COUNTS = KeyRule("{norm:any}.num_batches_tracked", None)
_RESNET_TABLE = KeyTable(
    (_COUNTS, KeyRule("fc.{rest:any}", None), KeyRule("{rest:any}", "backbone.trunk.{rest:any}"))
)
# fc6 and fc7 are the box head's.
_VGG_TABLE = KeyTable(
    (
        KeyRule("features.{rest:any}", "backbone.trunk.features.{rest:any}"),
        KeyRule("classifier.0.{kind}", "box_branch.head.fc6.{kind}"),
        KeyRule("classifier.3.{kind}", "box_branch.head.fc7.{kind}"),
        KeyRule("classifier.6.{kind}", None),
    )
)
_MOBILENET_TABLE = KeyTable(
    (
        _COUNTS,
        KeyRule("classifier.{rest:any}", None),
        KeyRule("{rest:any}", "backbone.trunk.{rest:any}"),
    )
)


def resnet_name(tensors: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """Which ResNet or ResNeXt the names that begin with ``prefix`` are of.

    Blocks that are not there do not count against a network; it is the smallest that has all
    others.
    """
    blocks = [0, 0, 0, 0]
    for name in tensors:
        match = re.match(rf"{re.escape(prefix)}layer([1-4])\.(\d+)\.", name)
        if match:
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    conv = tensors.get(f"{prefix}layer1.0.conv2.weight")
    if conv is None:
        return None
    for name, (expected, shape) in RESNETS.items():
        as_deep = all(found <= count for found, count in zip(blocks, expected, strict=True))
        if shape is None:
            same_width = not bottleneck
        else:
            same_width = bottleneck and tuple(conv.shape[:2]) == shape
        if as_deep and same_width:
            return name
    return None


def fpn_backbone(name: str) -> tuple[str, ...]:
    """The overrides that choose a ResNet or ResNeXt under FPN."""
    if name == "resnext101_64x4d":  # has no file of its own
        return ("backbone=resnext101_32x8d_fpn", f"model.backbone.name={name}")
    return (f"backbone={name}_fpn",)


def recognise_network(tensors: Mapping[str, Tensor]) -> Recipe | None:
    """The recipe of an ImageNet network; its classifier has no place in a detector."""
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        name = resnet_name(tensors)
        if name is None:
            return None
        overrides = ("model=faster_rcnn_fpn", *fpn_backbone(name))
        return Recipe(f"torchvision {name}", overrides, parts=("backbone.trunk.",))
    if "features.0.0.weight" in tensors and "features.16.0.weight" in tensors:
        overrides = (
            "model=torchvision_faster_rcnn_mobilenet_v3_large_fpn",
            "backbone=mobilenet_v3_large_fpn",
        )
        return Recipe("torchvision mobilenet_v3_large", overrides, parts=("backbone.trunk.",))
    if "features.28.weight" in tensors and "features.29.weight" not in tensors:
        overrides = ("model=faster_rcnn_vgg16", "backbone=vgg16")
        parts = ("backbone.trunk.", "box_branch.head.")
        return Recipe("torchvision vgg16", overrides, parts=parts)
    return None


def network_table(recipe: Recipe) -> KeyTable:
    """Names of the network that a recipe of :func:`recognise_network` is for."""
    if recipe.name.endswith("vgg16"):
        return _VGG_TABLE
    return _MOBILENET_TABLE if "mobilenet" in recipe.name else _RESNET_TABLE
