"""From the mask head's M x M probabilities to masks in the image (Mask R-CNN, section 3.1).

A mask of M x M cells covers its box; cell ``j`` has its centre at ``(j + 0.5) / M`` of the box's
side. Sampled bilinearly at the centres of the image's pixels, with zeros outside the cells, and
cut at 0.5, it is the same mask that ``grid_sample(align_corners=False, padding_mode="zeros")``
over the whole image gives.

What is sampled here is the probability less the threshold, and what decides is its sign. Weights
are never negative, so whatever is rounded: between two cells of one sign no pixel has the other,
and between two of different sign it changes once along a line. So the borders of the runs of a
column are found from its M crossings of cell rows, without visiting its pixels, and they are
exactly the borders that sampling every pixel would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detector.ops.cuda import masks as kernels
from detector.ops.cuda import runtime
from detector.ops.reference.masks import paste_masks as reference_paste_masks
from detector.ops.rle import RLE, encode_borders

# Columns handled at once: what they need stays in the processor's cache, and memory is bounded.
COLUMNS = 8192

# Where a box without area is put: far from every pixel.
NOWHERE = 1e300


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Tensor:
    """Paste box masks into images of full size.

    The CPU and the CUDA kernel give the same bits: positions are computed in float64, values in
    float32. No gradient.

    Args:
        masks: ``(N, M, M)`` float probabilities inside each box.
        boxes: ``(N, 4)`` float ``(x1, y1, x2, y2)`` in pixels of the image pasted into; parts
            outside the image are cut off, boxes without extent or with NaN or infinity give
            empty masks.
        height: height of the image in pixels.
        width: width of the image in pixels.
        threshold: a pixel belongs to the mask where its probability is at least this; more
            than zero, the probability far from every box.

    Returns:
        ``(N, height, width)`` bool on the masks' device: N full bitmaps, so for many detections
        of large images prefer :func:`masks_to_rle`.

    Raises:
        ValueError: shapes, dtypes, devices, sizes or the threshold are not as above.
    """
    _check(masks, boxes, height, width, threshold)
    return torch.ops.detector.paste_masks(masks, boxes, height, width, threshold)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> list[RLE]:
    """Box masks as COCO run-length encodings, without a bitmap of the image's size.

    Arguments as for :func:`paste_masks`, and the result is the encoding of what it returns. On
    CUDA only the borders of runs travel to the CPU; since their number is not known before, the
    host waits for the device.

    Returns:
        N encodings with ``counts`` as text, ready for JSON.

    Raises:
        ValueError: as :func:`paste_masks`.
    """
    _check(masks, boxes, height, width, threshold)
    if masks.is_cuda:
        return _rle_on_cuda(masks, boxes, height, width, threshold)
    return _rle_on_cpu(masks, boxes, height, width, threshold)


def box_patches(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The part of each pasted mask that can be set: ``(top, left, patch)``, ``patch`` (h, w) bool.

    Arguments as for :func:`paste_masks`; no pixel outside a patch belongs to its mask.
    """
    _check(masks, boxes, height, width, threshold)
    for placed in _groups(masks, boxes, height, width, threshold):
        borders = placed.borders()
        top, rows = placed.y.first, placed.y.stop - placed.y.first
        left, columns = placed.x.first, placed.x.stop - placed.x.first
        local = (borders.x - left[borders.mask]) * rows[borders.mask]
        local += borders.row - top[borders.mask]
        for i, part in enumerate(np.split(local, borders.ends[:-1])):
            lengths = np.diff(part, prepend=0, append=rows[i] * columns[i])
            patch = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
            yield int(top[i]), int(left[i]), patch.reshape(columns[i], rows[i]).T


