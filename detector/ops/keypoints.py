"""Keypoints of an object and the heatmaps that stand for them (Mask R-CNN, section 5).

A heatmap of S x S cells covers its box. A keypoint lies in one cell; of a heatmap that was
predicted, the keypoint is the highest point after bicubic interpolation to the box's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.cuda import keypoints as kernels
from detector.ops.cuda import runtime
from detector.ops.reference.keypoints import heatmaps_to_keypoints as reference_heatmaps

# A box of this many pixels or more, or with NaN, is of no image: its heatmap is read as one pixel.
TOO_LARGE = 32768


def keypoints_to_cells(keypoints: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The cell of its box's heatmap that each keypoint lies in.

    A cell has its left and upper border, the last also the right and lower border of the box:
    torchvision's and Detectron2's rule, with the same rounding.

    Args:
        keypoints: ``(..., J, 3)`` float ``(x, y, visibility)``.
        boxes: ``(..., 4)`` float, in the same pixels.
        side: S.

    Returns:
        ``(..., J)`` int64 in ``0..S * S - 1``, row by row, and ``(..., J)`` bool: whether the
        keypoint is labelled and lies in the box. The cell of any other is 0. No gradients.
    """
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    points = keypoints[..., :2]
    scale = side / (high - low)  # first and rounded, as in the references
    cells = torch.where(points == high, side - 1, ((points - low) * scale).floor())
    inside = ((cells >= 0) & (cells < side)).all(-1) & (keypoints[..., 2] > 0)
    x, y = cells.masked_fill(~inside[..., None], 0).long().unbind(-1)
    return y * side + x, inside


def heatmaps_to_keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """The highest point of each heatmap in its box, in pixels.

    The heatmap is resized bicubically (a = -0.75, pixel centres at halves) to the box's width and
    height, rounded up and at least 1; the centre of the best pixel is then scaled to the box as it
    is. That is what torchvision and Detectron2 do. Of pixels that are equally high, the first in
    reading order counts; pixels whose values differ by less than float32's rounding may change
    places between devices.

    Shapes are fixed and nothing is asked of the GPU, where a block of threads looks at one heatmap;
    the CPU goes box by box.

    Args:
        heatmaps: ``(N, J, S, S)`` float32, finite.
        boxes: ``(N, 4)`` float32 ``(x1, y1, x2, y2)``.

    Returns:
        ``(N, J, 3)`` float32: x and y in the pixels of the boxes, and the interpolated height. No
        gradients.

    Raises:
        ValueError: wrong shapes, dtypes or devices.
    """
    if heatmaps.ndim != 4 or heatmaps.shape[2] != heatmaps.shape[3] or heatmaps.shape[2] == 0:
        raise ValueError(f"heatmaps must be (N, J, S, S), not {tuple(heatmaps.shape)}")
    if boxes.shape != (len(heatmaps), 4):
        raise ValueError(f"boxes must be ({len(heatmaps)}, 4), not {tuple(boxes.shape)}")
    for name, tensor in (("heatmaps", heatmaps), ("boxes", boxes)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be torch.float32, not {tensor.dtype}")
    if heatmaps.device != boxes.device:
        raise ValueError(f"heatmaps are on {heatmaps.device} and boxes on {boxes.device}")
    return torch.ops.detector.heatmaps_to_keypoints(heatmaps, boxes)


@torch.library.custom_op("detector::heatmaps_to_keypoints", mutates_args=(), device_types="cpu")
def _heatmaps_to_keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    num_boxes, num_keypoints = heatmaps.shape[:2]
    corners = boxes[:, :2]
    extents = boxes[:, 2:] - corners
    extents = torch.where((extents >= 1) & (extents < TOO_LARGE), extents, 1.0)
    pixels = extents.ceil()
    found = heatmaps.new_empty(num_boxes, num_keypoints, 3)
    for i, (width, height) in enumerate(pixels.int().tolist()):
        resized = F.interpolate(
            heatmaps[i, :, None], (height, width), mode="bicubic", align_corners=False
        )
        best = resized.flatten(1).argmax(1)
        place = torch.stack((best % width, best // width), dim=1)
        found[i, :, :2] = (place + 0.5) * (extents[i] / pixels[i]) + corners[i]
        found[i, :, 2] = resized.flatten(1).gather(1, best[:, None])[:, 0]
    return found


@_heatmaps_to_keypoints.register_fake
def _(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    return heatmaps.new_empty((*heatmaps.shape[:2], 3))


_heatmaps_to_keypoints.register_kernel("cuda")(
    runtime.or_else(kernels.heatmaps_to_keypoints, reference_heatmaps)
)
