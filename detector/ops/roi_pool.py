"""RoI pooling (Fast R-CNN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision  # noqa: F401, registers torch.ops.torchvision
from torch import Tensor

from detector.ops.cuda import roi_pool as kernels
from detector.ops.cuda import runtime
from detector.ops.reference import roi_pool as reference
from detector.ops.rois import (
    as_height_width,
    check_mode,
    check_scale,
    flatten_boxes,
    memory_format_of,
    park_unusable,
    quantise_boxes,
)


def roi_pool(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """RoI pooling ("Fast R-CNN", section 2.1): bins of whole cells, the largest or the mean.

    The corners are rounded to cells, halves away from zero, and both belong to the RoI, which so
    is at least one cell wide. Bin i of P runs from cell ``floor(i * size / P)`` to
    ``ceil((i + 1) * size / P) - 1`` of it, so that neighbours may share a cell. A bin outside the
    map is 0, one across its border has fewer cells. Equals ``torchvision.ops.roi_pool`` for
    ``mode="max"``, where NaN is never the largest.

    A box that is not finite gives zeros and no gradient. Boxes get no gradient.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64; H*W below 2^31.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``.
        output_size: bins of the output, one number or (height, width).
        spatial_scale: cells of the feature map per unit of the boxes.
        mode: ``"max"`` (of equal cells the first, row by row, gets the gradient) or ``"avg"``.

    Returns:
        ``(N, C, height, width)`` in the dtype and memory format of the features.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
    """
    check_mode(mode)
    check_scale(spatial_scale)
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    return pool_rois(features, boxes * spatial_scale, image_index, height, width, mode)[0]


@torch.library.custom_op("detector::roi_pool", mutates_args=())
def pool_rois(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    pooled_height: int,
    pooled_width: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """:func:`roi_pool` of boxes in cells of the map, which also says where the largest lie.

    Args:
        features: ``(B, C, H, W)``.
        boxes: ``(N, 4)`` float32, float64 with float64 features.
        image_index: ``(N,)`` int64; what is no image of the batch gives zeros.
        pooled_height: rows of the output.
        pooled_width: columns of the output.
        mode: ``"max"`` or ``"avg"``.

    Returns:
        Pooled ``(N, C, ph, pw)`` in the dtype and memory format of the features. For ``"max"``,
        int32 of the same shape and format: the cell ``y * W + x`` the value comes from, or -1;
        for ``"avg"``, empty ``(0,)`` int32.
    """
    return _slower_pool(features, boxes, image_index, pooled_height, pooled_width, mode)


@pool_rois.register_fake
def _(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    pooled_height: int,
    pooled_width: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], features.shape[1], pooled_height, pooled_width)
    layout = memory_format_of(features)
    pooled = features.new_empty(shape).contiguous(memory_format=layout)
    if mode == "max":
        return pooled, torch.empty_like(pooled, dtype=torch.int32, memory_format=layout)
    return pooled, features.new_empty(0, dtype=torch.int32)


def _slower_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    pooled_height: int,
    pooled_width: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    assert features.shape[2] * features.shape[3] < 2**31, f"a map of {tuple(features.shape[2:])}"
    layout = memory_format_of(features)
    if mode == "avg" or not features.shape[0]:
        pooled, argmax = reference.pool_rois(
            features, boxes, image_index, pooled_height, pooled_width, mode
        )
    else:
        pooled, argmax = torch.ops.torchvision.roi_pool(
            features.to(boxes.dtype),
            _torchvision_rois(boxes, image_index, features.shape[0]),
            1.0,
            pooled_height,
            pooled_width,
        )
        pooled = pooled.to(features.dtype)
    if mode == "max":
        argmax = argmax.contiguous(memory_format=layout)
    return pooled.contiguous(memory_format=layout), argmax


pool_rois.register_kernel("cuda")(runtime.or_else(kernels.roi_pool, _slower_pool))


def _torchvision_rois(boxes: Tensor, image_index: Tensor, batch: int) -> Tensor:
    """Rows of (image, corners) that are cells already: torchvision casts what it gets to int."""
    boxes, image_index = park_unusable(boxes, image_index, batch)
    return torch.cat((image_index[:, None].to(boxes), quantise_boxes(boxes)), 1)


@torch.library.custom_op("detector::roi_pool_backward", mutates_args=())
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
    channels_last: bool,
) -> Tensor:
    """Gradient of :func:`pool_rois` with respect to the features; shared cells sum theirs.

    Args:
        grad: ``(N, C, ph, pw)`` of any strides, in the dtype of the features.
        argmax: what the forward pass gave.
        boxes, image_index, mode: as in the forward pass.
        batch, channels, height, width: shape of the features.
        channels_last: memory format of the result.

    Returns:
        ``(B, C, H, W)`` in the dtype of ``grad``; sums are float32 for 16-bit gradients.
    """
    return _slower_backward(
        grad, argmax, boxes, image_index, batch, channels, height, width, mode, channels_last
    )


@pool_rois_backward.register_fake
def _(
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
    result = grad.new_empty((batch, channels, height, width))
    return result.contiguous(memory_format=_layout(channels_last))


def _slower_backward(
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
    shape = (batch, channels, height, width)
    # On a GPU torchvision's has atomics only.
    alike = not (grad.is_cuda and torch.are_deterministic_algorithms_enabled())
    if mode == "max" and batch and alike:
        result = torch.ops.torchvision._roi_pool_backward(
            grad.to(boxes.dtype),
            _torchvision_rois(boxes, image_index, batch),
            argmax.contiguous(),
            1.0,
            grad.shape[2],
            grad.shape[3],
            *shape,
        ).to(grad.dtype)
    else:
        result = reference.pool_rois_backward(grad, argmax, boxes, image_index, *shape, mode)
    return result.contiguous(memory_format=_layout(channels_last))


pool_rois_backward.register_kernel("cuda")(
    runtime.or_else(kernels.roi_pool_backward, _slower_backward)
)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _setup_context(ctx, inputs, output) -> None:
    features, boxes, image_index, _, _, ctx.mode = inputs
    ctx.shape = features.shape
    ctx.channels_last = memory_format_of(features) == torch.channels_last
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], boxes, image_index)


def _backward(ctx, grad, _):
    result = pool_rois_backward(grad, *ctx.saved_tensors, *ctx.shape, ctx.mode, ctx.channels_last)
    return result, *(None,) * 5


pool_rois.register_autograd(_backward, setup_context=_setup_context)
