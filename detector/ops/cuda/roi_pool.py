"""Launches the kernels of ``roi_pool.cu``."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda.runtime import MAX_GRID_Y, SCALARS, Kernel, launch
from detector.ops.rois import memory_format_of

SOURCE = "roi_pool.cu"
_BLOCK = 256
_WARPS = _BLOCK // 32

# Outputs a warp (or, in contiguous maps, a thread) takes: enough to pay for reading its RoI, few
# enough to fill the card with few RoIs.
_OUTPUTS_EACH = 2

# The tile that a block of the gathering backward owns, and its channels: its sums fill at most
# 33 KiB of the 48 that every card has. float64 has half the rows.
_TILE = 8
_MAX_CHANNELS = 128


def roi_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    pooled_height: int,
    pooled_width: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """As :func:`detector.ops.roi_pool.pool_rois`."""
    layout = memory_format_of(features)
    features = features.contiguous(memory_format=layout)
    batch, channels, height, width = features.shape
    shape = (len(boxes), channels, pooled_height, pooled_width)
    pooled = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=layout)
    argmax = torch.empty(0, dtype=torch.int32, device=features.device)
    if mode == "max":
        argmax = torch.empty_like(pooled, dtype=torch.int32, memory_format=layout)
    macros = _macros(features, mode, layout)
    outputs = pooled_height * pooled_width * channels
    assert outputs < 2**30, f"one RoI has {outputs} outputs, which the kernels count in 32 bits"
    if layout == torch.channels_last:
        kernel = Kernel.of(SOURCE, "roi_pool_forward_nhwc", **macros)
        slabs = -(-channels // (32 * macros["VECTOR"]))
        groups = -(-pooled_height * pooled_width * slabs // (_WARPS * _OUTPUTS_EACH))
    else:
        kernel = Kernel.of(SOURCE, "roi_pool_forward_nchw", **macros)
        groups = -(-outputs // (_BLOCK * _OUTPUTS_EACH))
    launch(
        kernel,
        (len(boxes), min(groups, MAX_GRID_Y)),
        _BLOCK,
        features,
        boxes.contiguous(),
        image_index.contiguous(),
        pooled,
        argmax if mode == "max" else None,
        batch,
        channels,
        height,
        width,
        pooled_height,
        pooled_width,
    )
    return pooled, argmax


def roi_pool_backward(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    mode: str,
    channels_last: bool,
) -> Tensor:
    """As :func:`detector.ops.roi_pool.pool_rois_backward`.

    With ``torch.use_deterministic_algorithms(True)`` each gradient is summed by one thread in the
    order of the RoIs, otherwise by atomics in the order they come.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grad = grad.contiguous(memory_format=layout)
    argmax = argmax.contiguous(memory_format=layout) if mode == "max" else None
    boxes, image_index = boxes.contiguous(), image_index.contiguous()
    shape = (batch, channels, height, width)
    num_rois, _, pooled_height, pooled_width = grad.shape
    macros = _macros(grad, mode, layout)
    if not torch.are_deterministic_algorithms_enabled():
        result = torch.empty(shape, dtype=boxes.dtype, device=grad.device, memory_format=layout)
        result.zero_()
        outputs = channels * pooled_height * pooled_width
        groups = -(-outputs // (_BLOCK * _OUTPUTS_EACH))
        launch(
            Kernel.of(SOURCE, "roi_pool_backward_atomic", **macros),
            (num_rois, min(groups, MAX_GRID_Y)),
            _BLOCK,
            grad,
            argmax,
            boxes,
            image_index,
            result,
            batch,
            channels,
            height,
            width,
            pooled_height,
            pooled_width,
        )
        return result.to(grad.dtype)
    result = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    threads = min(-(-channels // 32) * 32, _MAX_CHANNELS)
    tile_height = min(height, _TILE * 4 // boxes.element_size())
    tile_width = min(width, _TILE)
    sums = tile_height * tile_width * (threads + 1) * boxes.element_size()
    tiles = -(-height // tile_height) * -(-width // tile_width)
    launch(
        Kernel.of(SOURCE, "roi_pool_backward_gather", **macros),
        (batch * tiles, -(-channels // threads)),
        threads,
        grad,
        argmax,
        boxes,
        image_index,
        result,
        num_rois,
        batch,
        channels,
        height,
        width,
        pooled_height,
        pooled_width,
        tile_height,
        tile_width,
        shared_bytes=-(-sums // 16) * 16 + 8 * threads + 4 * (threads // 32),
    )
    return result


def _macros(tensor: Tensor, mode: str, layout: torch.memory_format) -> dict[str, object]:
    """The same for both directions, which so are compiled together."""
    channels_last = layout == torch.channels_last
    # Channels that fill 16 bytes, where they lie at multiples of 16 bytes.
    vector = 16 // tensor.element_size()
    aligned = tensor.data_ptr() % 16 == 0 and tensor.shape[1] % vector == 0
    return {
        "SCALAR": SCALARS[tensor.dtype],
        "MAX": int(mode == "max"),
        "CHANNELS_LAST": int(channels_last),
        "VECTOR": vector if channels_last and aligned else 1,
    }


def specialisations() -> list[Kernel]:
    """The kernels of common settings."""
    kernels = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for largest in (1, 0):
            for channels_last in (1, 0):
                macros = {
                    "SCALAR": SCALARS[dtype],
                    "MAX": largest,
                    "CHANNELS_LAST": channels_last,
                    "VECTOR": 16 // dtype.itemsize if channels_last else 1,
                }
                forward = "roi_pool_forward_nhwc" if channels_last else "roi_pool_forward_nchw"
                for name in (forward, "roi_pool_backward_atomic", "roi_pool_backward_gather"):
                    kernels.append(Kernel.of(SOURCE, name, **macros))
    return kernels
