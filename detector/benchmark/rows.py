"""All comparisons, made when their turn comes so that one row's inputs are gone in the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from detector.benchmark.box_rows import box_rows
from detector.benchmark.comparison import Comparison
from detector.benchmark.mask_rows import mask_rows
from detector.benchmark.pyramid_rows import pyramid_rows
from detector.benchmark.roi_rows import single_level_rows

FAMILIES: dict[tuple[str, ...], Callable[[torch.device], list[Comparison]]] = {
    ("masks_to_rle", "rasterize_polygons"): mask_rows,
    ("nms_slots", "match_boxes"): box_rows,
    ("roi_align", "roi_pool"): single_level_rows,
    ("multiscale_roi_align",): pyramid_rows,
}


def all_rows(device: torch.device, only: str) -> Iterator[Comparison]:
    """Comparisons whose op's name contains ``only``."""
    for ops, family in FAMILIES.items():
        if any(only in op or op in only for op in ops):
            yield from (row for row in family(device) if only in row.op)
