"""Losses of predicted boxes, on their deltas or on the boxes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.boxes import ciou, decode_boxes, diou, encode_boxes, giou

OVERLAPS = {"giou": giou, "diou": diou, "ciou": ciou}
ONES = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class BoxLoss:
    """How far the boxes that deltas describe are from their ground truth.

    ``smooth_l1`` sums over the four deltas (Fast R-CNN, eqs. 2 and 3); ``giou``, ``diou`` and
    ``ciou`` are one minus the measure of the decoded box (Rezatofighi et al., 2019; Zheng et al.,
    2020). Which boxes count, and what the sum is divided by, is up to the caller. In the words of
    the 2015 code, where a loss is ``outside * smooth_l1(inside * (delta - goal))``, background has
    the inside weight 0, and the outside weight is the caller's multiplier and divisor.

    Args:
        where: the settings' place in the configuration, for messages.
        kind: ``smooth_l1``, ``giou``, ``diou`` or ``ciou``.
        beta: where smooth L1 turns from quadratic to linear; 0 is L1. The papers' ``sigma`` is
            ``beta = 1 / sigma**2``: 1/9 for the RPN's 3, 1 for Fast R-CNN's 1.
        delta_weights: of the coder, see :func:`detector.ops.boxes.encode_boxes`.
        inside_weights: multipliers of the four differences of deltas, within smooth L1.

    Raises:
        ValueError: an unknown kind, a negative ``beta``, or inside weights that are not four
            positive numbers or have no meaning for the kind.
    """

    where: str
    kind: str = "smooth_l1"
    beta: float = 0.0
    delta_weights: Sequence[float] = ONES
    inside_weights: Sequence[float] = ONES

    def __post_init__(self) -> None:
        for name in ("delta_weights", "inside_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind != "smooth_l1" and self.kind not in OVERLAPS:
            raise ValueError(
                f"{self.where}.box_loss={self.kind} is not known: write smooth_l1 (with "
                f"smooth_l1_beta=0 for L1), {', '.join(OVERLAPS)}"
            )
        if self.beta < 0:
            raise ValueError(f"{self.where}.smooth_l1_beta={self.beta} must be 0 (L1) or more")
        if len(self.inside_weights) != 4 or min(self.inside_weights) <= 0:
            raise ValueError(
                f"{self.where}.inside_weights={list(self.inside_weights)} must be four numbers "
                "above 0, one for each of dx, dy, dw and dh"
            )
        if self.kind != "smooth_l1" and self.inside_weights != ONES:
            raise ValueError(
                f"{self.where}.inside_weights weigh deltas, and box_loss={self.kind} compares "
                "boxes; leave them at 1, or choose box_loss=smooth_l1"
            )

    def __call__(self, deltas: Tensor, reference: Tensor, gt_boxes: Tensor) -> Tensor:
        """Losses ``(...)`` of deltas ``(..., 4)`` from anchors or proposals ``(..., 4)``.

        Empty slots give finite losses and gradients, which the caller weighs with zero.
        """
        if self.kind in OVERLAPS:
            boxes = decode_boxes(deltas, reference, self.delta_weights)
            return 1 - OVERLAPS[self.kind](boxes, gt_boxes)
        goal = encode_boxes(gt_boxes, reference, self.delta_weights)
        if self.inside_weights != ONES:
            deltas, goal = self._weigh(deltas), self._weigh(goal)
        return F.smooth_l1_loss(deltas, goal, reduction="none", beta=self.beta).sum(-1)

    def _weigh(self, deltas: Tensor) -> Tensor:
        # One by one: weights made into a tensor would be a copy to the GPU that the CPU waits for.
        columns = zip(deltas.unbind(-1), self.inside_weights, strict=True)
        return torch.stack([column * weight for column, weight in columns], -1)
