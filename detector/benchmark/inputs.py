"""Inputs of a realistic size and spread: an image of 800 x 1344 and what is found in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEIGHT, WIDTH = 800, 1344
STRIDES = (4, 8, 16, 32)
RPN_STRIDES = (4, 8, 16, 32, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """``(*shape, 4)`` boxes inside the image, sides from 8 to 600 pixels, small ones more often."""
    random = torch.rand(*shape, 4, generator=generator(seed))
    limit = torch.tensor([WIDTH, HEIGHT], dtype=torch.float32)
    size = torch.minimum(8 * (600 / 8) ** random[..., 2:], limit)
    corner = random[..., :2] * (limit - size)
    return torch.cat((corner, corner + size), -1)


def crowded_boxes(*shape: int, num_objects: int, seed: int = 0) -> Tensor:
    """``(*shape, 4)`` boxes around few objects, as a detector proposes them before suppression."""
    objects = random_boxes(num_objects, seed=seed)
    chosen = torch.randint(num_objects, shape, generator=generator(seed + 1))
    boxes = objects[chosen]
    size = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1).roll(1, -1)
    shift = torch.randn(*shape, 4, generator=generator(seed + 2)) * 0.12
    boxes = boxes + shift * size
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat((torch.minimum(low, high), torch.maximum(low, high) + 1), -1)


def feature_pyramid(
    batch: int, channels: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> list[Tensor]:
    """One map ``(B, C, H / s, W / s)`` for each stride."""
    return [
        torch.randn(batch, channels, HEIGHT // stride, WIDTH // stride, generator=generator(stride))
        .to(device, dtype)
        .to(memory_format=layout)
        for stride in STRIDES
    ]


def pyramid_anchors() -> Tensor:
    """The 268 569 anchors of Faster R-CNN with FPN: three ratios on five levels."""
    anchors = []
    for stride in RPN_STRIDES:
        rows, columns = math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        center = torch.stack((x, y, x, y), -1).view(-1, 1, 4) * float(stride)
        ratio = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        half = torch.stack((1 / ratio, ratio), -1) * stride * 4
        anchors.append((center + torch.cat((-half, half), -1)).view(-1, 4))
    return torch.cat(anchors)
