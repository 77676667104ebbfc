"""Backbones of one feature map, as Fast, Faster and Mask R-CNN had before FPN."""

from __future__ import annotations

from torch import Tensor, nn

from detector.backbones.resnet import ResNet
from detector.backbones.vgg import VGG16
from detector.backbones.zf import ZF


class SingleLevel(nn.Module):
    """A trunk whose only feature map is the backbone's.

    Args:
        trunk: gives a list of one map; its ``out_channels`` and ``strides`` have one entry.
        out_channels: C of the map, which other parts of a config read here; it must be the
            trunk's own. ``None``: whatever that is.

    Raises:
        ValueError: the trunk has another number of channels.
    """

    def __init__(self, trunk: nn.Module, out_channels: int | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        (self.out_channels,) = trunk.out_channels
        self.strides = tuple(trunk.strides)
        if out_channels not in (None, self.out_channels):
            raise ValueError(
                f"model.backbone.out_channels={out_channels}, but the feature map has "
                f"{self.out_channels} channels; set model.backbone.out_channels={self.out_channels}"
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to a list of one map ``(B, C, H / stride, W / stride)``."""
        return self.trunk(images)


def resnet_c4(
    name: str = "resnet50",
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 2,
    out_channels: int | None = None,
    stride_in_1x1: bool = False,
) -> SingleLevel:
    """ResNet up to res4; res5 is then the RoI head (He et al., 2015, appendix A).

    Args:
        name: see :class:`detector.backbones.resnet.ResNet`, as are ``weights``, ``norm`` and
            ``freeze_at`` (up to 4). The file's ``layer4`` is left to the RoI head.
        weights: file of ImageNet weights, or ``None``.
        norm: normalisation of the trunk.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: see :class:`SingleLevel`; 1024, or 256 for ``resnet18`` and ``resnet34``.
        stride_in_1x1: where blocks stride, see :class:`detector.backbones.resnet.ResNet`.
    """
    trunk = ResNet(name, norm, freeze_at, weights, outputs=(4,), stride_in_1x1=stride_in_1x1)
    return SingleLevel(trunk, out_channels)


def resnet_dc5(
    name: str = "resnet50",
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 2,
    out_channels: int | None = None,
    stride_in_1x1: bool = False,
) -> SingleLevel:
    """ResNet with a dilated res5, so that C5 keeps the stride of C4 (Dai et al., 2017).

    Args:
        name: see :class:`detector.backbones.resnet.ResNet`, as are ``weights``, ``norm`` and
            ``freeze_at``.
        weights: file of ImageNet weights, or ``None``.
        norm: normalisation of the trunk.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: see :class:`SingleLevel`; 2048, or 512 for ``resnet18`` and ``resnet34``.
        stride_in_1x1: where blocks stride, see :class:`detector.backbones.resnet.ResNet`.
    """
    trunk = ResNet(
        *(name, norm, freeze_at, weights),
        outputs=(5,),
        res5_dilation=2,
        stride_in_1x1=stride_in_1x1,
    )
    return SingleLevel(trunk, out_channels)


def resnet_c5(
    name: str = "resnet50",
    weights: str | None = None,
    norm: str = "frozen_bn",
    freeze_at: int = 2,
    out_channels: int | None = None,
    stride_in_1x1: bool = False,
) -> SingleLevel:
    """ResNet up to res5: one map of stride 32 (Mask R-CNN, table 2d).

    Args:
        name: see :class:`detector.backbones.resnet.ResNet`, as are ``weights``, ``norm`` and
            ``freeze_at``.
        weights: file of ImageNet weights, or ``None``.
        norm: normalisation of the trunk.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: see :class:`SingleLevel`; 2048, or 512 for ``resnet18`` and ``resnet34``.
        stride_in_1x1: where blocks stride, see :class:`detector.backbones.resnet.ResNet`.
    """
    trunk = ResNet(name, norm, freeze_at, weights, outputs=(5,), stride_in_1x1=stride_in_1x1)
    return SingleLevel(trunk, out_channels)


def vgg16(
    weights: str | None = None, freeze_at: int = 2, out_channels: int | None = None
) -> SingleLevel:
    """VGG16's 13 convolutions; see :class:`detector.backbones.vgg.VGG16`.

    Args:
        weights: file of ImageNet weights, or ``None``.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: see :class:`SingleLevel`; 512.
    """
    return SingleLevel(VGG16(weights, freeze_at), out_channels)


def zf(
    weights: str | None = None, freeze_at: int = 0, out_channels: int | None = None
) -> SingleLevel:
    """The five convolutions of Zeiler and Fergus; see :class:`detector.backbones.zf.ZF`.

    Args:
        weights: file of ImageNet weights, or ``None``.
        freeze_at: how much of the trunk stays as loaded.
        out_channels: see :class:`SingleLevel`; 256.
    """
    return SingleLevel(ZF(weights, freeze_at), out_channels)
