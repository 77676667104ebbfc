"""Feature Pyramid Networks (Lin et al., 2017)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm
from detector.backbones.resnet import ResNet


class FPN(nn.Module):
    """A bottom-up trunk with top-down and lateral connections, giving P2..P5 and P6.

    Args:
        trunk: gives a list of feature maps, finest first, and has ``out_channels`` and ``strides``.
        out_channels: C of every level.
        norm: normalisation of the lateral and output convolutions, ``none`` as in the paper.
        extra_level: add P6, every second cell of P5, for the RPN's largest anchors.
    """

    def __init__(
        self,
        trunk: nn.Module,
        out_channels: int = 256,
        norm: str = "none",
        extra_level: bool = True,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.lateral = nn.ModuleList(
            conv_norm(channels, out_channels, 1, norm) for channels in trunk.out_channels
        )
        self.output = nn.ModuleList(
            conv_norm(out_channels, out_channels, 3, norm) for _ in trunk.out_channels
        )
        self.extra_level = extra_level
        self.out_channels = out_channels
        strides = tuple(trunk.strides)
        self.strides = (*strides, 2 * strides[-1]) if extra_level else strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to L maps ``(B, C, H / stride, W / stride)``, finest first."""
        features = [lateral(x) for lateral, x in zip(self.lateral, self.trunk(images), strict=True)]
        for level in range(len(features) - 2, -1, -1):
            size = features[level].shape[2:]
            coarse = F.interpolate(features[level + 1], size=size, mode="nearest")
            features[level] = features[level] + coarse
        pyramid = [output(x) for output, x in zip(self.output, features, strict=True)]
        if self.extra_level:
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid


def resnet_fpn(
    name: str = "resnet50",
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 2,
    out_channels: int = 256,
    fpn_norm: str = "none",
) -> FPN:
    """ResNet under FPN, the papers' backbone.

    Args:
        name: see :class:`detector.backbones.resnet.ResNet`, as are ``weights``, ``norm`` and
            ``freeze_at``.
        weights: file of ImageNet weights, or ``None``.
        norm: normalisation of the trunk.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: C of every level.
        fpn_norm: normalisation of FPN's own convolutions.
    """
    trunk = ResNet(name, norm=norm, freeze_at=freeze_at, weights=weights)
    return FPN(trunk, out_channels=out_channels, norm=fpn_norm)
