"""The mask branch (He et al., 2017, section 3)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops.loss_counts import loss_count
from detector.ops.polygons import rasterize_polygons
from detector.ops.slots import put_slots, slots_to_compute, take_slots
from detector.roi_heads.pooler import PooledRoIs, check_bins, check_grid
from detector.structures import Detections, SampledRoIs, Targets


class MaskBranch(nn.Module):
    """Pooler, head and loss; masks are predicted for the class that the box branch chose.

    Args:
        pooler: gives RoI features. ``None``: those of the box branch's pooler, which is then given
            to :meth:`losses` and :meth:`detect`, and whose weights stay the box branch's.
        head: gives logits of masks, of the kind that its ``masks`` says.
        mask_weight: multiplier of the loss.

    Raises:
        ValueError: the pooler's output is not what the head takes.
    """

    def __init__(self, pooler: nn.Module | None, head: nn.Module, mask_weight: float = 1.0) -> None:
        super().__init__()
        self.pooler = pooler
        self.head = head
        self.mask_weight = mask_weight
        if pooler is not None:
            self.check(pooler)

    def check(self, pooler: nn.Module) -> None:
        """Whether the head takes what ``pooler`` gives.

        Raises:
            ValueError: it does not.
        """
        check_grid("mask_branch.pooler", pooler)
        check_bins("mask_branch", pooler, self.head)

    def losses(
        self,
        features: list[Tensor],
        rois: SampledRoIs,
        targets: Targets,
        shared: PooledRoIs | None = None,
    ) -> dict[str, Tensor]:
        """``loss_mask``: see :func:`mask_loss`; the mean over foreground RoIs.

        Args:
            features: of the backbone.
            rois: foreground first.
            targets: ground truth.
            shared: the box branch's features of ``rois``, used (not computed again) by a branch
                without a pooler.

        Raises:
            ValueError: the targets have no polygons.
        """
        if targets.polygons is None:
            raise ValueError(
                "a mask branch needs segmentations and the targets have boxes only; "
                "train a model without it (model=faster_rcnn_fpn)"
            )
        # Foreground stands first: slots after num_foreground can only be background.
        slots = slice(0, rois.num_foreground)
        foreground = rois.foreground[:, slots]
        rows = slots_to_compute(foreground)
        image_index = rows // foreground.shape[1]
        boxes = take_slots(rois.boxes[:, slots], rows)
        weight = take_slots(foreground, rows)
        # Background slots carry the label K, which has no mask; their weight is zero.
        labels = take_slots(rois.labels[:, slots].masked_fill(~foreground, 0), rows)

        if self.pooler is not None:
            pooled = self.pooler(features, boxes, image_index)
        else:
            pooled = shared.take(image_index, rows % foreground.shape[1])
        logits = self.head(pooled)
        with torch.no_grad():
            goal = rasterize_polygons(
                targets.polygons,
                boxes,
                image_index,
                take_slots(rois.matched_gt[:, slots], rows),
                logits.shape[-1],
            )
        loss = mask_loss(logits, labels, goal, self.head.masks)
        count = loss_count(foreground.sum())
        return {"loss_mask": self.mask_weight * (loss * weight).sum() / count}

    def detect(
        self, features: list[Tensor], detections: Detections, shared: nn.Module | None = None
    ) -> Detections:
        """The detections with ``masks`` ``(B, D, M, M)`` filled in.

        Args:
            features: of the backbone.
            detections: boxes and classes.
            shared: the box branch's pooler, used by a branch without one.
        """
        rows = slots_to_compute(detections.valid)
        image_index = rows // detections.valid.shape[1]
        pooler = shared if self.pooler is None else self.pooler
        logits = self.head(pooler(features, take_slots(detections.boxes, rows), image_index))
        probability = mask_probability(logits, take_slots(detections.labels, rows), self.head.masks)
        masks = put_slots(probability, rows, like=detections.valid)
        masks = masks * detections.valid[..., None, None]
        return dataclasses.replace(detections, masks=masks)


def mask_loss(logits: Tensor, labels: Tensor, goal: Tensor, masks: str) -> Tensor:
    """Mean over the pixels of each RoI's mask.

    ``class_specific``: binary cross-entropy of the own class's mask; the others do not matter.
    ``class_agnostic``: the same of the only mask. ``softmax``: cross-entropy of K + 1 classes, the
    own one where the object is and background, the last, where it is not.

    Args:
        logits: ``(N, K, M, M)``, or 1 or K + 1 instead of K.
        labels: ``(N,)`` in ``0..K-1``.
        goal: ``(N, M, M)``, 1 where the object is, else 0.
        masks: the kind, see :mod:`detector.roi_heads.mask_heads`.

    Returns:
        ``(N,)``.
    """
    if masks == "softmax":
        background = logits.shape[1] - 1
        classes = torch.where(goal > 0.5, labels[:, None, None], background)
        # As rows: the two-dimensional form has no deterministic kernel on a GPU.
        rows = _wide(logits).movedim(1, -1).flatten(0, 2)
        loss = F.cross_entropy(rows, classes.flatten(), reduction="none").view_as(goal)
    else:
        own = _of_class(logits, labels)
        loss = F.binary_cross_entropy_with_logits(own, goal.to(own.dtype), reduction="none")
    return loss.mean((1, 2))


def mask_probability(logits: Tensor, labels: Tensor, masks: str) -> Tensor:
    """That each pixel belongs to the object, ``(N, M, M)``; arguments as in :func:`mask_loss`.

    Of ``softmax`` the probability of the object's class, against all others and background.
    """
    if masks == "softmax":
        return _of_class(_wide(logits).softmax(1), labels)
    return _of_class(logits, labels).sigmoid()


def mask_logits(logits: Tensor, labels: Tensor, masks: str) -> Tensor:
    """``(N, M, M)`` whose sigmoid :func:`mask_probability` is; arguments as in :func:`mask_loss`.

    Of ``softmax`` the log odds of the object's class against all others and background.
    """
    own = _of_class(logits, labels)
    if masks != "softmax":
        return own
    place = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return own - _wide(logits).scatter(1, place, -torch.inf).logsumexp(1)


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """``(N, M, M)`` of ``(N, K, M, M)``, or of ``(N, 1, M, M)``, which is any class's; float32 at
    least."""
    own = labels.clamp(max=values.shape[1] - 1)[:, None, None, None]
    return _wide(values.gather(1, own.expand(-1, 1, *values.shape[2:]))[:, 0])


def _wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
