"""From class scores of every proposal to the final detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.ops.boxes import clip_boxes, decode_boxes, gather_boxes
from detector.ops.nms import nms_slots
from detector.structures import Detections, Proposals


class DetectionLayer(nn.Module):
    """Score threshold, NMS within each class, the best D of all classes.

    Args:
        score_threshold: scores at or below it are dropped.
        nms_threshold: IoU above which the lower-scored box of the same class goes.
        max_detections: D.
        max_candidates: the best-scored pairs of proposal and class that enter NMS. A bound, so
            that shapes are fixed; far more than can survive.
        min_size: boxes not wider and higher than this, in pixels, are dropped.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        max_candidates: int = 4096,
        min_size: float = 0.0,
    ) -> None:
        super().__init__()
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.max_candidates = max_candidates
        self.min_size = min_size

    @torch.no_grad()
    def forward(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Proposals,
        image_sizes: Tensor,
        delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    ) -> Detections:
        """Detections of each image, best first.

        Args:
            scores: ``(B, P, K)`` probabilities.
            deltas: ``(B, P, K or 1, 4)``.
            proposals: what the deltas refer to.
            image_sizes: ``(B, 2)``.
            delta_weights: see :func:`detector.ops.boxes.encode_boxes`.
        """
        num_classes = scores.shape[2]
        eligible = (scores > self.score_threshold) & proposals.valid[..., None]
        flat = scores.masked_fill(~eligible, -1.0).flatten(1)
        top, index = flat.topk(min(self.max_candidates, flat.shape[1]), dim=1)
        proposal, label = index // num_classes, index % num_classes
        delta_row = proposal * deltas.shape[2] + label.clamp(max=deltas.shape[2] - 1)
        boxes = decode_boxes(
            gather_boxes(deltas.flatten(1, 2), delta_row),
            gather_boxes(proposals.boxes, proposal),
            delta_weights,
        )
        boxes = clip_boxes(boxes, image_sizes)
        valid = (top > 0) & (boxes[..., 2:] - boxes[..., :2] > self.min_size).all(-1)
        keep = nms_slots(boxes, top, label, valid, self.nms_threshold)

        count = min(self.max_detections, top.shape[1])
        top, index = top.masked_fill(~keep, -1.0).topk(count, dim=1)
        valid = keep.gather(1, index)
        boxes = gather_boxes(boxes, index)
        return Detections(
            boxes=boxes.masked_fill(~valid[..., None], 0.0),
            scores=top.masked_fill(~valid, 0.0),
            labels=label.gather(1, index).masked_fill(~valid, 0),
            valid=valid,
        )
