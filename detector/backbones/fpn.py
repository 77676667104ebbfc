"""Feature Pyramid Networks (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm
from detector.backbones.resnet import ResNet

EXTRA = ("none", "pool", "p6p7_c5", "p6p7_p5")


class FPN(nn.Module):
    """A bottom-up trunk with top-down and lateral connections, giving P2..P5 and P6.

    Args:
        trunk: gives a list of feature maps, finest first, and has ``out_channels`` and ``strides``.
        out_channels: C of every level.
        norm: normalisation of the lateral and output convolutions, ``none`` as in the paper.
        extra: coarser levels on top. ``pool`` adds P6, every second cell of P5, for the RPN's
            largest anchors. ``p6p7_c5`` adds P6 and P7 by convolutions of stride 2, the first one
            on the trunk's last map (RetinaNet, section 4); ``p6p7_p5`` on P5 instead. ``none``.

    Raises:
        ValueError: ``extra`` is none of these.
    """

    def __init__(
        self,
        trunk: nn.Module,
        out_channels: int = 256,
        norm: str = "none",
        extra: str = "pool",
    ) -> None:
        super().__init__()
        if extra not in EXTRA:
            raise ValueError(f"extra={extra!r} is not known; use one of {', '.join(EXTRA)}")
        self.trunk = trunk
        self.lateral = nn.ModuleList(
            conv_norm(channels, out_channels, 1, norm) for channels in trunk.out_channels
        )
        self.output = nn.ModuleList(
            conv_norm(out_channels, out_channels, 3, norm) for _ in trunk.out_channels
        )
        self.extra = extra
        self.out_channels = out_channels
        strides = list(trunk.strides)
        if extra == "pool":
            strides.append(2 * strides[-1])
        elif extra != "none":
            source = trunk.out_channels[-1] if extra == "p6p7_c5" else out_channels
            self.p6 = _halving(source, out_channels)
            self.p7 = _halving(out_channels, out_channels)
            strides += [2 * strides[-1], 4 * strides[-1]]
        self.strides = tuple(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to L maps ``(B, C, H / stride, W / stride)``, finest first."""
        maps = self.trunk(images)
        features = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(features) - 2, -1, -1):
            size = features[level].shape[2:]
            coarse = F.interpolate(features[level + 1], size=size, mode="nearest")
            features[level] = features[level] + coarse
        pyramid = [output(x) for output, x in zip(self.output, features, strict=True)]
        if self.extra == "pool":
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        elif self.extra != "none":
            p6 = self.p6(maps[-1] if self.extra == "p6p7_c5" else pyramid[-1])
            pyramid += [p6, self.p7(F.relu(p6))]
        return pyramid


def _halving(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv


def resnet_fpn(
    name: str = "resnet50",
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 2,
    out_channels: int = 256,
    fpn_norm: str = "none",
    levels: Sequence[int] = (2, 3, 4, 5),
    extra: str = "pool",
    stride_in_1x1: bool = False,
    norm_eps: float | None = None,
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
        levels: stages of the trunk that the pyramid is built on, 2 for C2 and P2.
        extra: coarser levels on top; see :class:`FPN`.
        stride_in_1x1: where blocks stride, see :class:`detector.backbones.resnet.ResNet`.
        norm_eps: added to the variances of the trunk's norms; ``None`` is PyTorch's 1e-5.
    """
    trunk = ResNet(
        *(name, norm, freeze_at, weights),
        outputs=levels,
        stride_in_1x1=stride_in_1x1,
        norm_eps=norm_eps,
    )
    return FPN(trunk, out_channels, fpn_norm, extra)
