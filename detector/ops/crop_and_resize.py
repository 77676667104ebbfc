"""Crops of a feature map, resized bilinearly, as TensorFlow defines them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.rois import as_height_width, flatten_boxes
from detector.ops.sampled_pooling import pool_samples


def crop_and_resize(
    features: Tensor, boxes: Tensor | Sequence[Tensor], output_size: int | Sequence[int]
) -> Tensor:
    """TensorFlow's ``tf.image.crop_and_resize(method="bilinear", extrapolation_value=0)``.

    The crop runs from corner point to corner point: the first output cell is the map at (x1, y1),
    the last one the map at (x2, y2), and the others lie evenly between; an output with one row or
    column reads the middle. A point outside the outermost cells' centres is 0. Boxes may be
    flipped, x1 > x2 or y1 > y2, which flips the crop. A box that is not finite gives zeros.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``,
            normalised: 0 is the centre of the first cell and 1 that of the last. (TensorFlow's
            order is y1, x1, y2, x2.) They get no gradient.
        output_size: cells of the output, one number or (height, width).

    Returns:
        ``(N, C, height, width)`` in the dtype and memory format of the features.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
    """
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    return crop_rows(features, boxes, image_index, (height, width))


def crop_rows(
    features: Tensor, boxes: Tensor, image_index: Tensor, output_size: tuple[int, int]
) -> Tensor:
    """:func:`crop_and_resize` of rows ``(N, 4)`` of images ``(N,)``, unchecked.

    It asks for no value, which the training step may not. What is of no image gives zeros.
    """
    height, width = output_size
    grid = crop_grid(boxes, features.shape[2:], output_size)
    samples = torch.ones((boxes.shape[0], 2), dtype=torch.int32, device=features.device)
    return pool_samples(features, image_index, grid, samples, height, width, 1, "zero", "avg")[0]


def place_points(boxes: Tensor, map_size: Sequence[int], output_size: Sequence[int]) -> Tensor:
    """``grid`` of ``pool_samples`` for normalised boxes ``(N, 4)`` on a map of this size."""
    x_start, x_step = _axis(boxes[:, 0], boxes[:, 2], map_size[1], output_size[1])
    y_start, y_step = _axis(boxes[:, 1], boxes[:, 3], map_size[0], output_size[0])
    return torch.stack((x_start, y_start, x_step, y_step), 1)


# An op, because a compiler of plain PyTorch may round otherwise, and move the last point off the
# map.
crop_grid = torch.library.custom_op("detector::crop_grid", place_points, mutates_args=())


@crop_grid.register_fake
def _(boxes: Tensor, map_size: Sequence[int], output_size: Sequence[int]) -> Tensor:
    return boxes.new_empty(boxes.shape[0], 4)


def _axis(low: Tensor, high: Tensor, size: int, num_points: int) -> tuple[Tensor, Tensor]:
    """First point and step, with TensorFlow's order of roundings.

    Near the border it decides whether the last point is on the map.
    """
    if num_points > 1:
        # Not a Python number: CUDA divides by one as a product with its reciprocal.
        num_steps = torch.full_like(low, num_points - 1)
        return low * (size - 1), (high - low) * (size - 1) / num_steps
    return 0.5 * (low + high) * (size - 1), torch.zeros_like(low)
