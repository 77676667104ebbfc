"""What a detector's second stage computes for boxes that somebody gives it.

So a detector serves as a feature extractor: of the objects of a caption ("Bottom-Up and Top-Down
Attention", Anderson et al., 2018, section 3.1), of tracked boxes, or of ground truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from detector.ops.coordinates import roi_cell_to_image
from detector.ops.rois import flatten_boxes
from detector.roi_heads.keypoint import KeypointBranch
from detector.roi_heads.mask import MaskBranch, mask_logits
from detector.structures import TensorStruct


@dataclass(frozen=True)
class RegionFeatures(TensorStruct):
    """Features and predictions of N boxes in B images, the boxes of the first image first.

    Features have the precision that the model runs in; boxes, scores and logits are float32.

    Attributes:
        levels: the backbone's maps ``(B, C, H / stride, W / stride)``, finest first; they cover the
            padding too.
        strides: of the levels, in pixels of the network's input.
        scale: ``(2,)`` float32, pixels of the boxes' image in one pixel of the network's input,
            along x and y. :func:`detector.ops.feature_to_image` times it is where a level's cells
            lie.
        boxes: ``(N, 4)`` in pixels of the image that they were given in.
        image_index: ``(N,)`` int64, the image of each box in the batch.
        labels: ``(N,)`` int64 in ``0..K-1``: as given, or the class with the best score.
        box_features: ``(N, C, S, S)`` that the box head is given (after res5, where that is the
            head), or ``(N, C * bins)`` of a spatial pyramid.
        box_vectors: ``(N, width)`` that the box head makes of them.
        scores: ``(N, K + 1)`` probabilities, background last.
        mask_features: ``(N, C, S, S)`` that the mask head is given, or ``None`` without masks.
        mask_logits: ``(N, M, M)`` of the class in ``labels``, whose sigmoid is the probability that
            a cell belongs to the object; or ``None`` without masks.
        keypoint_logits: ``(N, J, S, S)`` whose softmax over the cells is the probability that a
            keypoint lies in each, or ``None`` without keypoints.
    """

    levels: list[Tensor]
    strides: tuple[int, ...]
    scale: Tensor
    boxes: Tensor
    image_index: Tensor
    labels: Tensor
    box_features: Tensor
    box_vectors: Tensor
    scores: Tensor
    mask_features: Tensor | None = None
    mask_logits: Tensor | None = None
    keypoint_logits: Tensor | None = None

    def cell_centers(self, side: int | None = None) -> Tensor:
        """Where the cells of each box lie: ``(N, side, side, 2)`` points ``(x, y)`` in the pixels
        of ``boxes``, rows from the top, see :func:`detector.ops.roi_cell_to_image`.

        Args:
            side: S of pooled features or M of masks; ``None`` for ``mask_logits``.

        Raises:
            ValueError: there are no masks that would say the side.
        """
        if side is None:
            if self.mask_logits is None:
                raise ValueError("the model has no masks: give the side of the pooled features")
            side = self.mask_logits.shape[-1]
        cells = torch.arange(side, device=self.boxes.device)
        return roi_cell_to_image(self.boxes[:, None, None], cells[:, None], cells, side)

    def _map(self, function) -> Self:
        mapped = super()._map(function)
        return dataclasses.replace(mapped, levels=[function(level) for level in self.levels])


def region_features(
    features: list[Tensor],
    strides: Sequence[int],
    boxes: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor] | None,
    box_branch: nn.Module,
    mask_branch: MaskBranch | None = None,
    keypoint_branch: KeypointBranch | None = None,
) -> RegionFeatures:
    """Runs the second stage on given boxes.

    Args:
        features: of the backbone.
        strides: of the features.
        boxes: in pixels of the network's input: B tensors ``(L, 4)``, or ``(N, 5)`` rows of
            (image index, x1, y1, x2, y2).
        labels: the class of each box, whose mask is wanted: B tensors ``(L,)``, or ``(N,)``; or
            ``None`` for the class with the best score.
        box_branch: classifies them.
        mask_branch: predicts their masks, if the model has one.
        keypoint_branch: predicts their keypoints, likewise.

    Raises:
        ValueError: boxes or labels of other shapes, or not as many labels as boxes.
    """
    boxes, image_index = flatten_boxes(features[0], boxes)
    if labels is not None:
        labels = _flatten_labels(labels, len(boxes), box_branch.num_classes).to(boxes.device)
    pooled = box_branch.pooler(features, boxes, image_index)
    vectors, scores = box_branch.recognize(pooled)
    if labels is None:
        labels = scores[:, :-1].argmax(1)
    mask_features = logits = None
    if mask_branch is not None:
        mask_features = pooled
        if mask_branch.pooler is not None:
            mask_features = mask_branch.pooler(features, boxes, image_index)
        logits = mask_logits(mask_branch.head(mask_features), labels, mask_branch.head.masks)
    heatmaps = None
    if keypoint_branch is not None:
        heatmaps = keypoint_branch.heatmaps(features, boxes, image_index)
    return RegionFeatures(
        levels=features,
        strides=tuple(strides),
        scale=torch.ones(2, device=boxes.device),
        boxes=boxes,
        image_index=image_index,
        labels=labels,
        box_features=pooled,
        box_vectors=vectors,
        scores=scores,
        mask_features=mask_features,
        mask_logits=logits,
        keypoint_logits=heatmaps,
    )


def _flatten_labels(labels: Tensor | Sequence[Tensor], count: int, num_classes: int) -> Tensor:
    """``(N,)`` int64. Values are looked at on the CPU only, where nobody waits for the answer."""
    if not isinstance(labels, Tensor):
        labels = torch.cat(list(labels)) if labels else torch.zeros(0, dtype=torch.int64)
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}, but {count} boxes need as many "
            "of torch.int64, and in lists as many for each image"
        )
    if labels.device.type == "cpu" and ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels {labels.unique().tolist()} must lie in 0..{num_classes - 1}")
    return labels
