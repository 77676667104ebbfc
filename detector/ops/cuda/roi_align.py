"""Average RoIAlign of channels_last maps on any number of levels, with fixed samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.cuda.levels import MAX_LEVELS, level_arguments, num_tiles, order_by_map
from detector.ops.cuda.runtime import SCALARS, Kernel, launch

_SOURCE = "roi_align.cu"
_BLOCK = 256
_TILE = 8
_LANES = 32

# Beyond these the weights of a RoI outgrow the shared memory of a block.
_MAX_SAMPLES = 4
_MAX_POOLED = 14


def _vector(dtype: torch.dtype) -> int:
    """Channels that fill 16 bytes."""
    return 16 // dtype.itemsize


def _kernel(name: str, dtype: torch.dtype, pooled: int, samples: int) -> Kernel:
    return Kernel.of(
        _SOURCE,
        name,
        SCALAR=SCALARS[dtype],
        POOLED=pooled,
        SAMPLES=samples,
        VECTOR=_vector(dtype),
    )


def specialisations() -> list[Kernel]:
    """What the shipped configurations use."""
    return [
        Kernel.of("levels.cu", "roi_align_geometry", SCALAR="float"),
        Kernel.of("levels.cu", "roi_align_geometry", SCALAR="double"),
    ] + [
        _kernel("roi_align_forward", dtype, pooled, 2)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for pooled in (7, 14)
    ]


def fits(
    dtype: torch.dtype,
    num_levels: int,
    channels: int,
    pooled_height: int,
    pooled_width: int,
    samples: int,
) -> bool:
    """Whether these kernels can do it; :mod:`detector.ops.cuda.sampled_pooling` does the rest."""
    return (
        num_levels <= MAX_LEVELS
        and pooled_height == pooled_width <= _MAX_POOLED
        and 1 <= samples <= _MAX_SAMPLES
        and channels % _vector(dtype) == 0
    )


def geometry(
    dtype: torch.dtype,
    num_images: int,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    num_samples: int,
    aligned: bool,
    min_level: int,
    canonical_level: int,
    canonical_size: float,
) -> tuple[Tensor, Tensor]:
    """Sample grid and level of each RoI, in one launch.

    Args:
        dtype: of the features.
        num_images: B.
        boxes: ``(N, 4)`` in input pixels, float32 (float64 with float64 features).
        image_index: ``(N,)`` int64.
        valid: ``(N,)`` bool or ``None``.
        scales: L cells per input pixel.
        num_samples: of a RoI along an axis.

    Returns:
        ``(N, 4)`` (start_x, start_y, step_x, step_y) in the dtype of the boxes and ``(N,)`` int32
        levels, -1 for RoIs that are invalid, not finite or of no image.
    """
    num_rois = len(boxes)
    grid = boxes.new_empty(num_rois, 4)
    level_index = torch.empty(num_rois, dtype=torch.int32, device=boxes.device)
    scalar = "double" if dtype == torch.float64 else "float"
    launch(
        Kernel.of("levels.cu", "roi_align_geometry", SCALAR=scalar),
        -(-num_rois // _BLOCK),
        _BLOCK,
        boxes.contiguous(),
        image_index.contiguous(),
        None if valid is None else valid.contiguous(),
        grid,
        level_index,
        num_rois,
        num_images,
        len(scales),
        *map(float, scales),
        *[1.0] * (MAX_LEVELS - len(scales)),
        min_level,
        canonical_level,
        float(canonical_size),
        num_samples,
        int(aligned),
    )
    return grid, level_index


def forward(
    maps: Sequence[Tensor],
    image_index: Tensor,
    level_index: Tensor | None,
    grid: Tensor,
    pooled: int,
    samples: int,
) -> Tensor:
    """``(N, C, pooled, pooled)`` from L maps, all channels_last, of what :func:`fits`."""
    batch, channels = maps[0].shape[:2]
    maps = [_aligned(level) for level in maps]
    output = torch.empty(
        (len(grid), channels, pooled, pooled),
        dtype=maps[0].dtype,
        device=maps[0].device,
        memory_format=torch.channels_last,
    )
    launch(
        _kernel("roi_align_forward", maps[0].dtype, pooled, samples),
        len(grid),
        _BLOCK,
        *level_arguments(maps),
        image_index,
        level_index,
        grid,
        output,
        batch,
        channels,
    )
    return output


def backward(
    grad: Tensor,
    sizes: Sequence[tuple[int, int]],
    batch: int,
    image_index: Tensor,
    level_index: Tensor | None,
    grid: Tensor,
    samples: int,
    deterministic: bool,
) -> list[Tensor]:
    """Gradients ``(B, C, H_l, W_l)`` channels_last of L maps of these ``sizes`` (H_l, W_l).

    Args:
        grad: ``(N, C, pooled, pooled)``.
        deterministic: sum in the RoIs' order, without atomics.
    """
    channels, pooled = grad.shape[1:3]
    grad = _aligned(grad.contiguous(memory_format=torch.channels_last))
    if deterministic:
        maps = _empty_maps(grad, batch, channels, sizes, grad.dtype)
        order, segments = order_by_map(image_index, level_index, batch, len(sizes))
        launch(
            _kernel("roi_align_backward_gather", grad.dtype, pooled, samples),
            (num_tiles(maps, _TILE, _TILE), -(-channels // (_vector(grad.dtype) * _LANES))),
            _BLOCK,
            *level_arguments(maps),
            grad,
            grid,
            order,
            segments,
            batch,
            len(sizes),
            channels,
        )
        return maps
    sum_dtype = torch.promote_types(grad.dtype, torch.float32)
    maps = [level.zero_() for level in _empty_maps(grad, batch, channels, sizes, sum_dtype)]
    launch(
        _kernel("roi_align_backward", grad.dtype, pooled, samples),
        len(grid),
        _BLOCK,
        *level_arguments(maps),
        grad,
        image_index,
        level_index,
        grid,
        batch,
        channels,
    )
    return [level.to(grad.dtype) for level in maps]


def _aligned(tensor: Tensor) -> Tensor:
    """16-byte reads need a 16-byte address, which a slice of a larger tensor may not have."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _empty_maps(
    like: Tensor, batch: int, channels: int, sizes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> list[Tensor]:
    return [
        torch.empty(
            (batch, channels, *size),
            dtype=dtype,
            device=like.device,
            memory_format=torch.channels_last,
        )
        for size in sizes
    ]
