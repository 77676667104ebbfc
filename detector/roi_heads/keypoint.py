"""The keypoint branch (He et al., 2017, section 5)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops.keypoints import heatmaps_to_keypoints, keypoints_to_cells
from detector.ops.loss_counts import loss_count
from detector.ops.slots import put_slots, slots_to_compute, take_slots
from detector.roi_heads.pooler import check_grid
from detector.structures import Detections, SampledRoIs, Targets

NORMALIZERS = ("visible", "possible")


class KeypointBranch(nn.Module):
    """Pooler, head and loss; a keypoint is one cell of S x S, chosen by softmax over all of them.

    Args:
        pooler: gives RoI features.
        head: gives heatmaps of logits, see :mod:`detector.roi_heads.keypoint_heads`.
        keypoint_weight: multiplier of the loss.
        normalizer: what the loss is divided by. ``visible``: the keypoints of the batch that count,
            so that each weighs more the fewer there are. ``possible``: as many as there were if
            every foreground slot had all of them, a constant (Detectron2's
            NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS false).

    Raises:
        ValueError: an unknown normalizer, or a pooler that gives no squares.
    """

    def __init__(
        self,
        pooler: nn.Module,
        head: nn.Module,
        keypoint_weight: float = 1.0,
        normalizer: str = "visible",
    ) -> None:
        super().__init__()
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"keypoint_branch.normalizer={normalizer!r} is not known; use one of "
                f"{', '.join(NORMALIZERS)}"
            )
        check_grid("keypoint_branch.pooler", pooler)
        self.pooler = pooler
        self.head = head
        self.keypoint_weight = keypoint_weight
        self.normalizer = normalizer

    def losses(
        self, features: list[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """``loss_keypoint``: cross-entropy over the cells of a heatmap.

        Every keypoint counts that is labelled, hidden or not, and lies in a foreground RoI that
        matched its object. A RoI without one takes no part, as in Detectron2.

        Args:
            features: of the backbone.
            rois: foreground first.
            targets: ground truth.

        Raises:
            ValueError: the targets have no keypoints, or another number of them than the head.
        """
        num_keypoints = self.head.num_keypoints
        if targets.keypoints is None or targets.keypoints.shape[2] != num_keypoints:
            raise ValueError(
                f"a branch for {num_keypoints} keypoints needs as many of each object, but the "
                f"targets have {0 if targets.keypoints is None else targets.keypoints.shape[2]}; "
                "train a model without it (model=faster_rcnn_fpn), or set num_keypoints"
            )
        # Foreground stands first: slots after num_foreground can only be background.
        slots = slice(0, rois.num_foreground)
        foreground, boxes = rois.foreground[:, slots], rois.boxes[:, slots]
        keypoints = _matched(targets.keypoints, rois.matched_gt[:, slots])
        keypoints = keypoints * foreground[..., None, None]

        rows = slots_to_compute(foreground & (keypoints[..., 2] > 0).any(-1))
        boxes = take_slots(boxes, rows)
        heatmaps = self.head(self.pooler(features, boxes, rows // foreground.shape[1]))
        cells, counts = keypoints_to_cells(take_slots(keypoints, rows), boxes, heatmaps.shape[-1])
        total = (keypoint_loss(heatmaps, cells) * counts).sum()
        if self.normalizer == "visible":
            divisor = loss_count(counts.sum())
        else:
            divisor = loss_count(foreground.numel() * num_keypoints)
        return {"loss_keypoint": self.keypoint_weight * total / divisor}

    def detect(self, features: list[Tensor], detections: Detections) -> Detections:
        """The detections with ``keypoints`` ``(B, D, J, 3)`` filled in.

        A keypoint is the highest point of its heatmap, resized to the box, see
        :func:`detector.ops.keypoints.heatmaps_to_keypoints`. Its score is the exponential of that
        height over the sum of the exponentials of all cells: the probability of a cell as high,
        which is comparable between boxes of any size (Detectron2's; where interpolation overshoots
        a lone peak it exceeds 1).

        Args:
            features: of the backbone.
            detections: boxes.
        """
        rows = slots_to_compute(detections.valid)
        boxes = take_slots(detections.boxes, rows)
        heatmaps = self.heatmaps(features, boxes, rows // detections.valid.shape[1])
        keypoints = put_slots(read_keypoints(heatmaps, boxes), rows, like=detections.valid)
        keypoints = keypoints * detections.valid[..., None, None]
        return dataclasses.replace(detections, keypoints=keypoints)

    def heatmaps(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Logits ``(N, J, S, S)`` in boxes ``(N, 4)`` of the images ``(N,)`` of a batch."""
        return self.head(self.pooler(features, boxes, image_index))


def read_keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Places and scores ``(N, J, 3)``, see :meth:`KeypointBranch.detect`.

    Args:
        heatmaps: ``(N, J, S, S)`` logits.
        boxes: ``(N, 4)``.
    """
    found = heatmaps_to_keypoints(heatmaps, boxes)
    score = (found[..., 2] - heatmaps.flatten(2).logsumexp(2)).exp()
    return torch.cat((found[..., :2], score[..., None]), dim=2)


def keypoint_loss(heatmaps: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy of softmax over the cells.

    Args:
        heatmaps: ``(N, J, S, S)`` logits.
        cells: ``(N, J)`` int64, the right ones, row by row.

    Returns:
        ``(N, J)``.
    """
    # As rows: the form with more dimensions has no deterministic kernel on a GPU.
    rows = heatmaps.flatten(2).flatten(0, 1)
    return F.cross_entropy(rows, cells.flatten(), reduction="none").view_as(cells)


def _matched(keypoints: Tensor, matched_gt: Tensor) -> Tensor:
    """Keypoints ``(B, F, J, 3)`` of the gt ``(B, F)``, from ``(B, G, J, 3)``."""
    index = matched_gt[..., None, None].expand(-1, -1, *keypoints.shape[2:])
    return keypoints.gather(1, index)
