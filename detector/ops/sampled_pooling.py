"""Bilinear samples on a regular grid over each RoI, pooled cell by cell.

RoIAlign, crop-and-resize and RoI warping differ in where their samples lie, in what a sample
outside the map is worth, and in how the samples of a cell are pooled. This is all three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda import sampled_pooling as kernels
from detector.ops.reference import sampled_pooling as reference
from detector.ops.rois import memory_format_of

BORDERS = ("clamp", "zero")


def _check(features_shape: tuple[int, ...], border: str, mode: str) -> None:
    assert border in BORDERS and mode in ("max", "avg"), f"border {border!r}, mode {mode!r}"
    # A weight table's row and a sample's argmax are 32-bit.
    assert features_shape[2] * features_shape[3] < 2**31, f"a map of {features_shape[2:]}"


@torch.library.custom_op("detector::pool_samples", mutates_args=())
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
    """Pool bilinear samples of each RoI.

    Along an axis of RoI n lie ``pooled * samples`` samples, number i at ``start + i * step`` (the
    product rounded, then the sum: not fused), in cells of the map, whose centres are the whole
    numbers. Cell p pools the samples ``p * samples .. (p + 1) * samples - 1`` of both axes.

    A sample on the map is the bilinear mean of the four cells around it; outside, it is 0.
    ``border`` says where the map ends: ``"clamp"`` at -1 and ``size`` (both inclusive), with
    positions beyond the border cells' centres read at them (RoIAlign); ``"zero"`` at 0 and
    ``size - 1``, inclusive (TensorFlow).

    ``"avg"`` divides the sum of a cell's samples by their number, those outside included.
    ``"max"`` gives the largest sample on the map, of equal ones the first row by row; if it is
    negative and some sample lies outside, that one's 0 is larger, and nothing gets the gradient.

    A RoI with less than one sample on either axis, of no image of the batch, or with a grid that
    is not finite gives zeros, and no gradient.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64; H*W below 2^31.
        image_index: ``(N,)`` int64.
        grid: ``(N, 4)`` (start_x, start_y, step_x, step_y), float32, float64 with float64
            features. Steps may be negative.
        samples: ``(N, 2)`` int32 samples per cell along (x, y); their product below 2^31.
        pooled_height: rows of the output.
        pooled_width: columns of the output.
        max_samples: S where every row of ``samples`` is (S, S), or 0 where they adapt to the RoI.
            Adaptive steps are longer than half a cell of the map, or the RoI has one sample, so
            that what lies on the map is bounded by the map, however large the RoI.
        border: ``"clamp"`` or ``"zero"``.
        mode: ``"max"`` or ``"avg"``.

    Returns:
        Pooled ``(N, C, ph, pw)`` in the dtype and memory format of the features. For ``"max"``,
        int32 of the same shape and format: the sample's number in its cell,
        ``iy * samples_x + ix``, or -1 where nothing gets the gradient; for ``"avg"``, empty
        ``(0,)`` int32.
    """
    _check(features.shape, border, mode)
    return _pool_by_reference(
        features,
        image_index,
        grid,
        samples,
        pooled_height,
        pooled_width,
        max_samples,
        border,
        mode,
    )


def _pool_by_reference(features: Tensor, *rest) -> tuple[Tensor, Tensor]:
    pooled, argmax = reference.pool_samples(features, *rest)
    layout = memory_format_of(features)
    if argmax.dim() == 4:
        argmax = argmax.contiguous(memory_format=layout)
    return pooled.contiguous(memory_format=layout), argmax


pool_samples.register_kernel("cuda")(runtime.or_else(kernels.pool_samples, _pool_by_reference))


@pool_samples.register_fake
def _(
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
    shape = (image_index.shape[0], features.shape[1], pooled_height, pooled_width)
    layout = memory_format_of(features)
    pooled = features.new_empty(shape).contiguous(memory_format=layout)
    if mode == "max":
        return pooled, torch.empty_like(pooled, dtype=torch.int32, memory_format=layout)
    return pooled, features.new_empty(0, dtype=torch.int32)


@torch.library.custom_op("detector::pool_samples_backward", mutates_args=())
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
    """Gradient of :func:`pool_samples` with respect to the features.

    Args:
        grad: ``(N, C, ph, pw)`` of any strides, in the dtype of the features.
        argmax: what the forward pass gave.
        image_index, grid, samples, max_samples, border, mode: as in the forward pass.
        batch, channels, height, width: shape of the features.
        channels_last: memory format of the result.

    Returns:
        ``(B, C, H, W)`` in the dtype of ``grad``; sums are float32 for 16-bit gradients.
    """
    _check((batch, channels, height, width), border, mode)
    return _backward_by_reference(
        grad,
        argmax,
        image_index,
        grid,
        samples,
        batch,
        channels,
        height,
        width,
        max_samples,
        border,
        mode,
        channels_last,
    )


def _backward_by_reference(*arguments) -> Tensor:
    *rest, channels_last = arguments
    result = reference.pool_samples_backward(*rest)
    return result.contiguous(memory_format=_layout(channels_last))


pool_samples_backward.register_kernel("cuda")(
    runtime.or_else(kernels.pool_samples_backward, _backward_by_reference)
)


@pool_samples_backward.register_fake
def _(
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
    result = grad.new_empty((batch, channels, height, width))
    return result.contiguous(memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _setup_context(ctx, inputs, output) -> None:
    features, image_index, grid, samples, _, _, *ctx.options = inputs
    ctx.shape = features.shape
    ctx.channels_last = memory_format_of(features) == torch.channels_last
    argmax = output[1]
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(argmax, image_index, grid, samples)


def _backward(ctx, grad, _):
    saved = ctx.saved_tensors
    features_grad = pool_samples_backward(grad, *saved, *ctx.shape, *ctx.options, ctx.channels_last)
    return features_grad, *(None,) * 8


pool_samples.register_autograd(_backward, setup_context=_setup_context)
