"""The box branch: classify each RoI and refine its box (Fast R-CNN, section 2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm
from detector.ops.box_losses import ONES, BoxLoss
from detector.ops.boxes import gather_boxes
from detector.ops.loss_counts import loss_count
from detector.ops.slots import put_slots, slots_to_compute, take_slots
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.pooler import PooledRoIs, check_bins, check_channels, pool_slots
from detector.structures import Detections, Proposals, SampledRoIs, Targets


class TwoFCHead(nn.Module):
    """Two fully connected layers on the flattened RoI (FPN, section 4.2).

    Args:
        in_channels: C of the features.
        pooled_size: side of the pooled square, or the sides of a spatial pyramid's grids.
        width: outputs of each layer.
    """

    def __init__(
        self, in_channels: int = 256, pooled_size: int | Sequence[int] = 7, width: int = 1024
    ) -> None:
        super().__init__()
        sides = (pooled_size,) if isinstance(pooled_size, int) else pooled_size
        self.num_bins = sum(side**2 for side in sides)
        self.fc1 = nn.Linear(in_channels * self.num_bins, width)
        self.fc2 = nn.Linear(width, width)
        self.out_channels = width
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S, S)``, or what a pyramid gives, ``(N, C * bins)``, to ``(N, width)``."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


class ConvFCHead(nn.Module):
    """3x3 convolutions, then fully connected layers: 4conv1fc of "Group Normalization" (table 7).

    Batch norms (``bn``, ``sync_bn``) see all RoIs that are computed, on a GPU empty slots too, so
    that they need images of as many proposals as ``roi_sampler.num_samples``; ``gn`` does not care.

    Args:
        in_channels: C of the features.
        pooled_size: side of the pooled square.
        num_convs: convolutions.
        conv_width: their channels.
        num_fcs: fully connected layers, at least 1.
        width: outputs of each of them.
        norm: normalisation of the convolutions, see
            :func:`detector.backbones.normalization.norm_layer`.

    Raises:
        ValueError: no layers, or an unknown norm.
    """

    def __init__(
        self,
        in_channels: int = 256,
        pooled_size: int = 7,
        num_convs: int = 4,
        conv_width: int = 256,
        num_fcs: int = 1,
        width: int = 1024,
        norm: str = "none",
    ) -> None:
        super().__init__()
        if num_convs < 1 or num_fcs < 1:
            raise ValueError(
                f"box_branch.head: num_convs={num_convs} and num_fcs={num_fcs} must be at least 1; "
                "without convolutions it is a detector.roi_heads.box.TwoFCHead"
            )
        if not isinstance(pooled_size, int):
            raise ValueError(
                f"box_branch.head.pooled_size={list(pooled_size)}: convolutions need a square, "
                "which spatial_pyramid does not give; choose another roi_op"
            )
        self.num_bins = pooled_size**2
        widths = [in_channels] + [conv_width] * num_convs
        self.convs = nn.Sequential(
            *(conv_norm(a, b, 3, norm, activation=True) for a, b in itertools.pairwise(widths))
        )
        widths = [conv_width * self.num_bins] + [width] * num_fcs
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out_channels = width
        for layer in self.fcs:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S, S)`` to ``(N, width)``."""
        x = self.convs(pooled).flatten(1)
        for layer in self.fcs:
            x = F.relu(layer(x))
        return x


