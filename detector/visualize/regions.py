"""Masks from any source as bitmaps of their own extent, finer than the picture they go into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from detector.ops.masks import box_patches


@dataclass(frozen=True)
class Region:
    """A bitmap ``(h, w)`` bool whose first pixel lies at ``(top, left)`` of a larger picture."""

    top: int
    left: int
    bitmap: np.ndarray


def regions_from_masks(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, zoom: int
) -> list[Region]:
    """Regions at ``zoom`` times the image's resolution.

    Args:
        masks: ``(n, height, width)`` bool, or ``(n, M, M)`` float probabilities inside each box.
        boxes: ``(n, 4)`` in pixels of the image.
        height: of the image.
        width: of the image.
        zoom: how many pixels of the region stand for one of the image.
    """
    if masks.dtype == bool:
        assert masks.shape[1:] == (height, width), "masks must have the size of the image"
        return [_enlarge(mask, zoom) for mask in masks]
    patches = box_patches(
        torch.from_numpy(np.ascontiguousarray(masks, np.float32)),
        torch.from_numpy(np.asarray(boxes, np.float64) * zoom),
        height * zoom,
        width * zoom,
    )
    return [Region(*patch) for patch in patches]


def regions_from_rings(
    rings: Sequence[Sequence[np.ndarray]], height: int, width: int, zoom: int
) -> list[Region]:
    """Regions of instances given as rings of ``(v, 2)`` vertices; the non-zero winding rule."""
    return [_wind(instance, height, width, zoom) for instance in rings]


def erode(bitmap: np.ndarray, steps: int) -> np.ndarray:
    """Take ``steps`` pixels off the rim, nearly round: by turns in four and in eight directions.

    What lies outside the bitmap counts as empty.
    """
    framed = np.pad(bitmap, 1)
    for step in range(steps):
        rows = framed[:-2] & framed[1:-1] & framed[2:]
        if step % 2:
            core = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
        else:
            core = rows[:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        framed = np.pad(core, 1)
    return framed[1:-1, 1:-1]


def dilate(bitmap: np.ndarray, steps: int) -> np.ndarray:
    """Add ``steps`` pixels to the rim, as far as the bitmap reaches."""
    framed = np.pad(~bitmap, steps, constant_values=True)
    return ~erode(framed, steps)[steps:-steps, steps:-steps]


def _enlarge(mask: np.ndarray, zoom: int) -> Region:
    """The set part of a mask, its stairs smoothed by bicubic interpolation."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Region(0, 0, np.zeros((0, 0), bool))
    top, left = rows[0], columns[0]
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 2)
    image = Image.fromarray(part.astype(np.uint8) * 255)
    size = (part.shape[1] * zoom, part.shape[0] * zoom)
    smooth = np.asarray(image.resize(size, Image.Resampling.BICUBIC)) >= 128
    border = 2 * zoom
    return Region(int(top) * zoom, int(left) * zoom, smooth[border:-border, border:-border])


def _wind(rings: Sequence[np.ndarray], height: int, width: int, zoom: int) -> Region:
    """Sum the signed rings: what winds other than zero times is inside."""
    rings = [np.asarray(ring, np.float64) * zoom for ring in rings if len(ring) >= 3]
    if not rings:
        return Region(0, 0, np.zeros((0, 0), bool))
    vertices = np.concatenate(rings)
    limits = np.array([width, height]) * zoom
    low = np.floor(vertices.min(0)).clip(0, limits).astype(int)
    high = np.ceil(vertices.max(0)).clip(0, limits).astype(int)
    columns, rows = (high - low).tolist()
    winding = np.zeros((rows, columns), np.int32)
    for ring in rings:
        x, y = ring.T
        area = np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))
        image = Image.new("L", (columns, rows))
        # Pillow's vertices name pixels, whose centres lie half a pixel further.
        ImageDraw.Draw(image).polygon([tuple(v) for v in ring - low - 0.5], fill=1)
        winding += np.sign(area).astype(np.int32) * np.asarray(image, np.int32)
    return Region(int(low[1]), int(low[0]), winding != 0)
