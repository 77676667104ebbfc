"""RoIAlign over all levels of a feature pyramid at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.cuda import multiscale_roi_align as kernels
from detector.ops.cuda import runtime
from detector.ops.cuda.levels import MAX_LEVELS
from detector.ops.reference.multiscale_roi_align import pool_assigned, pool_assigned_backward
from detector.ops.rois import check_features, flatten_boxes, memory_format_of


def assign_levels(
    boxes: Tensor,
    num_levels: int,
    min_level: int = 2,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Tensor:
    """Pyramid level of each box (FPN, eq. 1), counted from 0.

    Args:
        boxes: ``(N, 4)``.
        num_levels: levels that can be chosen.
        min_level: the paper's name of the finest level, 2 for P2.
        canonical_level: level of a box of ``canonical_size``.
        canonical_size: square root of the area, in pixels, that maps to ``canonical_level``.

    Returns:
        ``(N,)`` int64 in ``0..num_levels-1``.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    scale = (size[:, 0] * size[:, 1]).clamp(min=0).sqrt()
    # 1e-8 keeps log2 finite for empty slots, which land on the finest level.
    level = torch.floor(canonical_level + torch.log2(scale / canonical_size + 1e-8))
    # NaN has no integer; such boxes pool nothing on any level.
    return (level - min_level).clamp(min=0, max=num_levels - 1).nan_to_num(0.0).long()


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int,
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = True,
    valid: Tensor | None = None,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """Average RoIAlign (Mask R-CNN, section 3) from the level that FPN's rule gives each box.

    On a GPU one launch pools all levels, after a small one that places the samples. Boxes get no
    gradient; a box that is not finite gives zeros.

    Args:
        features: L maps ``(B, C, H_l, W_l)`` of one dtype, finest first; on a GPU at most 6.
        boxes: in input pixels: fixed slots ``(B, R, 4)``, rows ``(N, 5)`` of (image index, x1, y1,
            x2, y2), or B tensors ``(L, 4)``.
        output_size: side of the square output.
        strides: L input pixels per cell; the first is a power of two, from which the level's name
            follows (4 is P2).
        sampling_ratio: samples per cell and axis, at least 1: the work must not depend on the box.
        aligned: shift by half a cell so that samples lie at pixel centres (Detectron2's "v2");
            ``False`` is the original, with RoIs of at least one cell.
        valid: ``(B, R)`` bool, with boxes in slots; empty slots give zeros.
        canonical_size: square root of the area, in pixels, that maps to ``canonical_level``.
        canonical_level: its level by the paper's name, 4 for P4.

    Returns:
        ``(B, R, C, output_size, output_size)`` for slots, else ``(N, C, output_size,
        output_size)``, in the dtype of the features.

    Raises:
        ValueError: a shape, dtype or number that does not fit.
    """
    if not features or len(features) != len(strides):
        raise ValueError(f"{len(features)} features need as many strides, not {list(strides)}")
    for level in features:
        check_features(level)
        if level.shape[:2] != features[0].shape[:2] or level.dtype != features[0].dtype:
            raise ValueError(
                f"features must agree in images, channels and dtype: {tuple(level.shape)} "
                f"{level.dtype} and {tuple(features[0].shape)} {features[0].dtype}"
            )
    if features[0].is_cuda and len(features) > MAX_LEVELS:
        raise ValueError(f"{len(features)} features, but a GPU takes at most {MAX_LEVELS}")
    if strides[0] < 1 or strides[0] & (strides[0] - 1):
        raise ValueError(f"strides[0]={strides[0]} must be a power of two")
    if output_size < 1 or sampling_ratio < 1:
        raise ValueError(
            f"output_size={output_size} and sampling_ratio={sampling_ratio} must be at least 1"
        )
    slots = isinstance(boxes, Tensor) and boxes.dim() == 3
    if slots:
        batch = len(features[0])
        if boxes.shape[0] != batch or boxes.shape[2] != 4:
            raise ValueError(f"boxes {tuple(boxes.shape)} must be ({batch}, R, 4)")
        if valid is not None and valid.shape != boxes.shape[:2]:
            raise ValueError(f"valid {tuple(valid.shape)} must be {tuple(boxes.shape[:2])}")
        image_index = torch.arange(batch, device=boxes.device).repeat_interleave(
            boxes.shape[1], output_size=batch * boxes.shape[1]
        )
        rows = boxes.detach().flatten(0, 1)
    elif valid is not None:
        raise ValueError("valid needs boxes in slots, (B, R, 4)")
    else:
        rows, image_index = flatten_boxes(features[0], boxes)
    pooled = align_rows(
        features,
        rows,
        image_index,
        output_size,
        strides,
        sampling_ratio,
        aligned,
        None if valid is None else valid.flatten(),
        canonical_size,
        canonical_level,
    )
    return pooled.unflatten(0, boxes.shape[:2]) if slots else pooled


