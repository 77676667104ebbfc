"""The padded tensors that travel through training and inference, and nothing else.

Shapes use these letters everywhere in the package:

    B images   H,W padded size   C channels   L pyramid levels   A anchors over all levels
    G gt slots per image   P proposal slots per image   R sampled RoIs per image
    D detection slots per image   K foreground classes   M mask side
    E polygon edge slots per image   J keypoints of an object

Boxes are float32 ``(x1, y1, x2, y2)`` in continuous pixels of the network's input; width is
``x2 - x1``. A *slot* may be empty: a boolean ``valid`` says which are filled, and empty slots are
zeros. After collation every shape follows from the configuration and the padded size alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


class TensorStruct:
    """Moves every tensor field of a dataclass at once; nested structures move along."""

    def _map(self, function) -> Self:
        changes = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = function(value)
            elif isinstance(value, TensorStruct):
                changes[field.name] = value._map(function)
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy whose tensors lie on ``device``; dtypes stay as they are."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, so that the transfer to a GPU can overlap with compute."""
        return self._map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Polygons(TensorStruct):
    """Instance masks as oriented edges under the non-zero winding rule.

    The winding number of a point is a sum over edges in any order, so rings need not be kept:
    a mask is the set of its rings' edges. Parts have one orientation (they unite), holes the other.

    Attributes:
        edges: ``(B, E, 4)`` float32, ``(x_start, y_start, x_end, y_end)`` in network-input
            pixels; an image's edges stand gt by gt, unused slots at the end are zeros.
        offsets: ``(B, G + 1)`` int64; the edges of gt ``g`` are ``offsets[g]:offsets[g + 1]``.
            Empty gt slots have no edges.
        max_edges: an upper bound of the edges of any one gt in the batch, rounded up to a bucket;
            a plain integer, since shapes follow from it.
    """

    edges: Tensor
    offsets: Tensor
    max_edges: int


@dataclass(frozen=True)
class Targets(TensorStruct):
    """Ground truth of a batch.

    Attributes:
        boxes: ``(B, G, 4)`` float32.
        labels: ``(B, G)`` int64 in ``0..K-1``.
        valid: ``(B, G)`` bool.
        polygons: the masks, or ``None`` where the dataset has boxes only.
        keypoints: ``(B, G, J, 3)`` float32 ``(x, y, visibility)``, or ``None``. Visibility is 0 for
            not labelled (x = y = 0), 1 for labelled but hidden, 2 for visible; empty gt slots are
            zeros.
        seeds: ``(B,)`` int64 in ``0..2**32 - 1``: what each image's anchors and RoIs are drawn
            with, whichever images it shares a batch with; ``None`` draws from torch's generator.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    polygons: Polygons | None = None
    keypoints: Tensor | None = None
    seeds: Tensor | None = None


@dataclass(frozen=True)
class Proposals(TensorStruct):
    """Boxes that may hold objects, best first.

    Attributes:
        boxes: ``(B, P, 4)`` float32, inside the image.
        scores: ``(B, P)`` float32; the RPN's are logits of objectness.
        valid: ``(B, P)`` bool.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Batch(TensorStruct):
    """What the collate function makes and the model consumes.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB; each image fills the top left corner, the rest is zero.
        image_sizes: ``(B, 2)`` int64, ``(height, width)`` of the filled part.
        original_sizes: ``(B, 2)`` int64, ``(height, width)`` of the image file, EXIF applied.
        image_ids: ``(B,)`` int64, the dataset's ids.
        targets: ground truth, or ``None`` for inference.
        proposals: of a file, for Fast R-CNN; else ``None``.
    """

    images: Tensor
    image_sizes: Tensor
    original_sizes: Tensor
    image_ids: Tensor
    targets: Targets | None = None
    proposals: Proposals | None = None


@dataclass(frozen=True)
class SampledRoIs(TensorStruct):
    """Proposals drawn for the second stage, foreground first.

    Attributes:
        boxes: ``(B, R, 4)`` float32.
        labels: ``(B, R)`` int64; ``K`` stands for background.
        matched_gt: ``(B, R)`` int64, the best gt slot (meaningful for foreground).
        valid: ``(B, R)`` bool.
        foreground: ``(B, R)`` bool; true only in the first ``num_foreground`` slots.
        num_foreground: the most foreground RoIs an image can have.
    """

    boxes: Tensor
    labels: Tensor
    matched_gt: Tensor
    valid: Tensor
    foreground: Tensor
    num_foreground: int


@dataclass(frozen=True)
class Detections(TensorStruct):
    """What the model finds, best first.

    Attributes:
        boxes: ``(B, D, 4)`` float32 in network-input pixels, inside the image.
        scores: ``(B, D)`` float32.
        labels: ``(B, D)`` int64 in ``0..K-1``.
        valid: ``(B, D)`` bool.
        masks: ``(B, D, M, M)`` float32 probabilities inside each box, or ``None``.
        keypoints: ``(B, D, J, 3)`` float32 ``(x, y, score)`` in network-input pixels, or ``None``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None
