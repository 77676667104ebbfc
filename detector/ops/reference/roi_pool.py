"""RoI pooling in plain PyTorch: the reference of :mod:`detector.ops.roi_pool`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detector.ops.rois import (
    as_height_width,
    flatten_boxes,
    park_unusable,
    quantise_boxes,
)

# Of one cell of all bins; about eight such tensors live at a time.
_CHUNK_BYTES = 8 * 2**20


def roi_pool(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """As :func:`detector.ops.roi_pool.roi_pool`."""
    boxes, image_index = flatten_boxes(features, boxes)
    size = as_height_width(output_size)
    return pool_rois(features, boxes * spatial_scale, image_index, *size, mode)[0]


def pool_rois(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    pooled_height: int,
    pooled_width: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """As :func:`detector.ops.roi_pool.pool_rois`, whose docstring has the meaning."""
    channels = features.shape[1]
    dtype = torch.promote_types(features.dtype, torch.float32)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    bins = (pooled_height, pooled_width)
    pooled, argmaxes = [], []
    for rois in _chunks(boxes, channels * pooled_height * pooled_width):
        shape = (len(boxes[rois]), *bins, channels)
        visits = _visits(features.shape, boxes[rois], image_index[rois], bins)
        count = torch.zeros((*shape[:-1], 1), dtype=dtype, device=features.device)
        value = torch.zeros(shape, dtype=dtype, device=features.device)
        if mode == "avg":
            for row, _, inside in visits:
                inside = inside[..., None]
                value = value + torch.where(inside, table[row], 0.0)
                count = count + inside
            pooled.append(value / count.clamp(min=1))
            continue
        value.fill_(torch.finfo(dtype).min)
        argmax = torch.full(shape, -1, dtype=torch.int32, device=features.device)
        for row, cell, inside in visits:
            inside, found = inside[..., None], table[row].to(dtype)
            larger = inside & (found > value)  # never a NaN
            value = torch.where(larger, found, value)
            argmax = torch.where(larger, cell[..., None], argmax)
            count = count + inside
        pooled.append(torch.where(count > 0, value, 0.0))
        argmaxes.append(argmax)
    pooled = torch.cat(pooled).to(features.dtype).permute(0, 3, 1, 2)
    if mode == "avg":
        return pooled, image_index.new_empty(0, dtype=torch.int32)
    return pooled, torch.cat(argmaxes).permute(0, 3, 1, 2)


def pool_rois_backward(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    mode: str,
) -> Tensor:
    """As :func:`detector.ops.roi_pool.pool_rois_backward`."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    bins, shape = grad.shape[2:], (batch, channels, height, width)
    if mode == "max":
        result = torch.zeros(batch * channels * height * width, dtype=dtype, device=grad.device)
        known = (image_index >= 0) & (image_index < batch)
        # An argmax is a cell of its own channel's map.
        plane = torch.where(known, image_index, 0)[:, None] * channels
        plane = plane + torch.arange(channels, device=grad.device)
        offset = plane[:, :, None, None] * (height * width) + argmax.clamp(min=0)
        share = torch.where((argmax >= 0) & known[:, None, None, None], grad.to(dtype), 0.0)
        if batch:
            result.index_add_(0, offset.flatten(), share.flatten())
        return result.view(shape).to(grad.dtype)
    table = torch.zeros((batch * height * width, channels), dtype=dtype, device=grad.device)
    for rois in _chunks(boxes, channels * bins[0] * bins[1]):
        top, bottom, left, right = _bounds(shape, boxes[rois], image_index[rois], bins)
        count = (bottom - top)[:, :, None] * (right - left)[:, None, :]
        share = grad[rois].permute(0, 2, 3, 1).to(dtype) / count.clamp(min=1)[..., None]
        for row, _, inside in _visits(shape, boxes[rois], image_index[rois], bins):
            own = torch.where(inside[..., None], share, 0.0)
            table.index_add_(0, row.flatten(), own.flatten(0, 2))
    return table.view(batch, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)


def _chunks(boxes: Tensor, row_elements: int) -> Iterator[slice]:
    """Ranges of RoIs that need bounded memory; one empty range where there are no RoIs."""
    size = max(1, _CHUNK_BYTES // (8 * row_elements))
    for first in range(0, max(1, len(boxes)), size):
        yield slice(first, first + size)


def _bounds(
    shape: Sequence[int], boxes: Tensor, image_index: Tensor, bins: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and end row ``(n, ph)``, first and end column ``(n, pw)`` of the bins, on the map."""
    batch, _, height, width = shape
    cells = quantise_boxes(park_unusable(boxes, image_index, batch)[0])
    first = cells[:, :2]
    size = cells[:, 2:] - first + 1
    bounds = []
    for axis, limit, num_bins in ((1, height, bins[0]), (0, width, bins[1])):
        edge = torch.arange(num_bins + 1, device=boxes.device, dtype=boxes.dtype)
        # Not a Python number: CUDA divides by one as a product with its reciprocal.
        own = size[:, axis]
        edges = edge * (own / torch.full_like(own, num_bins))[:, None]
        start = first[:, axis, None]
        bounds.append((start + edges[:, :-1].floor()).clamp(0, limit).long())
        bounds.append((start + edges[:, 1:].ceil()).clamp(0, limit).long())
    return tuple(bounds)


def _visits(
    shape: Sequence[int], boxes: Tensor, image_index: Tensor, bins: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One cell of every bin after another, row by row.

    Yields:
        Row of the table of all cells, int64; cell of the map, int32; whether the bin has it. All
        ``(n, ph, pw)``.
    """
    batch, _, height, width = shape
    if not batch or not len(boxes):
        return
    top, bottom, left, right = _bounds(shape, boxes, image_index, bins)
    image = park_unusable(boxes, image_index, batch)[1]
    for down in range(max(int((bottom - top).max()), 0)):
        y = top + down
        for across in range(max(int((right - left).max()), 0)):
            x = left + across
            inside = (y < bottom)[:, :, None] & (x < right)[:, None, :]
            cell = torch.where(inside, y[:, :, None] * width + x[:, None, :], 0)
            yield image[:, None, None] * (height * width) + cell, cell.int(), inside