def align_rows(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    output_size: int,
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = True,
    valid: Tensor | None = None,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """:func:`multiscale_roi_align` of rows ``(N, 4)`` of images ``(N,)``, unchecked.

    Neither asks for a value nor loops over images, which the training step may not.
    """
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    # Plain PyTorch is quicker on a CPU when its own autograd runs it.
    pool = _multiscale_roi_align if boxes.is_cuda else _by_reference
    return pool(
        list(features),
        boxes.detach().to(dtype),
        image_index,
        valid,
        [1.0 / stride for stride in strides],
        output_size,
        sampling_ratio,
        aligned,
        strides[0].bit_length() - 1,
        canonical_level,
        float(canonical_size),
    )


def _by_reference(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    *level_rule: float,
) -> Tensor:
    levels = _levels(boxes, valid, len(features), *level_rule)
    pooled = pool_assigned(
        features, boxes, image_index, levels, scales, output_size, sampling_ratio, aligned
    )
    return pooled.contiguous(memory_format=memory_format_of(features[0]))


def _in_float32(features: Sequence[Tensor], *rest) -> Tensor:
    """The reference with the sums of the kernels, which 16-bit features do not round."""
    dtype = features[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    return _by_reference([level.to(wide) for level in features], *rest).to(dtype)


def _levels(
    boxes: Tensor,
    valid: Tensor | None,
    num_levels: int,
    min_level: int,
    canonical_level: int,
    canonical_size: float,
) -> Tensor:
    levels = assign_levels(boxes, num_levels, min_level, canonical_level, canonical_size)
    return levels if valid is None else torch.where(valid, levels, -1)


@torch.library.custom_op("detector::multiscale_roi_align", mutates_args=())
def _multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    min_level: int,
    canonical_level: int,
    canonical_size: float,
) -> Tensor:
    level_rule = (min_level, canonical_level, canonical_size)
    return _in_float32(
        features,
        boxes,
        image_index,
        valid,
        scales,
        output_size,
        sampling_ratio,
        aligned,
        *level_rule,
    )


_multiscale_roi_align.register_kernel("cuda")(
    runtime.or_else(kernels.multiscale_roi_align, _in_float32)
)


@_multiscale_roi_align.register_fake
def _(features, boxes, image_index, valid, scales, output_size, *_):
    shape = (boxes.shape[0], features[0].shape[1], output_size, output_size)
    return features[0].new_empty(shape).contiguous(memory_format=memory_format_of(features[0]))


@torch.library.custom_op("detector::multiscale_roi_align_backward", mutates_args=())
def _multiscale_roi_align_backward(
    grad: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    min_level: int,
    canonical_level: int,
    canonical_size: float,
) -> list[Tensor]:
    level_rule = (min_level, canonical_level, canonical_size)
    return _backward_by_reference(
        grad,
        batch,
        heights,
        widths,
        channels_last,
        boxes,
        image_index,
        valid,
        scales,
        sampling_ratio,
        aligned,
        *level_rule,
    )


def _backward_by_reference(
    grad: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    *level_rule: float,
) -> list[Tensor]:
    maps = pool_assigned_backward(
        grad,
        list(zip(heights, widths, strict=True)),
        batch,
        boxes,
        image_index,
        _levels(boxes, valid, len(heights), *level_rule),
        scales,
        sampling_ratio,
        aligned,
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # Levels are slices of one table, and an op's outputs may not share memory.
    return [level.clone(memory_format=layout) for level in maps]


_multiscale_roi_align_backward.register_kernel("cuda")(
    runtime.or_else(kernels.multiscale_roi_align_backward, _backward_by_reference)
)


@_multiscale_roi_align_backward.register_fake
def _(grad, batch, heights, widths, channels_last, *_):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        grad.new_empty((batch, grad.shape[1], height, width)).contiguous(memory_format=layout)
        for height, width in zip(heights, widths, strict=True)
    ]


def _setup_context(ctx, inputs, output) -> None:
    features, boxes, image_index, valid, scales, _, *rest = inputs
    ctx.save_for_backward(boxes, image_index, valid)
    ctx.batch = features[0].shape[0]
    ctx.heights = [level.shape[2] for level in features]
    ctx.widths = [level.shape[3] for level in features]
    ctx.channels_last = memory_format_of(features[0]) == torch.channels_last
    ctx.options = (scales, *rest)


def _backward(ctx, grad: Tensor):
    maps = _multiscale_roi_align_backward(
        grad,
        ctx.batch,
        ctx.heights,
        ctx.widths,
        ctx.channels_last,
        *ctx.saved_tensors,
        *ctx.options,
    )
    return maps, *(None,) * 10


_multiscale_roi_align.register_autograd(_backward, setup_context=_setup_context)
