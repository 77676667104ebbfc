"""Cases of the RoI ops: features, boxes and everything the boxes can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detector.ops import (
    crop_and_resize,
    roi_align,
    roi_pool,
    roi_warp,
    sampled_pooling,
    spatial_pyramid_pool,
)
from detector.ops.reference import crop_and_resize as reference_crop_and_resize
from detector.ops.reference import roi_align as reference_roi_align
from detector.ops.reference import roi_pool as reference_roi_pool
from detector.ops.reference import roi_warp as reference_roi_warp
from detector.ops.roi_align import align_samples
from detector.ops.roi_pool import pool_rois
from tests.ops.case import ALL_DTYPES, LAYOUTS, OpCase

SCALE = 0.25  # of the map to the picture, which is four times as large

# On a picture of 60 x 52 (map 15 x 13): ordinary, the whole picture, touching its end, over each
# border, wholly outside on either side, much larger than it, a point, less than a cell, a line,
# inverted, halves that rounding must carry outwards, and what is not finite.
BOXES = [
    [10.3, 7.7, 40.1, 33.9],
    [0, 0, 60, 52],
    [42, 30, 60, 52],
    [-9.5, -3.25, 20, 18],
    [45, 40, 90, 80],
    [200, 200, 260, 230],
    [-90, -80, -40, -50],
    [-50, -50, 200, 150],
    [0, 0, 0, 0],
    [33.01, 20.02, 33.03, 20.04],
    [33.3, 20, 33.3, 40],
    [40, 40, 30, 30],
    [2, 6, 22, 26],
    [-2, -6, 22, 26],
    [float("nan"), 3, 20, 30],
    [3, 3, float("inf"), 30],
]


def make_features(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, channels: int
) -> Tensor:
    """``(2, C, 13, 15)`` of numbers that every dtype holds, all different in one channel.

    With this seed no two samples that compete for a maximum come nearer than rounding errors,
    so that every implementation finds it in the same place.
    """
    generator = torch.Generator().manual_seed(7)
    places = torch.stack([torch.randperm(195, generator=generator) for _ in range(2 * channels)])
    features = (places.view(2, channels, 13, 15) - 97) / 64
    return features.to(device, dtype).to(memory_format=layout)


def make_boxes(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``(N, 5)``, image and box."""
    boxes = torch.tensor(BOXES, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    images = torch.arange(len(boxes)) % 2
    return torch.cat((images[:, None].to(boxes), boxes), 1).to(device)


def _rows(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, channels: int = 16
) -> tuple[Any, ...]:
    return make_features(device, dtype, layout, channels), make_boxes(device, dtype)


def _lists(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Any, ...]:
    boxes = make_boxes(device, dtype)[:, 1:]
    return make_features(device, dtype, layout, 16), [boxes[3:], boxes[:0]]


def _normalised(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Any, ...]:
    features, boxes = _rows(device, dtype, layout)
    boxes = boxes / torch.tensor([1.0, 60, 52, 60, 52], dtype=boxes.dtype, device=device)
    return features, boxes


def _pool_samples(
    device: torch.device, border: str = "clamp", mode: str = "avg", ratio: int = 2
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The op of sampled pooling and its backward, for ``opcheck``."""
    calls = []
    for layout in LAYOUTS:
        features, boxes = _rows(device, torch.float32, layout, channels=8)
        # opcheck compares what two runs give, and NaN is like nothing.
        boxes = boxes[boxes.isfinite().all(1)]
        grid, samples = align_samples(boxes[:, 1:] * SCALE, (2, 3), ratio, True)
        index = boxes[:, 0].long()
        options = (max(ratio, 0), border, mode)
        where = (index, grid, samples)
        calls.append(
            (
                torch.ops.detector.pool_samples.default,
                (features.requires_grad_(), *where, 2, 3, *options),
            )
        )
        with torch.no_grad():
            pooled, argmax = sampled_pooling.pool_samples(features, *where, 2, 3, *options)
        last = layout == torch.channels_last
        arguments = (pooled, argmax, *where, *features.shape, *options, last)
        calls.append((torch.ops.detector.pool_samples_backward.default, arguments))
    return calls


_max_samples = partial(_pool_samples, mode="max")
_crop_samples = partial(_pool_samples, border="zero", ratio=1)


def _grids(device: torch.device) -> list[tuple[Any, tuple[Any, ...]]]:
    """The ops that place samples, for ``opcheck``."""
    ops, (features, boxes) = torch.ops.detector, _rows(device, torch.float32, LAYOUTS[0])
    cells = boxes[boxes.isfinite().all(1), 1:] * SCALE
    return [
        (ops.align_samples.default, (cells, (2, 3), 0, False)),
        (ops.crop_grid.default, (cells / 60, features.shape[2:], (4, 1))),
        (ops.warp_grid.default, (cells, (2, 3))),
    ]


def _pool_rois(device: torch.device, mode: str = "max") -> list[tuple[Any, tuple[Any, ...]]]:
    """The op of RoI pooling and its backward, for ``opcheck``."""
    calls = []
    for layout in LAYOUTS:
        features, boxes = _rows(device, torch.float32, layout, channels=8)
        boxes = boxes[boxes.isfinite().all(1)]
        where = (boxes[:, 1:] * SCALE, boxes[:, 0].long())
        calls.append(
            (
                torch.ops.detector.roi_pool.default,
                (features.requires_grad_(), *where, 2, 3, mode),
            )
        )
        with torch.no_grad():
            pooled, argmax = pool_rois(features, *where, 2, 3, mode)
        last = layout == torch.channels_last
        arguments = (pooled, argmax, *where, *features.shape, mode, last)
        calls.append((torch.ops.detector.roi_pool_backward.default, arguments))
    return calls


def _case(
    name: str,
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *options: Any,
    make: Callable[..., tuple[Any, ...]] = _rows,
    custom_ops: Callable[..., Any] | None = None,
    sums_rounded: bool = False,
) -> OpCase:
    return OpCase(
        name=name,
        make=make,
        op=lambda features, boxes: op(features, boxes, *options),
        reference=lambda features, boxes: reference(features, boxes, *options),
        gradients=(0,),
        dtypes=ALL_DTYPES,
        layouts=LAYOUTS,
        custom_ops=custom_ops,
        sums_rounded=sums_rounded,
    )


def _reference_pyramid(
    features: Tensor, boxes: Any, levels: tuple[int, ...], scale: float, mode: str
) -> Tensor:
    return torch.cat(
        [
            reference_roi_pool.roi_pool(features, boxes, level, scale, mode).flatten(1)
            for level in levels
        ],
        1,
    )


def _align(name: str, *options: Any, **named: Any) -> OpCase:
    return _case(name, roi_align, reference_roi_align.roi_align, *options, **named)


def _pool(name: str, *options: Any, **named: Any) -> OpCase:
    return _case(name, roi_pool, reference_roi_pool.roi_pool, *options, **named)


def _warp(name: str, *options: Any, **named: Any) -> OpCase:
    return _case(name, roi_warp, reference_roi_warp.roi_warp, *options, **named)


def _crop(name: str, *options: Any, **named: Any) -> OpCase:
    op, reference = crop_and_resize, reference_crop_and_resize.crop_and_resize
    return _case(name, op, reference, *options, make=_normalised, **named)


CASES = [
    _align("roi_align", 7, SCALE, 2, True, custom_ops=_pool_samples),
    _align("roi_align_unaligned", (2, 5), SCALE, 3, False),
    _align("roi_align_adaptive", 3, SCALE, 0, False, custom_ops=partial(_pool_samples, ratio=0)),
    _align("roi_align_adaptive_aligned", 3, SCALE, -1, True),
    _align("roi_align_max", 3, SCALE, 2, True, "max", custom_ops=_max_samples),
    _align("roi_align_adaptive_max", 2, SCALE, 0, False, "max"),
    _align("roi_align_of_lists", 3, SCALE, 2, True, make=_lists),
    _align("roi_align_odd_channels", 3, SCALE, 2, True, make=partial(_rows, channels=5)),
    _crop("crop_and_resize", (4, 3), custom_ops=_crop_samples),
    _crop("crop_and_resize_to_one_cell", 1),
    _warp("roi_warp", 3, SCALE, custom_ops=_grids),
    _warp("roi_warp_avg", (1, 4), SCALE, "avg"),
    _pool("roi_pool", 7, SCALE, custom_ops=_pool_rois),
    _pool("roi_pool_avg", (2, 5), SCALE, "avg", custom_ops=partial(_pool_rois, mode="avg")),
    _pool("roi_pool_of_lists", 3, SCALE, make=_lists),
    _pool("roi_pool_odd_channels", 2, SCALE, make=partial(_rows, channels=5)),
    _pool("roi_pool_avg_odd_channels", 3, SCALE, "avg", make=partial(_rows, channels=3)),
    _case(
        "spatial_pyramid_pool",
        spatial_pyramid_pool,
        _reference_pyramid,
        (1, 2, 3),
        SCALE,
        "max",
        sums_rounded=True,  # the grids' gradients are added up by autograd
    ),
]
