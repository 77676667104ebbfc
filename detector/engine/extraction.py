"""Features of given boxes: what a user gives, checked, and the model run on it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.engine.runtime import Runtime
from detector.roi_heads.region_features import RegionFeatures
from detector.structures import Batch


def extract_features(
    model: nn.Module,
    batch: Batch,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor] | None,
    runtime: Runtime,
) -> RegionFeatures:
    """The features of given boxes, on the model's device, in evaluation mode.

    The model's training mode is restored afterwards.

    Args:
        model: with a second stage.
        batch: B images.
        boxes: B tensors ``(L, 4)`` in pixels of the network's input.
        labels: B tensors ``(L,)``, or ``None``.
        runtime: how to run the model.

    Raises:
        ValueError: the model has no second stage.
    """
    if not hasattr(model, "extract_features"):
        raise ValueError(
            f"{type(model).__name__} has no second stage, which features of boxes come from; load "
            "a Faster or Mask R-CNN"
        )
    was_training = model.training
    model.eval()
    try:
        moved = runtime.move(batch)
        boxes = [own.to(runtime.torch_device) for own in boxes]
        # Not inference mode: whoever trains something on the features needs normal tensors.
        with torch.no_grad(), runtime.autocast():
            return model.extract_features(moved.images, moved.image_sizes, boxes, labels)
    finally:
        model.train(was_training)


def to_boxes(given: Any, height: int, width: int) -> Tensor:
    """Boxes ``(L, 4)`` float32 as a user gave them: array, tensor or lists of numbers.

    Args:
        given: ``(x1, y1, x2, y2)`` in pixels of the image.
        height: of the image in pixels.
        width: likewise.

    Raises:
        ValueError: another shape, or a box that is no box or lies outside the image.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
    try:
        boxes = torch.from_numpy(np.array(given, np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes are no (L, 4) numbers: {error}") from error
    if boxes.numel() == 0:
        return boxes.new_zeros((0, 4))
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes of shape {tuple(boxes.shape)}; give (L, 4): x1, y1, x2, y2")
    x1, y1, x2, y2 = boxes.unbind(1)
    solid = boxes.isfinite().all(1) & (x2 > x1) & (y2 > y1)
    inside = (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    for good, what in (
        (solid, "it needs x1 < x2 and y1 < y2; width and height are not what is meant"),
        (inside, f"it lies outside the image, whose width is {width} and height {height} pixels"),
    ):
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(f"boxes[{row}] is {boxes[row].tolist()}: {what}")
    return boxes


def to_labels(given: Any, count: int, names: Sequence[str]) -> Tensor:
    """Labels ``(L,)`` int64 as a user gave them: numbers or names of classes.

    Args:
        given: a label for each box.
        count: L, of the boxes.
        names: of the K classes.

    Raises:
        ValueError: not as many labels as boxes, or no such class.
    """
    labels = given.tolist() if isinstance(given, Tensor | np.ndarray) else list(given)
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} boxes; give one for each")
    return torch.tensor([_to_label(label, names) for label in labels], dtype=torch.int64)


def _to_label(given: Any, names: Sequence[str]) -> int:
    if given in names:
        return list(names).index(given)
    if isinstance(given, Integral) and 0 <= given < len(names):
        return int(given)
    raise ValueError(
        f"label {given!r} is no class of the model; give a number from 0 to {len(names) - 1} or a "
        f"name, such as {names[0]!r}"
    )
