"""How kernels take the levels of a pyramid; ``levels.cuh`` is the other side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.cuda.runtime import Argument

MAX_LEVELS = 6


def level_arguments(maps: Sequence[Tensor]) -> list[Argument]:
    """Pointers, heights and widths of up to 6 maps ``(B, C, H_l, W_l)``."""
    assert 1 <= len(maps) <= MAX_LEVELS, f"{len(maps)} pyramid levels"
    unused = MAX_LEVELS - len(maps)
    heights = [level.shape[2] for level in maps]
    widths = [level.shape[3] for level in maps]
    return [*maps, *[None] * unused, *heights, *[0] * unused, *widths, *[0] * unused]


def num_tiles(maps: Sequence[Tensor], tile_height: int, tile_width: int) -> int:
    """Tiles that cover all images of all levels."""
    return sum(
        len(level) * -(-level.shape[2] // tile_height) * -(-level.shape[3] // tile_width)
        for level in maps
    )


def order_by_map(
    image_index: Tensor, level_index: Tensor | None, num_images: int, num_levels: int
) -> tuple[Tensor, Tensor]:
    """RoIs grouped by image and level, each group in the RoIs' own order.

    Args:
        image_index: ``(N,)`` int64; those of no image come last and belong to no group.
        level_index: ``(N,)`` int32, negative for RoIs that pool nothing; ``None``: all on level 0.

    Returns:
        ``(N,)`` int64 RoIs in order and ``(B * L + 1,)`` int64, where the groups begin.
    """
    num_groups = num_images * num_levels
    known = (image_index >= 0) & (image_index < num_images)
    group = image_index * num_levels
    if level_index is not None:
        known &= level_index >= 0
        group = group + level_index
    group, order = torch.where(known, group, num_groups).sort(stable=True)
    begins = torch.arange(num_groups + 1, device=group.device)
    return order, torch.searchsorted(group, begins)
