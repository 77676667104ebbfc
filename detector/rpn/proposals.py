"""The proposal layer: from scored anchors to the boxes the second stage looks at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.ops.boxes import clip_boxes, decode_boxes, gather_boxes
from detector.ops.nms import nms_slots
from detector.structures import Proposals


class ProposalLayer(nn.Module):
    """Top-k of each level, decode, clip, drop tiny boxes, NMS per level, top-k over levels.

    Faster R-CNN, section 3.3, with FPN's separate levels. It has no parameters; training and
    inference differ in their counts and each has its own layer.

    Args:
        pre_nms_top_n: boxes of each level and image that enter NMS.
        post_nms_top_n: P, boxes of each image that leave.
        nms_threshold: IoU above which the lower-scored box goes.
        min_size: boxes not wider and higher than this, in pixels, are dropped.
        score_threshold: boxes whose probability of an object is lower are dropped before NMS.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        pre_nms_top_n: int = 1000,
        post_nms_top_n: int = 1000,
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        for key, count in (("pre_nms_top_n", pre_nms_top_n), ("post_nms_top_n", post_nms_top_n)):
            if count < 1:
                raise ValueError(f"rpn proposals: {key}={count} must be at least 1")
        if not 0 <= nms_threshold <= 1:
            raise ValueError(
                f"rpn proposals: nms_threshold={nms_threshold} must lie in 0..1; 1 keeps every box"
            )
        if not 0 <= score_threshold < 1:
            raise ValueError(
                f"rpn proposals: score_threshold={score_threshold} must be a probability below 1; "
                "0 keeps every box"
            )
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_threshold = nms_threshold
        self.min_size = min_size
        self.score_threshold = score_threshold

    @torch.no_grad()
    def forward(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: Tensor,
    ) -> Proposals:
        """Per-level anchors ``(A_l, 4)``, logits ``(B, A_l)``, deltas ``(B, A_l, 4)``.

        Gradients do not flow through proposals ("approximate joint training", section 3.2).
        """
        scores, boxes, levels = [], [], []
        for level, (level_anchors, level_logits, level_deltas) in enumerate(
            zip(anchors, logits, deltas, strict=True)
        ):
            count = min(self.pre_nms_top_n, level_logits.shape[1])
            top, index = level_logits.topk(count, dim=1)
            scores.append(top)
            chosen = gather_boxes(level_deltas, index)
            boxes.append(decode_boxes(chosen, level_anchors[index]))
            levels.append(torch.full_like(index, level))
        scores, boxes, levels = torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(levels, 1)

        boxes = clip_boxes(boxes, image_sizes)
        size = boxes[..., 2:] - boxes[..., :2]
        # Strictly larger, so that with min_size 0 boxes clipped to nothing still go. NaN compares
        # false and goes too.
        valid = (size > self.min_size).all(-1) & scores.isfinite()
        if self.score_threshold:
            valid = valid & (scores.sigmoid() >= self.score_threshold)
        keep = nms_slots(boxes, scores, levels, valid, self.nms_threshold)

        count = min(self.post_nms_top_n, scores.shape[1])
        top, index = scores.masked_fill(~keep, -torch.inf).topk(count, dim=1)
        valid = keep.gather(1, index)
        boxes = gather_boxes(boxes, index)
        return Proposals(
            boxes=boxes.masked_fill(~valid[..., None], 0.0),
            scores=top.masked_fill(~valid, 0.0),
            valid=valid,
        )
