"""Mask heads: from RoI features to the logits of masks (He et al., 2017, section 3, table 2).

A head predicts one of three kinds of masks, of which each pixel is

=====================  ==========================================================================
``class_specific``     K logits, one sigmoid for each class; what the paper recommends
``class_agnostic``     one logit, whatever the class
``softmax``            K + 1 logits, background last, that compete: the usual semantic
                       segmentation, against which the paper's table 2b compares
=====================  ==========================================================================
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm

KINDS = ("class_specific", "class_agnostic", "softmax")


def num_logits(masks: str, num_classes: int) -> int:
    """Logits of each pixel.

    Raises:
        ValueError: no such kind of masks.
    """
    if masks not in KINDS:
        raise ValueError(
            f"mask_branch.head.masks={masks!r} is not known; use one of {', '.join(KINDS)}"
        )
    return {"class_specific": num_classes, "class_agnostic": 1, "softmax": num_classes + 1}[masks]


class FCNMaskHead(nn.Module):
    """Convolutions, a 2x2 deconvolution and a 1x1 convolution (figure 4).

    Four convolutions on the features of an FPN (right), none on those of res5 (left).

    Args:
        in_channels: C of the features.
        num_classes: K.
        num_convs: 3x3 convolutions.
        width: their channels, and the deconvolution's.
        norm: normalisation of the convolutions, ``none`` in the paper.
        masks: what is predicted, see :mod:`detector.roi_heads.mask_heads`.

    Raises:
        ValueError: an unknown norm or kind of masks.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_classes: int = 80,
        num_convs: int = 4,
        width: int = 256,
        norm: str = "none",
        masks: str = "class_specific",
    ) -> None:
        super().__init__()
        self.masks = masks
        self.convs = nn.Sequential(
            *(
                conv_norm(in_channels if i == 0 else width, width, 3, norm, activation=True)
                for i in range(num_convs)
            )
        )
        self.deconv = nn.ConvTranspose2d(width if num_convs else in_channels, width, 2, stride=2)
        self.logits = nn.Conv2d(width, num_logits(masks, num_classes), 1)
        # Of each layer whose rows belong to classes, how many a class has; background comes last.
        self.class_rows = {} if masks == "class_agnostic" else {"logits": 1}
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, M/2, M/2)`` to logits ``(N, K, M, M)``, or 1 or K + 1 instead of K.

        In the precision that the model runs in: of K classes all but one are left, so what makes
        float32 of them comes after.
        """
        return self.logits(F.relu(self.deconv(self.convs(pooled))))


class MLPMaskHead(nn.Module):
    """Fully connected layers in place of convolutions (table 2e): 1024, 1024, every pixel.

    Args:
        in_channels: C of the features.
        num_classes: K.
        pooled_size: side of the pooled square.
        width: outputs of each of the hidden layers.
        mask_size: M.
        masks: what is predicted, see :mod:`detector.roi_heads.mask_heads`.
        num_fcs: hidden layers; the table has two and three.

    Raises:
        ValueError: an unknown kind of masks, or no layer.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_classes: int = 80,
        pooled_size: int = 14,
        width: int = 1024,
        mask_size: int = 28,
        masks: str = "class_specific",
        num_fcs: int = 2,
    ) -> None:
        super().__init__()
        if num_fcs < 1:
            raise ValueError(f"mask_branch.head.num_fcs={num_fcs} must be at least 1")
        self.masks = masks
        self.mask_size = mask_size
        self.num_bins = pooled_size**2
        widths = [in_channels * self.num_bins] + [width] * num_fcs
        self.fcs = [f"fc{number}" for number in range(1, num_fcs + 1)]
        for name, (before, after) in zip(self.fcs, itertools.pairwise(widths), strict=True):
            self.add_module(name, nn.Linear(before, after))
        self.logits = nn.Linear(width, num_logits(masks, num_classes) * mask_size**2)
        # As in FCNMaskHead; a row is a pixel of a mask.
        self.class_rows = {} if masks == "class_agnostic" else {"logits": mask_size**2}
        for layer in map(self.get_submodule, self.fcs):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S, S)`` to logits ``(N, K, M, M)``, or 1 or K + 1 instead of K; their precision
        is that of :class:`FCNMaskHead`."""
        x = pooled.flatten(1)
        for layer in map(self.get_submodule, self.fcs):
            x = F.relu(layer(x))
        return self.logits(x).unflatten(1, (-1, self.mask_size, self.mask_size))
