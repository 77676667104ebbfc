"""The box branch of Cascade R-CNN: several heads, each on the boxes of the one before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detector.ops.boxes import clip_boxes, decode_boxes
from detector.ops.matching import POSITIVE, match_boxes
from detector.ops.slots import put_slots, slots_to_compute, take_slots
from detector.roi_heads.box import BoxBranch, BoxPredictor
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.pooler import PooledRoIs, check_bins, check_channels, pool_slots
from detector.structures import Detections, Proposals, SampledRoIs, Targets

# Each stage's deltas are smaller than those of the one before; larger weights keep their spread.
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class CascadeBoxBranch(nn.Module):
    """Heads that refine boxes one after the other ("Cascade R-CNN", section 4.2).

    The first stage is a :class:`detector.roi_heads.box.BoxBranch` on the sampled RoIs. The next
    pools the boxes that it predicted, all of them, labels them by a higher IoU, which by then
    enough of them reach, and so on. At inference the scores are the mean over the stages; the boxes
    are the last one's.

    Args:
        num_classes: K.
        pooler: gives the RoI features of all stages. Its gradient is divided by their number, as
            in Detectron2, so that the backbone sees one second stage rather than several.
        head: makes a stage's head.
        predictor: makes a stage's predictor, which must be class-agnostic in its boxes.
        detections: chooses the final boxes at inference.
        delta_weights: of each stage, see :func:`detector.ops.boxes.encode_boxes`.
        later_ious: of each stage but the first, the IoU from which a box is foreground; the first
            takes the labels of the RoI sampler.
        **losses: the options of :class:`detector.roi_heads.box.BoxBranch`, for every stage.

    Raises:
        ValueError: numbers that do not fit each other, or boxes for each class.
    """

    def __init__(
        self,
        num_classes: int,
        pooler: nn.Module,
        head: Callable[[], nn.Module],
        predictor: Callable[[], BoxPredictor],
        detections: DetectionLayer,
        delta_weights: Sequence[Sequence[float]] = DELTA_WEIGHTS,
        later_ious: Sequence[float] = (0.6, 0.7),
        **losses,
    ) -> None:
        super().__init__()
        if len(later_ious) != len(delta_weights) - 1:
            raise ValueError(
                f"box_branch.later_ious={list(later_ious)} must be one fewer than the "
                f"{len(delta_weights)} stages that box_branch.delta_weights has"
            )
        rising = all(low <= high for low, high in itertools.pairwise((0.0, *later_ious, 1.0)))
        if not rising:
            raise ValueError(
                f"box_branch.later_ious={list(later_ious)} must lie in 0..1 and not fall"
            )
        self.num_classes = num_classes
        self.pooler = pooler
        self.stages = nn.ModuleList(
            BoxBranch(num_classes, None, head(), predictor(), None, weights, **losses)
            for weights in delta_weights
        )
        self.detections = detections
        self.later_ious = tuple(later_ious)
        for stage in self.stages:
            check_bins("box_branch", pooler, stage.head)
            check_channels("box_branch", pooler, stage.head, stage.predictor.in_channels)
            if stage.predictor.num_box_classes != 1:
                raise ValueError(
                    "box_branch.predictor.class_agnostic=false, but a cascade refines one box for "
                    "all classes; set it to true"
                )

    def losses(
        self,
        features: list[Tensor],
        rois: SampledRoIs,
        targets: Targets,
        image_sizes: Tensor,
        pooled: PooledRoIs | None = None,
    ) -> dict[str, Tensor]:
        """``loss_classifier_stage1``, ``loss_box_stage1`` and the same of the later stages.

        Each is averaged over the stage's RoIs. All that were sampled go through all stages, but for
        boxes that became empty; shapes stay as they are.

        Args:
            features: of the backbone.
            rois: what the first stage trains on.
            targets: ground truth.
            image_sizes: ``(B, 2)``; refined boxes are clipped to their image.
            pooled: features of ``rois``, where another branch shares them.
        """
        if pooled is None:
            pooled = self.pool(features, rois.boxes, rois.valid)
        rows = pooled.rows
        losses = {}
        for number, stage in enumerate(self.stages):
            scaled = _ScaleGradient.apply(pooled.features, 1 / len(self.stages))
            logits, deltas = stage.predict(scaled)
            own = stage.prediction_losses(logits, deltas, rows, rois, targets)
            losses.update({f"{name}_stage{number + 1}": loss for name, loss in own.items()})
            if stage is not self.stages[-1]:
                boxes, valid = _refine(stage, deltas, rows, rois, image_sizes)
                rois = self._label(boxes, valid, targets, self.later_ious[number])
                pooled = pool_slots(self.pooler, features, boxes, rows)
        return losses

    def detect(
        self, features: list[Tensor], proposals: Proposals, image_sizes: Tensor
    ) -> Detections:
        """The best boxes of each image."""
        rows = slots_to_compute(proposals.valid)
        probability = torch.zeros((), device=rows.device)
        for stage in self.stages:
            pooled = pool_slots(self.pooler, features, proposals.boxes, rows)
            logits, deltas = stage.predict(pooled.features)
            probability = probability + logits.softmax(1) / len(self.stages)
            if stage is not self.stages[-1]:
                boxes, valid = _refine(stage, deltas, rows, proposals, image_sizes)
                proposals = Proposals(boxes, proposals.scores, valid)
        return self.detections(
            put_slots(probability[:, :-1], rows, like=proposals.valid),
            put_slots(deltas, rows, like=proposals.valid),
            proposals,
            image_sizes,
            self.stages[-1].delta_weights,
        )

    def pool(self, features: list[Tensor], boxes: Tensor, valid: Tensor) -> PooledRoIs:
        """RoI features of boxes ``(B, R, 4)``, of which ``(B, R)`` are valid."""
        return pool_slots(self.pooler, features, boxes, slots_to_compute(valid))

    def recognize(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features ``(N, ...)`` to vectors ``(N, width)`` of the last head and probabilities
        ``(N, K + 1)``, the mean over the stages, background last. The boxes are taken as final:
        all stages see them as they are, and none refines them."""
        recognized = [stage.recognize(pooled) for stage in self.stages]
        return recognized[-1][0], torch.stack([scores for _, scores in recognized]).mean(0)

    @torch.no_grad()
    def _label(
        self, boxes: Tensor, valid: Tensor, targets: Targets, positive_iou: float
    ) -> SampledRoIs:
        matched, labels = match_boxes(
            boxes, targets.boxes, targets.valid, positive_iou, positive_iou
        )
        foreground = (labels == POSITIVE) & valid
        classes = targets.labels.gather(1, matched).masked_fill(~foreground, self.num_classes)
        # Foreground may be anywhere by now, not only in the first slots.
        return SampledRoIs(boxes, classes, matched, valid, foreground, boxes.shape[1])


@torch.no_grad()
def _refine(
    stage: BoxBranch,
    deltas: Tensor,
    rows: Tensor,
    former: SampledRoIs | Proposals,
    image_sizes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Boxes ``(B, R, 4)`` that a stage's deltas ``(N, 1, 4)`` make of the former ones, and which of
    them ``(B, R)`` are valid still. No gradient flows through them."""
    boxes = decode_boxes(deltas[:, 0], take_slots(former.boxes, rows), stage.delta_weights)
    boxes = clip_boxes(put_slots(boxes, rows, like=former.valid), image_sizes)
    valid = former.valid & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return boxes.masked_fill(~valid[..., None], 0.0), valid


class _ScaleGradient(torch.autograd.Function):
    """The same values; their gradient is multiplied."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
