"""Bilinear samples of RoIs, pooled: the reference of :mod:`detector.ops.sampled_pooling`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Of the values of one sample of all cells; about eight such tensors live at a time.
_CHUNK_BYTES = 8 * 2**20


def pool_samples(
    features: Tensor,
    image_index: Tensor,
    grid: Tensor,
    samples: Tensor,
    pooled_height: int,
    pooled_width: int,
    max_samples: int,
    border: str,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """As :func:`detector.ops.sampled_pooling.pool_samples`, whose docstring has the meaning."""
    channels = features.shape[1]
    dtype = torch.promote_types(features.dtype, torch.float32)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    cells = (pooled_height, pooled_width)
    pooled, argmaxes = [], []
    for rois in _chunks(image_index, samples, channels * pooled_height * pooled_width):
        shape = (len(image_index[rois]), *cells, channels)
        total = torch.zeros(shape, dtype=dtype, device=features.device)
        best = torch.full_like(total, -torch.inf)
        argmax = torch.full(shape, -1, dtype=torch.int32, device=features.device)
        num_samples = samples[rois].clamp(min=0).prod(1)[:, None, None, None]
        num_inside = torch.zeros((*shape[:-1], 1), dtype=torch.int64, device=features.device)
        visits = _visits(
            features.shape, image_index, grid, samples, rois, cells, max_samples, border
        )
        for number, inside, taps in visits:
            value = sum(table[row].to(dtype) * weight[..., None] for row, weight in taps)
            value = torch.where(inside[..., None], value, 0.0)
            total = total + value
            num_inside += inside[..., None]
            # NaN is larger than everything, so that it is not hidden.
            larger = inside[..., None] & ((value > best) | value.isnan() | (argmax < 0))
            larger &= ~best.isnan()
            best = torch.where(larger, value, best)
            argmax = torch.where(larger, number[..., None], argmax)
        if mode == "avg":
            pooled.append(total / num_samples.clamp(min=1))
        else:
            # Samples outside are zeros.
            outside = (num_inside < num_samples) & ~(best >= 0) & ~best.isnan()
            nothing = outside | (num_inside == 0)
            pooled.append(torch.where(nothing, 0.0, best))
            argmaxes.append(torch.where(nothing, -1, argmax))
    pooled = torch.cat(pooled).to(features.dtype).permute(0, 3, 1, 2)
    if mode == "avg":
        return pooled, image_index.new_empty(0, dtype=torch.int32)
    return pooled, torch.cat(argmaxes).permute(0, 3, 1, 2)


def pool_samples_backward(
    grad: Tensor,
    argmax: Tensor,
    image_index: Tensor,
    grid: Tensor,
    samples: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    max_samples: int,
    border: str,
    mode: str,
) -> Tensor:
    """As :func:`detector.ops.sampled_pooling.pool_samples_backward`."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    table = torch.zeros((batch * height * width, channels), dtype=dtype, device=grad.device)
    cells = (grad.shape[2], grad.shape[3])
    shape = (batch, channels, height, width)
    for rois in _chunks(image_index, samples, channels * cells[0] * cells[1]):
        of_cells = grad[rois].permute(0, 2, 3, 1).to(dtype)
        if mode == "avg":
            count = samples[rois].clamp(min=0).prod(1).clamp(min=1)
            of_cells = of_cells / count[:, None, None, None]
        visits = _visits(shape, image_index, grid, samples, rois, cells, max_samples, border)
        for number, inside, taps in visits:
            of_sample = torch.where(inside[..., None], of_cells, 0.0)
            if mode == "max":
                largest = argmax[rois].permute(0, 2, 3, 1) == number[..., None]
                of_sample = torch.where(largest, of_sample, 0.0)
            for row, weight in taps:
                share = (of_sample * weight[..., None]).flatten(0, 2)
                table.index_add_(0, row.flatten(), share)
    return table.view(batch, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)


def _chunks(image_index: Tensor, samples: Tensor, row_elements: int) -> Iterator[slice]:
    """Ranges of RoIs that need bounded memory; one empty range where there are no RoIs."""
    size = max(1, _CHUNK_BYTES // (8 * max(1, row_elements)))
    for first in range(0, max(1, len(image_index)), size):
        yield slice(first, first + size)


def _visits(
    shape: tuple[int, ...],
    image_index: Tensor,
    grid: Tensor,
    samples: Tensor,
    rois: slice,
    cells: tuple[int, int],
    max_samples: int,
    border: str,
) -> Iterator[tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]]:
    """One sample of every cell of some RoIs after another, row by row.

    Yields:
        The sample's number in its cell, int32; whether it is on the map; the four table rows it
        reads with their weights. All ``(n, ph, pw)``.
    """
    batch, _, height, width = shape
    index, grid, samples = image_index[rois], grid[rois], samples[rois]
    if not batch or not len(index):
        return
    known = (index >= 0) & (index < batch)
    x_axis = _Axis(grid[:, 0], grid[:, 2], samples[:, 0], cells[1], width, max_samples, border)
    y_axis = _Axis(grid[:, 1], grid[:, 3], samples[:, 1], cells[0], height, max_samples, border)
    first_row = torch.where(known, index, 0)[:, None, None] * (height * width)
    for y_step in range(y_axis.num_visited):
        y_number, y_inside, y_taps = y_axis.sample(y_step)
        for x_step in range(x_axis.num_visited):
            x_number, x_inside, x_taps = x_axis.sample(x_step)
            number = y_number[:, :, None] * samples[:, 0, None, None] + x_number[:, None, :]
            inside = y_inside[:, :, None] & x_inside[:, None, :] & known[:, None, None]
            taps = [
                (
                    first_row + y[:, :, None] * width + x[:, None, :],
                    y_weight[:, :, None] * x_weight[:, None, :],
                )
                for y, y_weight in y_taps
                for x, x_weight in x_taps
            ]
            yield number.int(), inside, taps


class _Axis:
    """The samples of one axis of some RoIs: what each cell visits, in order."""

    def __init__(
        self,
        start: Tensor,
        step: Tensor,
        samples: Tensor,
        num_cells: int,
        size: int,
        max_samples: int,
        border: str,
    ) -> None:
        self.start, self.step = start[:, None], step[:, None]
        self.samples, self.size = samples[:, None].clamp(min=0), size
        self.lowest, self.highest = (-1, size) if border == "clamp" else (0, size - 1)
        cell = torch.arange(num_cells, device=start.device)
        self.first = cell * self.samples  # (n, cells)
        self.num_visited = max_samples or int(samples.max().clamp(min=0))
        self.skipped = torch.zeros_like(self.first)
        # Adaptive steps are longer than half a cell, so that no more samples than these are on
        # the map; a RoI far larger than the map has far more.
        most = 2 * size + 8
        if not max_samples and self.num_visited > most:
            entry = (self.lowest - self.start) / self.step - self.first - 2
            entry = torch.where(entry.isnan(), 0.0, entry)
            self.skipped = torch.minimum(
                entry.clamp(0, self.num_visited).long(), (self.samples - most).clamp(min=0)
            )
            self.num_visited = most

    def sample(self, step: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Number in its cell, whether it is on the map, and the two cells with their weights."""
        number = self.skipped + step
        position = self.start + (self.first + number).to(self.start.dtype) * self.step
        inside = (number < self.samples) & (position >= self.lowest) & (position <= self.highest)
        position = torch.where(inside, position, 0.0).clamp(0, self.size - 1)
        low = position.floor()
        fraction = position - low
        high = (low + 1).clamp(max=self.size - 1)
        return number, inside, [(low.long(), 1 - fraction), (high.long(), fraction)]
