"""Choice of the RoIs that the second stage trains on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.ops.boxes import gather_boxes
from detector.ops.matching import IGNORED, NEGATIVE, POSITIVE, match_boxes
from detector.ops.sampling import check_sampling, sample_labels
from detector.structures import Proposals, SampledRoIs, Targets


class RoISampler(nn.Module):
    """Labels proposals by their IoU with the ground truth and samples them.

    Fast R-CNN, section 2.3: R RoIs an image, at most a quarter foreground.

    Args:
        num_classes: K; the label K stands for background.
        num_samples: R.
        positive_fraction: the largest share of foreground.
        positive_iou: proposals from this IoU on are foreground, lower ones background.
        background_iou: proposals below this IoU are neither, 0.1 in Fast R-CNN: hard background
            only. An image without objects then gives no RoIs.
        append_gt: add the gt boxes to the proposals, so that the head sees good boxes from the
            first step on.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        num_samples: int = 512,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        append_gt: bool = True,
        background_iou: float = 0.0,
    ) -> None:
        super().__init__()
        check_sampling("roi_sampler", num_samples, positive_fraction)
        if not 0 < positive_iou <= 1:
            raise ValueError(
                f"roi_sampler.positive_iou={positive_iou} must lie above 0 and up to 1"
            )
        if not 0 <= background_iou < positive_iou:
            raise ValueError(
                f"roi_sampler.background_iou={background_iou} must be 0 or more and below "
                f"roi_sampler.positive_iou={positive_iou}"
            )
        self.num_classes = num_classes
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.positive_iou = positive_iou
        self.append_gt = append_gt
        self.background_iou = background_iou

    @torch.no_grad()
    def forward(self, proposals: Proposals, targets: Targets) -> SampledRoIs:
        """R RoIs of each image, foreground first."""
        boxes, valid = proposals.boxes, proposals.valid
        if self.append_gt:
            boxes = torch.cat((boxes, targets.boxes), 1)
            valid = torch.cat((valid, targets.valid), 1)
        matched, labels = self._match(boxes, targets)
        labels = labels.masked_fill(~valid, IGNORED)
        index, foreground, valid = sample_labels(
            labels, self.num_samples, self.positive_fraction, targets.seeds, stream=1
        )
        matched = matched.gather(1, index)
        classes = targets.labels.gather(1, matched).masked_fill(~foreground, self.num_classes)
        return SampledRoIs(
            boxes=gather_boxes(boxes, index).masked_fill(~valid[..., None], 0.0),
            labels=classes,
            matched_gt=matched,
            valid=valid,
            foreground=foreground,
            num_foreground=int(self.num_samples * self.positive_fraction),
        )

    def _match(self, boxes: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Best gt slot and label of every box, both ``(B, N)``."""
        gt, gt_valid, high = targets.boxes, targets.valid, self.positive_iou
        if self.background_iou == 0:
            return match_boxes(boxes, gt, gt_valid, high, high)
        matched, labels = match_boxes(boxes, gt, gt_valid, self.background_iou, high)
        # The middle, which is ignored for anchors, is what serves as background here.
        swapped = torch.where(labels == IGNORED, NEGATIVE, IGNORED)
        return matched, torch.where(labels == POSITIVE, labels, swapped)
