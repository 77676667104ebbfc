"""RoIAlign over a feature pyramid beside torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from detector.benchmark.comparison import Comparison
from detector.benchmark.inputs import HEIGHT, STRIDES, WIDTH, feature_pyramid, random_boxes
from detector.benchmark.roi_rows import pooling_rows
from detector.ops.multiscale_roi_align import multiscale_roi_align


def pyramid_rows(device: torch.device) -> list[Comparison]:
    """A training batch: bfloat16 channels_last on a GPU, two images in float32 on the CPU."""
    on_gpu = device.type == "cuda"
    batch, num_rois = (8, 512) if on_gpu else (2, 128)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    features = feature_pyramid(batch, 256, device, dtype, torch.channels_last)
    boxes = random_boxes(batch, num_rois, seed=41).to(device)
    word = str(dtype).removeprefix("torch.")
    rows = []
    for side in (7, 14):
        rows += pooling_rows(
            "multiscale_roi_align",
            f"{batch} images {HEIGHT}x{WIDTH}, 4 levels, 256 channels, {word} channels_last, "
            f"{num_rois} RoIs each, {side}x{side}",
            features,
            lambda *maps, side=side: multiscale_roi_align(
                maps, boxes, side, STRIDES, sampling_ratio=2, aligned=False
            ).flatten(0, 1),
            {_their_name(dtype): _torchvision(boxes, side)},
            with_deterministic=on_gpu,
        )
    return rows


def _their_name(dtype: torch.dtype) -> str:
    # torchvision's kernels do not take bfloat16.
    cast = "" if dtype == torch.float32 else " with the casts it needs"
    return f"torchvision MultiScaleRoIAlign{cast}"


def _torchvision(boxes: Tensor, side: int):
    names = [str(stride) for stride in STRIDES]
    pooler = MultiScaleRoIAlign(names, output_size=side, sampling_ratio=2)
    images = [(HEIGHT, WIDTH)] * len(boxes)

    def pool(*maps: Tensor) -> Tensor:
        as_float = {name: level.float() for name, level in zip(names, maps, strict=True)}
        return pooler(as_float, list(boxes), images).to(maps[0].dtype)

    return pool
