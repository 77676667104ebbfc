"""RoI features from one feature map or a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.ops.multiscale_roi_align import align_rows, assign_levels
from detector.ops.slots import take_slots
from detector.roi_heads.roi_ops import RoIAlign, RoIOp

_ROI_ALIGN = RoIAlign()


class RoIPooler(nn.Module):
    """Features of each box, from the level that FPN's rule gives it.

    Args:
        output_size: S, side of the pooled square.
        strides: of the levels to pool from, finest first; the pyramid may have more (P6 is for the
            RPN alone). One stride: the box's size does not matter.
        op: how a RoI becomes features, see :mod:`detector.roi_heads.roi_ops`.
        canonical_size: size of the box, in pixels, that is pooled from ``canonical_level``.
        canonical_level: its level by the paper's name (4 for P4).

    Attributes:
        num_bins: numbers of each channel that a box is pooled to, ``S * S`` of a square.
        gives_grid: whether they are a square.

    Raises:
        ValueError: a number that does not fit.
    """

    def __init__(
        self,
        output_size: int = 7,
        strides: Sequence[int] = (4, 8, 16, 32),
        op: RoIOp = _ROI_ALIGN,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if output_size < 1:
            raise ValueError(f"pooler.output_size={output_size} must be at least 1")
        if not strides or strides[0] < 1 or strides[0] & (strides[0] - 1):
            raise ValueError(
                f"pooler.strides={list(strides)} must begin with a power of two, from which the "
                "finest level has its name (4 is P2)"
            )
        self.output_size = output_size
        self.strides = list(strides)
        self.op = op
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.num_bins = op.num_bins(output_size)
        self.gives_grid = op.gives_grid

    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """``(N, 4)`` boxes of images ``(N,)`` to ``(N, C, S, S)``, or what the op gives instead."""
        features = features[: len(self.strides)]
        if isinstance(self.op, RoIAlign) and self.op.is_fixed_mean:
            # The common case has one kernel for all levels.
            return align_rows(
                features,
                boxes,
                image_index,
                self.output_size,
                self.strides,
                self.op.sampling_ratio,
                self.op.aligned,
                canonical_size=self.canonical_size,
                canonical_level=self.canonical_level,
            )
        if len(features) == 1:
            return self.op(features[0], boxes, image_index, self.output_size, self.strides[0])
        return self._by_level(features, boxes, image_index)

    def _by_level(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Every level pools all boxes, those of other levels being of no image: zeros."""
        levels = assign_levels(
            boxes.detach(),
            len(features),
            self.strides[0].bit_length() - 1,
            self.canonical_level,
            self.canonical_size,
        )
        pooled = None
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            own = torch.where(levels == level, image_index, -1)
            part = self.op(feature, boxes, own, self.output_size, stride)
            pooled = part if pooled is None else pooled + part
        return pooled


@dataclass(frozen=True)
class PooledRoIs:
    """RoI features of the slots that are worth computing, for more than one branch.

    Attributes:
        features: ``(N, ...)``, what a pooler gave.
        rows: ``(N,)``, see :func:`detector.ops.slots.slots_to_compute`.
        shape: ``(B, R)``, of the slots.
    """

    features: Tensor
    rows: Tensor
    shape: torch.Size

    def take(self, image_index: Tensor, slot: Tensor) -> Tensor:
        """Features ``(L, ...)`` of slots ``(L,)`` of images ``(L,)``, which were computed."""
        position = self.rows.new_zeros(self.shape.numel())
        numbers = torch.arange(self.rows.shape[0], device=self.rows.device)
        position = position.index_copy(0, self.rows, numbers)
        index = position.index_select(0, image_index * self.shape[1] + slot)
        return self.features.index_select(0, index)


def pool_slots(
    pooler: nn.Module, features: list[Tensor], boxes: Tensor, rows: Tensor
) -> PooledRoIs:
    """RoI features of the ``rows`` ``(N,)`` of boxes in slots ``(B, R, 4)``."""
    pooled = pooler(features, take_slots(boxes, rows), rows // boxes.shape[1])
    return PooledRoIs(pooled, rows, boxes.shape[:2])


def check_grid(name: str, pooler: nn.Module) -> None:
    """What comes next is a convolution: it needs a square.

    Raises:
        ValueError: the pooler gives vectors.
    """
    if not pooler.gives_grid:
        raise ValueError(
            f"{name}.op={type(pooler.op).__name__} gives vectors, which only fully connected "
            "layers take; choose another roi_op, such as roi_pool, or a model whose box head is "
            "fully connected and that has no masks (model=faster_rcnn_fpn)"
        )


def check_bins(name: str, pooler: nn.Module, head: nn.Module) -> None:
    """A fully connected head counts what the pooler gives.

    Raises:
        ValueError: it was made for another number of bins.
    """
    expected = getattr(head, "num_bins", None)
    if expected is not None and expected != pooler.num_bins:
        raise ValueError(
            f"{name}.head.pooled_size makes {expected} bins of each channel, but {name}.pooler "
            f"gives {pooler.num_bins}; set the head's pooled_size to the pooler's output_size (for "
            "a spatial pyramid, to its levels)"
        )


def check_channels(name: str, pooler: nn.Module, head: nn.Module, in_channels: int) -> None:
    """The predictor takes what the head gives, or the pooler where the head has no layers.

    Raises:
        ValueError: it was made for another number of channels.
    """
    given = getattr(head, "out_channels", getattr(pooler, "out_channels", None))
    if given not in (None, in_channels):
        raise ValueError(
            f"{name}.predictor.in_channels={in_channels}, but it is given {given} channels; set "
            f"{name}.predictor.in_channels={given}"
        )
