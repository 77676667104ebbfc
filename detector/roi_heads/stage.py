"""The last residual stage as the RoI head, for backbones that end with C4."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from detector.backbones.normalization import norm_layer
from detector.backbones.resnet import NAMES, move_stride
from detector.backbones.weights import load_part_weights
from detector.roi_heads.pooler import check_grid


class RoIStage(nn.Module):
    """Pools RoIs and runs res5 on each (He et al., 2015, appendix A; Mask R-CNN, figure 4 left).

    It stands where a pooler stands; box and mask branch may share it. Its first block halves the
    pooled square: 14 x 14 become 7 x 7. Parameters keep torchvision's name, ``layer4``.

    Args:
        pooler: gives the stage's input.
        name: of the backbone whose stage it is, see :class:`detector.backbones.resnet.ResNet`.
        norm: see :func:`detector.backbones.normalization.norm_layer`.
        weights: the backbone's file of ImageNet weights, of which it takes ``layer4``, or ``None``
            for random weights.
        out_channels: what it gives, which other parts of a config read here: 2048, or 512 for
            ``resnet18`` and ``resnet34``. ``None``: whatever that is.
        stride_in_1x1: as in the backbone, see :class:`detector.backbones.resnet.ResNet`.

    Attributes:
        in_channels: what the backbone must give.
        output_size, num_bins, gives_grid, strides: as a pooler's.

    Raises:
        ValueError: an unknown name, weights that do not fit, another number of channels, or a
            pooler that gives vectors.
        FileNotFoundError: no such weights file.
    """

    gives_grid = True

    def __init__(
        self,
        pooler: nn.Module,
        name: str = "resnet50",
        norm: str = "frozen_bn",
        weights: str | None = None,
        out_channels: int | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"pooler.name={name!r} is not known; use one of {', '.join(NAMES)}")
        check_grid("pooler.pooler", pooler)
        trunk = getattr(torchvision.models, name)(norm_layer=norm_layer(norm))
        self.out_channels = trunk.fc.in_features
        if out_channels not in (None, self.out_channels):
            raise ValueError(
                f"pooler.out_channels={out_channels}, but res5 of {name} gives "
                f"{self.out_channels} channels; set pooler.out_channels={self.out_channels}"
            )
        self.name = name
        self.pooler = pooler
        self.layer4 = trunk.layer4
        self.stride_in_1x1 = stride_in_1x1
        if stride_in_1x1:
            move_stride(name, self.layer4)
        self.in_channels = self.out_channels // 2
        self.strides = pooler.strides
        self.output_size = (pooler.output_size + 1) // 2
        self.num_bins = self.output_size**2
        if weights is not None:
            load_part_weights(self, weights, {"layer4.": "layer4."})

    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """``(N, 4)`` boxes of images ``(N,)`` to ``(N, out_channels, S / 2, S / 2)``."""
        return self.layer4(self.pooler(features, boxes, image_index))


class GlobalAveragePool(nn.Module):
    """The mean over the RoI, the box head after :class:`RoIStage`: it has no layers of its own."""

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S, S)`` to ``(N, C)``."""
        return pooled.mean((2, 3))