class BoxPredictor(nn.Module):
    """Class scores with background last, and deltas of each class.

    Args:
        in_channels: width of the head.
        num_classes: K.
        class_agnostic: one box for all classes instead of one for each.
    """

    def __init__(self, in_channels: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_box_classes = 1 if class_agnostic else num_classes
        # Of each layer whose rows belong to classes, how many a class has; background comes last.
        self.class_rows = {"scores": 1} if class_agnostic else {"scores": 1, "deltas": 4}
        self.scores = nn.Linear(in_channels, num_classes + 1)
        self.deltas = nn.Linear(in_channels, 4 * self.num_box_classes)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, in_channels)`` to logits ``(N, K + 1)`` and deltas ``(N, K or 1, 4)``."""
        return self.scores(x).float(), self.deltas(x).float().unflatten(1, (-1, 4))


class BoxBranch(nn.Module):
    """Pooler, head, predictor, their losses and the final detections.

    Args:
        num_classes: K.
        pooler: gives the RoI features. ``None``, as ``detections``, in the stages of a cascade.
        head: turns them into vectors.
        predictor: scores and deltas.
        detections: chooses the final boxes at inference.
        delta_weights: see :func:`detector.ops.boxes.encode_boxes`.
        smooth_l1_beta: where the box loss turns linear; 0 is L1, 1 is Fast R-CNN's.
        box_weight: multiplier of the box loss.
        box_loss: see :class:`detector.ops.box_losses.BoxLoss`.
        inside_weights: likewise.
    """

    def __init__(
        self,
        num_classes: int,
        pooler: nn.Module | None,
        head: nn.Module,
        predictor: BoxPredictor,
        detections: DetectionLayer | None,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        smooth_l1_beta: float = 0.0,
        box_weight: float = 1.0,
        box_loss: str = "smooth_l1",
        inside_weights: Sequence[float] = ONES,
    ) -> None:
        super().__init__()
        if pooler is not None:
            check_bins("box_branch", pooler, head)
            check_channels("box_branch", pooler, head, predictor.in_channels)
        self.num_classes = num_classes
        self.pooler = pooler
        self.head = head
        self.predictor = predictor
        self.detections = detections
        self.delta_weights = tuple(delta_weights)
        self.box_loss = BoxLoss(
            "box_branch", box_loss, smooth_l1_beta, delta_weights, inside_weights
        )
        self.box_weight = box_weight

    def losses(
        self,
        features: list[Tensor],
        rois: SampledRoIs,
        targets: Targets,
        image_sizes: Tensor | None = None,
        pooled: PooledRoIs | None = None,
    ) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box``, averaged over all sampled RoIs.

        Args:
            features: of the backbone.
            rois: what to train on.
            targets: ground truth.
            image_sizes: ``(B, 2)``; a cascade clips the boxes that it refines, here none are.
            pooled: features of ``rois``, where another branch shares them.
        """
        if pooled is None:
            pooled = self.pool(features, rois.boxes, rois.valid)
        return self.prediction_losses(*self.predict(pooled.features), pooled.rows, rois, targets)

    def pool(self, features: list[Tensor], boxes: Tensor, valid: Tensor) -> PooledRoIs:
        """RoI features of boxes ``(B, R, 4)``, of which ``(B, R)`` are valid."""
        return pool_slots(self.pooler, features, boxes, slots_to_compute(valid))

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features ``(N, ...)`` to logits ``(N, K + 1)`` and deltas ``(N, K or 1, 4)``."""
        return self.predictor(self.head(pooled))

    def recognize(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features ``(N, ...)`` to vectors ``(N, width)`` of the head and probabilities
        ``(N, K + 1)``, background last."""
        vectors = self.head(pooled)
        return vectors, self.predictor(vectors)[0].softmax(1)

    def prediction_losses(
        self, logits: Tensor, deltas: Tensor, rows: Tensor, rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """The losses of what :meth:`predict` gave for the slots ``rows`` ``(N,)`` of ``rois``."""
        valid = take_slots(rois.valid, rows)
        labels = take_slots(rois.labels, rows)
        foreground = take_slots(rois.foreground, rows)
        count = loss_count(rois.valid.sum())

        classification = F.cross_entropy(logits, labels, reduction="none")
        box_class = labels.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
        gt_boxes = gather_boxes(targets.boxes, rois.matched_gt)
        box = self.box_loss(
            deltas.gather(1, box_class)[:, 0],
            take_slots(rois.boxes, rows),
            take_slots(gt_boxes, rows),
        )
        return {
            "loss_classifier": (classification * valid).sum() / count,
            "loss_box": self.box_weight * (box * foreground).sum() / count,
        }

    def detect(
        self, features: list[Tensor], proposals: Proposals, image_sizes: Tensor
    ) -> Detections:
        """The best boxes of each image."""
        pooled = self.pool(features, proposals.boxes, proposals.valid)
        logits, deltas = self.predict(pooled.features)
        rows = pooled.rows
        scores = put_slots(torch.softmax(logits, 1)[:, :-1], rows, like=proposals.valid)
        deltas = put_slots(deltas, rows, like=proposals.valid)
        return self.detections(scores, deltas, proposals, image_sizes, self.delta_weights)
