"""Pooling of bilinear samples in every layout, mode and number of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.cuda import roi_align
from detector.ops.cuda.levels import level_arguments, num_tiles, order_by_map
from detector.ops.cuda.runtime import SCALARS, Kernel, launch
from detector.ops.rois import memory_format_of

_SOURCE = "sampled_pooling.cu"
_BLOCK = 256
_GATHER_BLOCK = 128
# Enough threads for any card; each takes as many elements as are left.
_MAX_BLOCKS = 2**20

# What the kernels of roi_align.cu are for.
_PLAIN_AVERAGE = (torch.channels_last, "clamp", "avg")


def _kernel(name: str, dtype: torch.dtype, channels_last: bool, border: str, mode: str) -> Kernel:
    macros = {
        "SCALAR": SCALARS[dtype],
        "CHANNELS_LAST": int(channels_last),
        "MAX_POOL": int(mode == "max"),
    }
    if border == "zero":
        macros["BORDER_ZERO"] = 1
    return Kernel.of(_SOURCE, name, **macros)


def specialisations() -> list[Kernel]:
    """RoIAlign of either mode, crop-and-resize and RoI warping in the usual precisions."""
    return [
        _kernel("pool_samples_forward", dtype, channels_last, border, mode)
        for dtype, channels_last in (
            (torch.float32, False),
            (torch.float32, True),
            (torch.bfloat16, True),
        )
        for border, mode in (("clamp", "avg"), ("clamp", "max"), ("zero", "avg"), ("zero", "max"))
    ]


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
    """As :func:`detector.ops.sampled_pooling.pool_samples`."""
    image_index, grid = image_index.contiguous(), grid.contiguous()
    layout = memory_format_of(features)
    features = features.contiguous(memory_format=layout)
    if (layout, border, mode) == _PLAIN_AVERAGE and roi_align.fits(
        features.dtype, 1, features.shape[1], pooled_height, pooled_width, max_samples
    ):
        pooled = roi_align.forward([features], image_index, None, grid, pooled_height, max_samples)
        return pooled, image_index.new_empty(0, dtype=torch.int32)
    return forward(
        [features],
        image_index,
        None,
        grid,
        samples.contiguous(),
        pooled_height,
        pooled_width,
        0,
        border,
        mode,
    )


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
    channels_last: bool,
) -> Tensor:
    """As :func:`detector.ops.sampled_pooling.pool_samples_backward`."""
    image_index, grid = image_index.contiguous(), grid.contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [(height, width)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    if (layout, border, mode) == _PLAIN_AVERAGE and roi_align.fits(
        grad.dtype, 1, channels, *grad.shape[2:], max_samples
    ):
        maps = roi_align.backward(
            grad, sizes, batch, image_index, None, grid, max_samples, deterministic
        )
    else:
        maps = backward(
            grad,
            argmax,
            sizes,
            batch,
            image_index,
            None,
            grid,
            samples.contiguous(),
            0,
            border,
            mode,
            layout,
            deterministic,
        )
    return maps[0]


def forward(
    maps: Sequence[Tensor],
    image_index: Tensor,
    level_index: Tensor | None,
    grid: Tensor,
    counts: Tensor | None,
    pooled_height: int,
    pooled_width: int,
    fixed_count: int,
    border: str,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Pool from L maps ``(B, C, H_l, W_l)`` of one dense layout.

    Args:
        level_index: ``(N,)`` int32, negative for RoIs that pool nothing; ``None``: one level.
        counts: ``(N, 2)`` int32 samples per cell along (x, y); ``None``: ``fixed_count`` for all.

    Returns:
        ``(N, C, ph, pw)`` in the layout of the maps, and for ``"max"`` the same of int32 sample
        numbers, else empty.
    """
    layout = memory_format_of(maps[0])
    batch, channels = maps[0].shape[:2]
    output = torch.empty(
        (len(grid), channels, pooled_height, pooled_width),
        dtype=maps[0].dtype,
        device=maps[0].device,
        memory_format=layout,
    )
    argmax = (
        torch.empty_like(output, dtype=torch.int32, memory_format=layout)
        if mode == "max"
        else image_index.new_empty(0, dtype=torch.int32)
    )
    launch(
        _kernel("pool_samples_forward", maps[0].dtype, layout == torch.channels_last, border, mode),
        min(-(-output.numel() // _BLOCK), _MAX_BLOCKS),
        _BLOCK,
        *level_arguments(maps),
        image_index,
        level_index,
        grid,
        counts,
        output,
        argmax,
        len(grid),
        batch,
        channels,
        pooled_height,
        pooled_width,
        fixed_count,
    )
    return output, argmax


def backward(
    grad: Tensor,
    argmax: Tensor,
    sizes: Sequence[tuple[int, int]],
    batch: int,
    image_index: Tensor,
    level_index: Tensor | None,
    grid: Tensor,
    counts: Tensor | None,
    fixed_count: int,
    border: str,
    mode: str,
    layout: torch.memory_format,
    deterministic: bool,
) -> list[Tensor]:
    """Gradients of L maps of these ``sizes`` (H_l, W_l), in ``layout``; see :func:`forward`."""
    num_rois, channels, pooled_height, pooled_width = grad.shape
    channels_last = layout == torch.channels_last
    grad = grad.contiguous(memory_format=layout)
    if mode == "max":
        argmax = argmax.contiguous(memory_format=layout)
    sum_dtype = torch.promote_types(grad.dtype, torch.float32)
    maps = [
        torch.empty(
            (batch, channels, *size),
            dtype=grad.dtype if deterministic else sum_dtype,
            device=grad.device,
            memory_format=layout,
        )
        for size in sizes
    ]
    name = "pool_samples_backward_gather" if deterministic else "pool_samples_backward"
    kernel = _kernel(name, grad.dtype, channels_last, border, mode)
    pooled = (channels, pooled_height, pooled_width, fixed_count)
    if deterministic:
        order, segments = order_by_map(image_index, level_index, batch, len(sizes))
        tile_width = 8 if sum_dtype == torch.float64 else 16
        launch(
            kernel,
            (num_tiles(maps, 4, tile_width), -(-channels // _GATHER_BLOCK)),
            _GATHER_BLOCK,
            *level_arguments(maps),
            grad,
            argmax,
            grid,
            counts,
            order,
            segments,
            batch,
            len(sizes),
            *pooled,
        )
        return maps
    for level in maps:
        level.zero_()
    launch(
        kernel,
        min(-(-grad.numel() // _BLOCK), _MAX_BLOCKS),
        _BLOCK,
        *level_arguments(maps),
        grad,
        argmax,
        image_index,
        level_index,
        grid,
        counts,
        num_rois,
        batch,
        *pooled,
    )
    return [level.to(grad.dtype) for level in maps]
