"""Test-time augmentation: the same image at several sizes and mirrored, the findings merged.

As Detectron2's GeneralizedRCNNWithTTA has it: boxes of all views go through one more NMS within
each class; then masks are predicted for the merged boxes in every view, and their probabilities
averaged. So are those of keypoints, which it does not have. It costs two passes of the network for
each view of a model with masks or keypoints, one without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.ops.boxes import gather_boxes
from detector.ops.nms import nms_slots
from detector.roi_heads.keypoint import read_keypoints
from detector.structures import Detections

# Sides of a view's padded images are multiples of it, as the collation's are.
MULTIPLE = 32


@dataclass(frozen=True)
class View:
    """A batch seen in another way.

    Attributes:
        images: ``(B, 3, H, W)`` uint8, padded at the right and below.
        image_sizes: ``(B, 2)`` int64.
        ratios: ``(B, 2)`` float32, its sizes by those of the batch: along y, along x.
        flipped: mirrored left to right.
    """

    images: Tensor
    image_sizes: Tensor
    ratios: Tensor
    flipped: bool

    def boxes_to_view(self, boxes: Tensor) -> Tensor:
        """Boxes ``(B, D, 4)`` of the batch in the view's pixels."""
        boxes = boxes * self._scale()
        return self._mirror(boxes) if self.flipped else boxes

    def boxes_to_batch(self, boxes: Tensor) -> Tensor:
        """Boxes ``(B, D, 4)`` of the view in the batch's pixels."""
        boxes = self._mirror(boxes) if self.flipped else boxes
        return boxes / self._scale()

    def _scale(self) -> Tensor:
        return self.ratios.flip(1).repeat(1, 2)[:, None]

    def _mirror(self, boxes: Tensor) -> Tensor:
        widths = self.image_sizes[:, 1].to(boxes.dtype)[:, None]
        x1, y1, x2, y2 = boxes.unbind(2)
        return torch.stack([widths - x2, y1, widths - x1, y2], dim=2)


class AugmentedDetector(nn.Module):
    """A detector that looks at each image several times.

    Args:
        model: of :mod:`detector.rcnn`.
        scales: of the network's input in each view; the images of a view are resized from it.
        flip: look at each size mirrored too.
        nms_threshold: IoU above which the lower-scored box of the same class goes, whatever views
            they come from.
        keypoint_flip: J places, for each keypoint the one that it is in a mirror; ``None`` where
            that is not known.

    Raises:
        ValueError: the model is given its proposals, or finds keypoints and it is not known which
            change places; or a scale makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        nms_threshold: float = 0.5,
        keypoint_flip: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if model.needs_proposals:
            raise ValueError(
                f"evaluation.tta: {type(model).__name__} is given its proposals, which test-time "
                "augmentation does not resize; set evaluation.tta=null"
            )
        if model.has_keypoints and flip and not keypoint_flip:
            raise ValueError(
                f"evaluation.tta.flip=true: {type(model).__name__} finds keypoints, and only data "
                "that has them says which change places in a mirror; evaluate on such data, or set "
                "evaluation.tta.flip=false"
            )
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise ValueError(
                f"evaluation.tta.scales={list(scales)}: numbers from 0.1 to 10 are expected, such "
                "as [0.8, 1.0, 1.2]"
            )
        self.model = model
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = flip
        self.nms_threshold = nms_threshold
        self.keypoint_flip = list(keypoint_flip or ())
        self.train(model.training)

    def detect(self, images: Tensor, image_sizes: Tensor) -> Detections:
        """Detections of a batch, as many slots as the model's own; see :class:`FasterRCNN`."""
        if self.scales == (1.0,) and not self.flip:
            return self.model.detect(images, image_sizes)
        views = [
            make_view(images, image_sizes, scale, flipped)
            for scale in self.scales
            for flipped in ((False, True) if self.flip else (False,))
        ]
        found = []
        for view in views:
            seen = self.model.detect(view.images, view.image_sizes)
            found.append(dataclasses.replace(seen, boxes=view.boxes_to_batch(seen.boxes)))
        merged = merge_detections(found, self.nms_threshold)
        if not (self.model.has_masks or self.model.has_keypoints):
            return merged
        seen = [self._inside(view, merged) for view in views]
        added = {}
        masks, heatmaps = ([each[i] for each in seen] for i in (0, 1))
        if self.model.has_masks:
            added["masks"] = _into_slots(torch.stack(masks).mean(0), merged.valid)
        if self.model.has_keypoints:
            # Where all views exclude a place, its logarithm must stay finite.
            logits = torch.stack(heatmaps).mean(0).clamp(min=1e-30).log()
            found = read_keypoints(logits, merged.boxes[merged.valid])
            added["keypoints"] = _into_slots(found, merged.valid)
        return dataclasses.replace(merged, **added)

    def _inside(self, view: View, merged: Detections) -> tuple[Tensor | None, Tensor | None]:
        """What a view shows in the n merged boxes: probabilities ``(n, M, M)`` of masks and ``(n,
        J, S, S)`` of keypoints."""
        boxes = view.boxes_to_view(merged.boxes)
        own = [own[valid] for own, valid in zip(boxes, merged.valid, strict=True)]
        labels = merged.labels[merged.valid]
        features = self.model.extract_features(view.images, view.image_sizes, own, labels)
        masks = heatmaps = None
        if self.model.has_masks:
            masks = features.mask_logits.float().sigmoid()
            masks = masks.flip(2) if view.flipped else masks
        if self.model.has_keypoints:
            logits = features.keypoint_logits.float()
            heatmaps = logits.flatten(2).softmax(2).view_as(logits)
            heatmaps = heatmaps.flip(3)[:, self.keypoint_flip] if view.flipped else heatmaps
        return masks, heatmaps