def _check(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> None:
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ValueError(f"masks must be (N, M, M), not {tuple(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must be ({len(masks)}, 4), not {tuple(boxes.shape)}")
    for name, tensor in (("masks", masks), ("boxes", boxes)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {tensor.dtype}")
    if masks.device != boxes.device:
        raise ValueError(f"masks are on {masks.device} and boxes on {boxes.device}")
    if height < 1 or width < 1 or height * width >= 2**31:
        raise ValueError(f"an image of height {height} and width {width} is not possible")
    if not threshold > 0:
        raise ValueError(f"threshold must be more than 0, not {threshold}")


@torch.library.custom_op("detector::paste_masks", mutates_args=(), device_types="cpu")
def _paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    patches = box_patches(masks, boxes, height, width, threshold)
    for canvas, (top, left, patch) in zip(pasted.numpy(), patches, strict=True):
        canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return pasted


@_paste_masks.register_fake
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    return masks.new_empty((len(masks), height, width), dtype=torch.bool)


_paste_masks.register_kernel("cuda")(runtime.or_else(kernels.paste_masks, reference_paste_masks))


def _rle_on_cpu(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> list[RLE]:
    encodings = []
    for placed in _groups(masks, boxes, height, width, threshold):
        borders = placed.borders()
        index = borders.x * height + borders.row
        encodings += encode_borders(index, borders.ends, height, width)
    return encodings


def _rle_by_kernel(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> list[RLE]:
    borders, ends = kernels.mask_borders(masks, boxes, height, width, threshold)
    return encode_borders(borders.numpy(), ends.numpy(), height, width)


_rle_on_cuda = runtime.or_else(_rle_by_kernel, _rle_on_cpu)


@dataclass(frozen=True)
class _Axis:
    """Where the pixels of one axis of an image lie between the cells of masks.

    With a ring of cells around a mask, numbered from 0, pixel ``p`` lies ``place(p)`` after the
    centre of cell 0, in cells.

    Attributes:
        start: ``(N,)`` float64, where the boxes begin.
        scale: ``(N,)`` float64, cells per pixel.
        side: M.
        first, stop: ``(N,)`` int64, a range of pixels that holds all that cells reach.
    """

    start: np.ndarray
    scale: np.ndarray
    side: int
    first: np.ndarray
    stop: np.ndarray

    @staticmethod
    def of(start: np.ndarray, end: np.ndarray, side: int, size: int) -> _Axis:
        with np.errstate(all="ignore"):
            scale = side / (end - start)
            usable = (end > start) & (scale > 0) & (scale < np.inf)
        start, scale = np.where(usable, start, NOWHERE), np.where(usable, scale, 1.0)
        # Half a cell beyond the box the interpolation has faded to zero; one pixel is to spare.
        first = np.clip(np.floor(start - 0.5 - 0.5 / scale), 0, size)
        stop = np.clip(np.floor(start - 0.5 + (side + 0.5) / scale) + 2, first, size)
        return _Axis(start, scale, side, first.astype(np.int64), stop.astype(np.int64))

    def __getitem__(self, index) -> _Axis:
        return _Axis(
            self.start[index], self.scale[index], self.side, self.first[index], self.stop[index]
        )

    def cells(self, mask: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cell before each pixel, and float32 of how far the pixel is towards the next."""
        place = (pixel + 0.5 - self.start[mask]) * self.scale[mask] + 0.5
        place = np.minimum(np.maximum(place, 0), self.side + 1)
        cell = np.minimum(place.astype(np.int64), self.side)
        return cell, (place - cell).astype(np.float32)


@dataclass(frozen=True)
class _Borders:
    """Where the pixels of columns change, ordered by mask, column and row.

    Attributes:
        mask, x, row: int64 of one length; ``row`` is the first of the new value.
        ends: ``(N,)`` where each mask's borders end.
    """

    mask: np.ndarray
    x: np.ndarray
    row: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class _PlacedMasks:
    """Masks less the threshold, with a ring of cells around them, and their place in an image.

    Attributes:
        cells: ``(N, M + 2, M + 2)`` float32, ``[mask, column, row]``.
        x, y: the axes.
        height: of the image.
    """

    cells: np.ndarray
    x: _Axis
    y: _Axis
    height: int

    def borders(self) -> _Borders:
        widths = self.x.stop - self.x.first
        mask = np.repeat(np.arange(len(widths)), widths)
        x = np.arange(len(mask)) - np.repeat(np.cumsum(widths) - self.x.stop, widths)
        # Along each column of pixels, the values at the heights of the cells' centres.
        side = self.cells.shape[1]
        cell, weight = self.x.cells(mask, x)
        rows = self.cells.reshape(-1, side)
        at = mask * side + cell
        values = np.take(rows, at, axis=0)
        values *= (1 - weight)[:, None]
        after = np.take(rows, at + 1, axis=0)
        after *= weight[:, None]
        values += after
        # The ring is outside, so that no change lies between two columns.
        inside = (values >= 0).reshape(-1)
        change = np.flatnonzero(inside[1:] != inside[:-1])
        column, cell = np.divmod(change, side)
        mask, x = mask[column], x[column]
        values = values.reshape(-1)
        row = self._first_rows(mask, cell, values[change], values[change + 1])
        return _Borders(mask, x, row, np.searchsorted(mask, np.arange(len(widths)), "right"))

    def _first_rows(
        self, mask: np.ndarray, cell: np.ndarray, before: np.ndarray, after: np.ndarray
    ) -> np.ndarray:
        """The first row with the sign of ``after``, of a column that has the values ``before``
        and ``after``, of different sign, at the centres of ``cell`` and the one below."""
        with np.errstate(invalid="ignore"):
            crossing = cell + before / (before - after) - 0.5
            guess = crossing / self.y.scale[mask] + self.y.start[mask] - 0.5
        row = np.fmin(np.fmax(np.ceil(guess), 0), self.height).astype(np.int64)

        def is_after(some: np.ndarray, row: np.ndarray) -> np.ndarray:
            there, weight = self.y.cells(mask[some], row)
            value = (1 - weight) * before[some] + weight * after[some]
            turned = (value >= 0) == (after[some] >= 0)
            return (there > cell[some]) | ((there == cell[some]) & turned)

        # The guess is rounded otherwise than sampling is, by less than 1e-6 cells: where it is that
        # close to a pixel's centre, what sampling gives decides.
        with np.errstate(invalid="ignore"):
            doubt = 1e-6 / self.y.scale + 1e-9
            doubtful = np.flatnonzero(~(np.abs(guess - np.rint(guess)) > doubt[mask]))
        late = doubtful[row[doubtful] > 0]
        while len(late := late[is_after(late, row[late] - 1)]):
            row[late] -= 1
            late = late[row[late] > 0]
        early = doubtful[row[doubtful] < self.height]
        while len(early := early[~is_after(early, row[early])]):
            row[early] += 1
            early = early[row[early] < self.height]
        return row


def _groups(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> Iterator[_PlacedMasks]:
    """All masks, in groups of about ``COLUMNS`` columns of pixels."""
    side = masks.shape[-1]
    mask_array = masks.detach().to("cpu", torch.float32).numpy()
    x1, y1, x2, y2 = boxes.detach().to("cpu", torch.float64).numpy().T
    x, y = _Axis.of(x1, x2, side, width), _Axis.of(y1, y2, side, height)
    before = np.cumsum(x.stop - x.first) // COLUMNS
    bounds = np.append(np.flatnonzero(np.diff(before, prepend=-1)), len(before))
    for some in map(slice, bounds[:-1], bounds[1:]):
        cells = np.zeros((some.stop - some.start, side + 2, side + 2), np.float32)
        cells[:, 1:-1, 1:-1] = mask_array[some].transpose(0, 2, 1)
        cells -= np.float32(threshold)
        yield _PlacedMasks(cells, x[some], y[some], height)
