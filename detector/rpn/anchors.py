"""Anchors: reference boxes at every cell of every pyramid level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Boxes of several sizes and aspect ratios around each cell (Faster R-CNN, section 3.1.1).

    Args:
        sizes: per level, the square roots of the anchors' areas in pixels. One list serves all
            levels.
        aspect_ratios: heights divided by widths.
        strides: pixels per cell of each level.
        offset: where in its cell an anchor is centred: 0 the corner (the reference models), 0.5 the
            middle.
        legacy: the 2015 table: anchors around an inclusive 16-pixel cell, widths and heights
            rounded. Its inclusive pixels become continuous here, once: widths, overlaps and deltas
            are then those of the 2015 code, which counts ``x2 - x1 + 1``.
        rounded: corners around the origin are whole pixels, as torchvision has them.
        fitted_strides: the stride of a level is the padded image's side divided by the map's and
            rounded down, as in torchvision: 61 pixels in place of 64 between P6's 13 cells of an
            image of 800. The padded side must be a multiple of the finest level's stride.

    Raises:
        ValueError: sizes that do not fit the levels, or ``rounded`` and ``legacy`` at once.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        offset: float = 0.0,
        legacy: bool = False,
        rounded: bool = False,
        fitted_strides: bool = False,
    ) -> None:
        super().__init__()
        if legacy and rounded:
            raise ValueError("anchors: legacy=true rounds in its own way; leave rounded=false")
        if len(sizes) == 1:
            sizes = list(sizes) * len(strides)
        if len(sizes) != len(strides):
            raise ValueError(
                f"anchors: {len(sizes)} lists of sizes for {len(strides)} levels (strides "
                f"{list(strides)}); give one list for each level, or one for all"
            )
        counts = {len(level_sizes) for level_sizes in sizes}
        if len(counts) != 1:
            raise ValueError(
                "anchors: every level needs the same number of sizes: one head serves all"
            )
        self.strides = tuple(strides)
        self.offset = offset
        self.fitted_strides = fitted_strides
        self.num_anchors = counts.pop() * len(aspect_ratios)
        for level, (level_sizes, stride) in enumerate(zip(sizes, strides, strict=True)):
            if legacy:
                table = legacy_base_anchors(level_sizes, aspect_ratios, stride)
                table[:, 2:] += 1
            else:
                table = base_anchors(level_sizes, aspect_ratios)
                table = table.round() if rounded else table
            self.register_buffer(f"base{level}", table, persistent=False)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level, ``(H_l * W_l * num_anchors, 4)``: row, column, anchor order."""
        padded = [side * self.strides[0] for side in features[0].shape[2:]]
        anchors = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            cells = feature.shape[2:]
            strides = [stride, stride]
            if self.fitted_strides:
                strides = [side // count for side, count in zip(padded, cells, strict=True)]
            anchors.append(self._level_anchors(*cells, *strides, getattr(self, f"base{level}")))
        return anchors

    def _level_anchors(
        self, height: int, width: int, stride_y: int, stride_x: int, base: Tensor
    ) -> Tensor:
        y = (torch.arange(height, device=base.device) + self.offset) * stride_y
        x = (torch.arange(width, device=base.device) + self.offset) * stride_x
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((grid_x, grid_y, grid_x, grid_y), -1).reshape(-1, 1, 4)
        return (centers + base).reshape(-1, 4).to(base.dtype)


def base_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, ``(len(sizes) * len(aspect_ratios), 4)``, sizes outermost."""
    size = torch.tensor(sizes, dtype=torch.float64)[:, None]
    ratio = torch.tensor(aspect_ratios, dtype=torch.float64)[None]
    width = (size / ratio.sqrt()).flatten()
    height = (size * ratio.sqrt()).flatten()
    return (torch.stack((-width, -height, width, height), 1) / 2).float()


def legacy_base_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], stride: int
) -> Tensor:
    """The anchors of the 2015 code around the cell ``(0, 0, stride - 1, stride - 1)``.

    Ratios are applied to the cell and rounded before scaling, so areas are only nearly equal.
    Aspect ratios stand outermost. Boxes are in inclusive pixels.
    """
    center = (stride - 1) / 2
    rows = []
    for ratio in aspect_ratios:
        width = round((stride * stride / ratio) ** 0.5)
        height = round(width * ratio)
        for size in sizes:
            half_width = (width * size / stride - 1) / 2
            half_height = (height * size / stride - 1) / 2
            rows.append(
                (
                    center - half_width,
                    center - half_height,
                    center + half_width,
                    center + half_height,
                )
            )
    return torch.tensor(rows)
