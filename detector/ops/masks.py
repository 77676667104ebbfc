"""From the mask head's M x M probabilities to masks in the image (Mask R-CNN, section 3.1).

A mask of M x M cells covers its box; cell ``j`` has its centre at ``(j + 0.5) / M`` of the box's
side. Sampled bilinearly at the centres of the image's pixels, with zeros outside the cells, and
cut at 0.5, it is the same mask that ``grid_sample(align_corners=False, padding_mode="zeros")``
over the whole image gives. Bilinear sampling on an axis-aligned grid is separable, so a mask is
two small matrix products over the pixels of its box, and no pixel outside the box is visited.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

RLE = dict[str, Any]
"""A COCO run-length encoding: ``{"size": [height, width], "counts": str}``."""


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Tensor:
    """Paste box masks into images of full size.

    Args:
        masks: ``(N, M, M)`` float probabilities inside each box.
        boxes: ``(N, 4)`` float ``(x1, y1, x2, y2)`` in pixels of the image pasted into; parts
            outside the image are cut off, boxes without extent give empty masks.
        height: height of the image in pixels.
        width: width of the image in pixels.
        threshold: a pixel belongs to the mask where its probability is at least this.

    Returns:
        ``(N, height, width)`` bool on the CPU: N full bitmaps, so for many detections of large
        images prefer :func:`masks_to_rle`.
    """
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for canvas, (top, left, patch) in zip(
        pasted.numpy(), box_patches(masks, boxes, height, width, threshold), strict=True
    ):
        canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return pasted


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> list[RLE]:
    """Box masks as COCO run-length encodings, without a bitmap of the image's size.

    Arguments as for :func:`paste_masks`, and the result is the encoding of what it returns.

    Returns:
        N encodings with ``counts`` as text, ready for JSON.
    """
    uncompressed = [
        {"size": [height, width], "counts": _patch_counts(patch, top, left, height, width)}
        for top, left, patch in box_patches(masks, boxes, height, width, threshold)
    ]
    if not uncompressed:
        return []
    encoded = coco_mask.frPyObjects(uncompressed, height, width)
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def box_patches(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The part of each pasted mask that can be set: ``(top, left, patch)``, ``patch`` (h, w) bool.

    Arguments as for :func:`paste_masks`; no pixel outside a patch belongs to its mask.
    """
    assert masks.ndim == 3 and masks.shape[1] == masks.shape[2], "masks must be (N, M, M)"
    assert boxes.shape == (len(masks), 4), "boxes must be (N, 4)"
    side = masks.shape[-1]
    mask_array = masks.detach().to("cpu", torch.float32).numpy()
    box_array = boxes.detach().to("cpu", torch.float64).numpy()
    for mask, (x1, y1, x2, y2) in zip(mask_array, box_array, strict=True):
        top, row_weights = _sampling_weights(y1, y2, height, side)
        left, column_weights = _sampling_weights(x1, x2, width, side)
        # Made column by column, the order in which COCO's encoding runs.
        yield top, left, (column_weights @ mask.T @ row_weights.T >= threshold).T


def _sampling_weights(start: float, end: float, size: int, side: int) -> tuple[int, np.ndarray]:
    """Bilinear weights along one axis of a box from ``start`` to ``end`` in an image of ``size``.

    Returns:
        The first pixel that any cell reaches, and float32 ``(pixels, side)`` weights of the cells.
    """
    extent = end - start
    if not extent > 0:
        return 0, np.zeros((0, side), np.float32)
    # Half a cell beyond the box the interpolation has faded to zero.
    reach = 0.5 * extent / side
    first = int(np.clip(np.ceil(start - reach - 0.5), 0, size))
    last = int(np.clip(np.floor(end + reach - 0.5), -1, size - 1))
    centres = np.arange(first, last + 1) + 0.5
    position = (centres - start) * (side / extent) - 0.5
    distance = np.abs(position[:, None] - np.arange(side))
    return first, np.maximum(1.0 - distance, 0.0).astype(np.float32)


def _patch_counts(patch: np.ndarray, top: int, left: int, height: int, width: int) -> list[int]:
    """Run lengths, zeros first, of an image in column order that is empty but for ``patch``."""
    rows, columns = patch.shape
    # One zero before each column and one after the last: every run ends inside its own column, and
    # the borders of runs are the places where neighbours differ, starts and ends in turn.
    framed = np.zeros(columns * (rows + 1) + 1, bool)
    framed[:-1].reshape(columns, rows + 1)[:, 1:] = patch.T
    column, row = np.divmod(np.flatnonzero(framed[1:] != framed[:-1]), rows + 1)
    borders = left * height + top + column * height + row
    # A run down to the bottom goes on where the next column begins: both borders fall on one pixel.
    joined = np.flatnonzero(borders[1:-1:2] == borders[2:-1:2]) if len(borders) else borders
    borders = np.delete(borders, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(borders, prepend=0, append=height * width).tolist()
    return counts[:-1] if counts[-1] == 0 else counts
