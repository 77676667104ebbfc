"""The Region Proposal Network (Ren et al., 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops.boxes import encode_boxes, gather_boxes
from detector.ops.matching import IGNORED, match_boxes
from detector.ops.sampling import check_sampling, sample_labels
from detector.rpn.anchors import AnchorGenerator
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.structures import Proposals, Targets


class RPN(nn.Module):
    """Anchors, head, losses and the proposal layer.

    Args:
        anchors: makes the anchors.
        head: scores and refines them.
        train_proposals: proposal layer during training.
        test_proposals: proposal layer at inference.
        positive_iou: anchors from this IoU on are foreground.
        negative_iou: anchors below this IoU are background.
        num_samples: anchors of each image that enter the loss.
        positive_fraction: the largest share of foreground among them.
        smooth_l1_beta: where the box loss turns from quadratic to linear; 0 is L1 (the reference
            models), 1/9 the paper's sigma of 3.
        box_weight: multiplier of the box loss.

    Raises:
        ValueError: the head does not fit the anchors, or a number is out of its range.
    """

    def __init__(
        self,
        anchors: AnchorGenerator,
        head: RPNHead,
        train_proposals: ProposalLayer,
        test_proposals: ProposalLayer,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        num_samples: int = 256,
        positive_fraction: float = 0.5,
        smooth_l1_beta: float = 0.0,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if head.num_anchors != anchors.num_anchors:
            raise ValueError(
                f"rpn.head.num_anchors={head.num_anchors}, but rpn.anchors makes "
                f"{anchors.num_anchors} anchors per cell (the sizes of a level times the aspect "
                f"ratios); set rpn.head.num_anchors={anchors.num_anchors}"
            )
        if not 0 <= negative_iou <= positive_iou <= 1:
            raise ValueError(
                f"rpn.negative_iou={negative_iou} and rpn.positive_iou={positive_iou} must lie in "
                "0..1, the negative one not above the other"
            )
        check_sampling("rpn", num_samples, positive_fraction)
        self.anchors = anchors
        self.head = head
        self.train_proposals = train_proposals
        self.test_proposals = test_proposals
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.smooth_l1_beta = smooth_l1_beta
        self.box_weight = box_weight

    def forward(
        self, features: list[Tensor], image_sizes: Tensor, targets: Targets
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals for the second stage and the losses ``loss_objectness``, ``loss_rpn_box``."""
        anchors = self.anchors(features)
        logits, deltas = self.head(features)
        proposals = self.train_proposals(anchors, logits, deltas, image_sizes)
        losses = self.losses(
            torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), image_sizes, targets
        )
        return proposals, losses

    def propose(self, features: list[Tensor], image_sizes: Tensor) -> Proposals:
        """Proposals at inference."""
        logits, deltas = self.head(features)
        return self.test_proposals(self.anchors(features), logits, deltas, image_sizes)

    def losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_sizes: Tensor,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Equation 1 of the paper over sampled anchors.

        Args:
            anchors: ``(A, 4)``.
            logits: ``(B, A)``.
            deltas: ``(B, A, 4)``.
            image_sizes: ``(B, 2)``.
            targets: ground truth.
        """
        matched, labels = match_boxes(
            anchors,
            targets.boxes,
            targets.valid,
            self.negative_iou,
            self.positive_iou,
            allow_low_quality=True,
        )
        # An anchor wholly in a bucket's padding teaches nothing; it must not crowd out others.
        outside = (anchors[None, :, :2] >= image_sizes.flip(-1)[:, None]).any(-1)
        labels = labels.masked_fill(outside, IGNORED)
        index, positive, valid = sample_labels(labels, self.num_samples, self.positive_fraction)

        gt_boxes = gather_boxes(targets.boxes, matched.gather(1, index))
        goal = encode_boxes(gt_boxes, anchors[index])
        objectness = F.binary_cross_entropy_with_logits(
            logits.gather(1, index), positive.to(logits.dtype), reduction="none"
        )
        box = F.smooth_l1_loss(
            gather_boxes(deltas, index), goal, reduction="none", beta=self.smooth_l1_beta
        ).sum(-1)
        count = valid.sum().clamp(min=1)
        return {
            "loss_objectness": (objectness * valid).sum() / count,
            "loss_rpn_box": self.box_weight * (box * positive).sum() / count,
        }
