"""Normalisation of pixels and of features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

NormLayer = Callable[[int], nn.Module]


class PixelNormalizer(nn.Module):
    """Turns padded uint8 RGB images into what the backbone was trained on.

    Padding is zero *after* normalisation, so what a bucket adds looks the same around every image.

    Args:
        mean: of R, G, B, in 0..255.
        std: of R, G, B, in 0..255.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """``(B, 3, H, W)`` uint8 and ``(B, 2)`` sizes to ``(B, 3, H, W)`` float32."""
        height, width = images.shape[2:]
        sizes = image_sizes[:, :, None]
        rows = torch.arange(height, device=images.device) < sizes[:, 0]
        columns = torch.arange(width, device=images.device) < sizes[:, 1]
        filled = (rows[:, :, None] & columns[:, None, :])[:, None]
        return (images.to(self.mean.dtype) - self.mean) / self.std * filled


def norm_layer(name: str | None, eps: float | None = None) -> NormLayer:
    """Constructor of a normalisation layer by its name in the configs.

    ``frozen_bn`` (statistics and affine fixed: for pretrained trunks and small batches), ``bn``,
    ``sync_bn`` (statistics over all processes), ``gn`` (32 groups, or as many as divide the
    channels), ``none``.

    Args:
        name: one of these.
        eps: added to the variances; ``None`` is PyTorch's 1e-5. Some published weights were made
            with another: 0 in torchvision's first detectors.

    Raises:
        ValueError: for any other name, or an ``eps`` below 0 or without effect.
    """
    layers: dict[str, NormLayer] = {
        "frozen_bn": FrozenBatchNorm2d,
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "gn": lambda channels, **eps: nn.GroupNorm(_num_groups(channels), channels, **eps),
        "none": nn.Identity,
    }
    name = name or "none"
    if name not in layers:
        raise ValueError(f"norm={name!r} is not known; use one of {', '.join(layers)}")
    if eps is None:
        return layers[name]
    if eps < 0 or name == "none":
        raise ValueError(f"norm_eps={eps} with norm={name}: give 0 or more, or null with norm=none")
    return functools.partial(layers[name], eps=eps)


def _num_groups(channels: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: str | None = None,
    activation: bool = False,
) -> nn.Sequential:
    """Same-size convolution, normalisation and, on request, ReLU; biased only without a norm.

    Initialised for what follows it: He's normal before a ReLU, else Caffe2's Xavier, as in
    Detectron2, whose heads train from these.
    """
    bare = (norm or "none") == "none"
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bare)
    if activation:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.kaiming_uniform_(conv.weight, a=1)
    if bare:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if not bare:
        layers.append(norm_layer(norm)(out_channels))
    if activation:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
