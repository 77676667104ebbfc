"""MobileNetV3-Large (Howard et al., 2019), built by torchvision, under FPN."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torchvision
from torch import Tensor

from detector.backbones.fpn import FPN
from detector.backbones.freezing import FreezableTrunk, check_increasing
from detector.backbones.normalization import norm_layer
from detector.backbones.weights import load_backbone_weights

# First block of each stage in ``features``: the stem, the four that stride, and the last
# convolution, which does not.
STAGE_STARTS = (0, 2, 4, 7, 13, 16)
STRIDES = (2, 4, 8, 16, 32, 32)


class MobileNetV3Large(FreezableTrunk):
    """The features of MobileNetV3-Large; parameters keep torchvision's names.

    Stages are those of torchvision's detectors: a stage begins with the block that strides, and
    that block's output is its map. Stages 0 to 5 have strides 2, 4, 8, 16, 32, 32 and 16, 24, 40,
    80, 160, 960 channels.

    Args:
        norm: see :func:`detector.backbones.normalization.norm_layer`.
        freeze_at: stages that stay as loaded, 0 none to 6 all; torchvision's ``trainable_layers``
            counts the others.
        weights: file with an ImageNet state dict in torchvision's names, or ``None`` for random
            weights.
        outputs: stages whose maps it gives; the module ends with the last of them.
        norm_eps: added to the norms' variances; ``None`` is PyTorch's 1e-5, as in torchvision's
            detectors. Its ImageNet weights were trained with 0.001.

    Raises:
        ValueError: impossible stages, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    def __init__(
        self,
        norm: str = "frozen_bn",
        freeze_at: int = 3,
        weights: str | None = None,
        outputs: Sequence[int] = (4, 5),
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.outputs = check_increasing("outputs", outputs, range(1, 6))
        network = torchvision.models.mobilenet_v3_large(norm_layer=norm_layer(norm, norm_eps))
        end = STAGE_STARTS[self.outputs[-1]] + 1
        self.features = network.features[:end]
        self.taps = tuple(STAGE_STARTS[stage] for stage in self.outputs)
        self.strides = tuple(STRIDES[stage] for stage in self.outputs)
        self.out_channels = tuple(self.features[tap].out_channels for tap in self.taps)
        if weights is not None:
            absent = [f"features.{block}." for block in range(end, len(network.features))]
            load_backbone_weights(self, weights, ignore=absent)
        bounds = [*STAGE_STARTS[: self.outputs[-1] + 1], end]
        stages = [self.features[low:high] for low, high in itertools.pairwise(bounds)]
        self.freeze(stages, freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to the maps of ``outputs``, each ``(B, C, H / stride, W / stride)``.

        Sides are rounded up.
        """
        x = images
        maps = []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in self.taps:
                maps.append(x)
        return maps


def mobilenet_v3_large_fpn(
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 3,
    out_channels: int = 256,
    fpn_norm: str = "none",
    levels: Sequence[int] = (4, 5),
    extra: str = "pool",
    norm_eps: float | None = None,
) -> FPN:
    """MobileNetV3-Large under FPN, by default as in torchvision's Faster R-CNN.

    Args:
        weights: file of ImageNet weights, or ``None``.
        norm: normalisation of the trunk; see :class:`MobileNetV3Large`, as is ``freeze_at``.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: C of every level.
        fpn_norm: normalisation of FPN's own convolutions.
        levels: stages of the trunk that the pyramid is built on; ``outputs`` of the trunk.
        extra: coarser levels on top; see :class:`detector.backbones.fpn.FPN`.
        norm_eps: added to the variances of the trunk's norms; ``None`` is PyTorch's 1e-5.
    """
    trunk = MobileNetV3Large(norm, freeze_at, weights, levels, norm_eps)
    return FPN(trunk, out_channels, fpn_norm, extra)
