"""The Region Proposal Network (Ren et al., 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops.box_losses import ONES, BoxLoss
from detector.ops.boxes import gather_boxes
from detector.ops.loss_counts import loss_count
from detector.ops.matching import IGNORED, match_boxes
from detector.ops.sampling import check_sampling, sample_labels
from detector.rpn.anchors import AnchorGenerator
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.structures import Proposals, Targets

Normalization = Literal["sampled", "foreground", "paper"]


class RPN(nn.Module):
    """Anchors, head, losses and the proposal layer.

    The loss is equation 1 of the paper, ``sum(L_cls) / N_cls + box_weight * sum(L_box) / N_reg``
    over sampled anchors, the second sum over foreground, and ``normalization`` says what the two
    are divided by:

    * ``sampled``: both by the anchors drawn in the batch (the reference models, and the 2015 code
      with its outside weights as published, ``RPN_POSITIVE_WEIGHT: -1``);
    * ``foreground``: boxes by the foreground anchors drawn in the batch (its outside weights with
      ``RPN_POSITIVE_WEIGHT: p`` are this with ``box_weight=p``);
    * ``paper``: in each image ``N_cls = num_samples`` and N_reg is the number of anchor locations,
      the cells that the image fills; the mean over images. There ``box_weight`` is 10.

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
        box_weight: multiplier of the box loss, lambda in the paper.
        box_loss: see :class:`detector.ops.box_losses.BoxLoss`.
        inside_weights: likewise.
        normalization: of the losses, see above.
        border: anchors that cross the image's border by more pixels than this are neither
            foreground nor background, and no gt's best (section 3.3 of the paper: 0); ``None``
            leaves out only those wholly in the padding right of and below the image, infinity
            none at all (torchvision).

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
        box_loss: str = "smooth_l1",
        inside_weights: Sequence[float] = ONES,
        normalization: Normalization = "sampled",
        border: float | None = None,
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
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"rpn.normalization={normalization} is not known: write one of "
                f"{', '.join(get_args(Normalization))}"
            )
        if border is not None and border < 0:
            raise ValueError(
                f"rpn.border={border} must be 0 or more pixels, or null for anchors wherever they "
                "are"
            )
        self.anchors = anchors
        self.head = head
        self.train_proposals = train_proposals
        self.test_proposals = test_proposals
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.box_loss = BoxLoss("rpn", box_loss, smooth_l1_beta, ONES, inside_weights)
        self.box_weight = box_weight
        self.normalization = normalization
        self.border = border

    def forward(
        self, features: list[Tensor], image_sizes: Tensor, targets: Targets
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals for the second stage and the losses ``loss_objectness``, ``loss_rpn_box``."""
        anchors, logits, deltas = self._outputs(features)
        proposals = self.train_proposals(anchors, logits, deltas, image_sizes)
        losses = self.losses(
            torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), image_sizes, targets
        )
        return proposals, losses

    def losses_alone(
        self, features: list[Tensor], image_sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """The losses of :meth:`forward` where nobody asks for proposals, which cost an NMS."""
        anchors, logits, deltas = self._outputs(features)
        return self.losses(
            torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), image_sizes, targets
        )

    def propose(self, features: list[Tensor], image_sizes: Tensor) -> Proposals:
        """Proposals at inference."""
        return self.test_proposals(*self._outputs(features), image_sizes)

    def _outputs(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Anchors ``(A_l, 4)``, logits ``(B, A_l)`` and deltas ``(B, A_l, 4)`` of each level."""
        return self.anchors(features), *self.head(features)

    def losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_sizes: Tensor,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """``loss_objectness`` and ``loss_rpn_box``, the two terms of equation 1.

        Args:
            anchors: ``(A, 4)``.
            logits: ``(B, A)``.
            deltas: ``(B, A, 4)``.
            image_sizes: ``(B, 2)``.
            targets: ground truth.
        """
        matched, labels = self._match(anchors, image_sizes, targets)
        index, positive, valid = sample_labels(
            labels, self.num_samples, self.positive_fraction, targets.seeds
        )
        objectness = F.binary_cross_entropy_with_logits(
            logits.gather(1, index), positive.to(logits.dtype), reduction="none"
        )
        box = self.box_loss(
            gather_boxes(deltas, index),
            anchors[index],
            gather_boxes(targets.boxes, matched.gather(1, index)),
        )
        objectness, box = (objectness * valid).sum(1), (box * positive).sum(1)
        if self.normalization == "paper":
            objectness, box = objectness / self.num_samples, box / self._locations(image_sizes)
            images = loss_count(len(objectness))
            objectness, box = objectness.sum() / images, box.sum() / images
        else:
            count = loss_count(valid.sum())
            foreground = loss_count(positive.sum())
            objectness = objectness.sum() / count
            box = box.sum() / (count if self.normalization == "sampled" else foreground)
        return {"loss_objectness": objectness, "loss_rpn_box": self.box_weight * box}

    def _match(
        self, anchors: Tensor, image_sizes: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Best gt slot and label of every anchor, both ``(B, A)`` (section 3.1.2)."""
        limit = image_sizes.flip(-1)[:, None]
        if self.border is None:
            # An anchor wholly in a bucket's padding teaches nothing; it must not crowd out others.
            outside = (anchors[None, :, :2] >= limit).any(-1)
        else:
            low, high = anchors[None, :, :2], anchors[None, :, 2:]
            outside = ((low < -self.border) | (high > limit + self.border)).any(-1)
            # Without extent they overlap no gt, so that each gt claims its best among the others.
            anchors = anchors.masked_fill(outside[..., None], 0.0)
        matched, labels = match_boxes(
            anchors,
            targets.boxes,
            targets.valid,
            self.negative_iou,
            self.positive_iou,
            allow_low_quality=True,
        )
        return matched, labels.masked_fill(outside, IGNORED)

    def _locations(self, image_sizes: Tensor) -> Tensor:
        """How many cells of all levels each image fills, ``(B,)``; padding does not count."""
        cells = [(image_sizes + stride - 1) // stride for stride in self.anchors.strides]
        return sum(level.prod(-1) for level in cells)