def _into_slots(values: Tensor, valid: Tensor) -> Tensor:
    """``(B, D, ...)`` with the values ``(n, ...)`` where ``valid``, ``(B, D)`` bool, and zeros."""
    slots = values.new_zeros((*valid.shape, *values.shape[1:]))
    slots[valid] = values
    return slots


def make_view(images: Tensor, image_sizes: Tensor, scale: float, flipped: bool) -> View:
    """The batch resized and mirrored, each image within its own size.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        image_sizes: ``(B, 2)`` int64.
        scale: of both sides, rounded to whole pixels.
        flipped: mirror it left to right.
    """
    parts = []
    for image, (height, width) in zip(images, image_sizes.tolist(), strict=True):
        part = image[:, :height, :width]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if size != (height, width):
            resized = functional.interpolate(
                part[None].float(), size, mode="bilinear", align_corners=False, antialias=True
            )[0]
            part = resized.round().clamp(0, 255).to(image.dtype)
        parts.append(part.flip(2) if flipped else part)
    sizes = torch.tensor([part.shape[1:] for part in parts], device=image_sizes.device)
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in sizes.amax(0).tolist())
    if scale == 1.0:  # the batch's own padding
        height, width = images.shape[2:]
    canvas = images.new_zeros((len(parts), images.shape[1], height, width))
    for own, part in zip(canvas, parts, strict=True):
        own[:, : part.shape[1], : part.shape[2]] = part
    return View(canvas, sizes, sizes.float() / image_sizes.float(), flipped)


def merge_detections(found: Sequence[Detections], nms_threshold: float) -> Detections:
    """Several detections of the same images as one, without masks.

    Args:
        found: of D slots each, boxes in the same pixels.
        nms_threshold: IoU above which the lower-scored box of the same class goes.

    Returns:
        The D best that are left.
    """
    boxes, scores, labels, valid = (
        torch.cat([getattr(each, name) for each in found], dim=1)
        for name in ("boxes", "scores", "labels", "valid")
    )
    keep = nms_slots(boxes, scores, labels, valid, nms_threshold)
    top, index = scores.masked_fill(~keep, -1.0).topk(found[0].scores.shape[1], dim=1)
    valid = keep.gather(1, index)
    return Detections(
        boxes=gather_boxes(boxes, index).masked_fill(~valid[..., None], 0.0),
        scores=top.masked_fill(~valid, 0.0),
        labels=labels.gather(1, index).masked_fill(~valid, 0),
        valid=valid,
    )


def with_augmentation(
    model: nn.Module, tta: Mapping[str, Any] | None, keypoint_flip: Sequence[int] | None = None
) -> nn.Module:
    """The model, looking several times where ``evaluation.tta`` says so.

    Args:
        model: of :mod:`detector.rcnn`.
        tta: ``scales``, ``flip`` and ``nms_threshold`` of :class:`AugmentedDetector`, or ``None``.
        keypoint_flip: likewise.

    Raises:
        ValueError: another key, or what :class:`AugmentedDetector` refuses.
    """
    if tta is None:
        return model
    known = ("scales", "flip", "nms_threshold")
    if not isinstance(tta, Mapping):
        raise ValueError(
            f"evaluation.tta={tta}: say how to look, such as "
            "'evaluation.tta={scales: [0.8, 1.0, 1.2], flip: true}', or write null"
        )
    unknown = [key for key in tta if key not in known]
    if unknown:
        raise ValueError(f"evaluation.tta.{unknown[0]} is not known; there are {', '.join(known)}")
    return AugmentedDetector(model, **tta, keypoint_flip=keypoint_flip)
