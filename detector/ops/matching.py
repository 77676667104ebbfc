"""Assignment of ground truth to anchors or proposals."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import matching as kernels
from detector.ops.cuda import runtime

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

# Pairs compared at once on the CPU: 20 bytes each, so that a tile stays in the cache.
TILE_PAIRS = 1 << 17
TILE_GTS = 128


def match_boxes(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
) -> tuple[Tensor, Tensor]:
    """Best gt and label of every anchor (Faster R-CNN, section 3.1.2).

    An anchor is positive if its best IoU is at least ``high``, negative if it is below ``low``,
    ignored between. With ``allow_low_quality`` every anchor that reaches the highest IoU any anchor
    has with some gt is positive too, so that no gt stays without an anchor. A gt that no anchor
    touches claims none.

    The matrix of all overlaps never exists: memory is O(A + G) on CUDA; on the CPU 268000 anchors
    and 2000 gts take 18 MiB beside the results. Arithmetic is float32 with the same bits on every
    device. A box with a coordinate that is NaN or infinite has IoU 0 with all.

    Args:
        anchors: ``(A, 4)``, or ``(B, A, 4)`` where they differ from image to image.
        gt_boxes: ``(B, G, 4)``; G may be 0.
        gt_valid: ``(B, G)`` bool.
        low: IoU below which an anchor is background.
        high: IoU from which an anchor is foreground.
        allow_low_quality: keep each gt's best anchors even below ``high``.

    Returns:
        ``(B, A)`` int64 index of the best gt slot, the first of equally good ones, and ``(B, A)``
        int64 labels 1 (positive), 0 (negative) or -1 (ignored). Without any gt all anchors are
        negative and their index is 0.

    Raises:
        ValueError: wrong shape or dtype, or ``low`` above ``high``.
    """
    if gt_boxes.dim() != 3 or gt_boxes.shape[-1] != 4:
        raise ValueError(f"gt_boxes {tuple(gt_boxes.shape)} must be (B, G, 4)")
    if gt_valid.shape != gt_boxes.shape[:2] or gt_valid.dtype != torch.bool:
        raise ValueError(
            f"gt_valid {tuple(gt_valid.shape)} {gt_valid.dtype} must be bool of shape "
            f"{tuple(gt_boxes.shape[:2])}"
        )
    if (
        anchors.dim() not in (2, 3)
        or anchors.shape[-1] != 4
        or (anchors.dim() == 3 and len(anchors) != len(gt_boxes))
    ):
        raise ValueError(
            f"anchors {tuple(anchors.shape)} must be (A, 4) or ({len(gt_boxes)}, A, 4)"
        )
    if low > high:
        raise ValueError(f"low={low} must not exceed high={high}")
    return _match_boxes(anchors.detach(), gt_boxes.detach(), gt_valid, low, high, allow_low_quality)


@torch.library.custom_op("detector::match_boxes", mutates_args=())
def _match_boxes(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> tuple[Tensor, Tensor]:
    return _match_in_tiles(anchors, gt_boxes, gt_valid, low, high, allow_low_quality)


@_match_boxes.register_fake
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> tuple[Tensor, Tensor]:
    shape = (gt_boxes.shape[0], anchors.shape[-2])
    return anchors.new_empty(shape, dtype=torch.int64), anchors.new_empty(shape, dtype=torch.int64)


def _match_in_tiles(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> tuple[Tensor, Tensor]:
    shape = (gt_boxes.shape[0], anchors.shape[-2])
    matched = anchors.new_zeros(shape, dtype=torch.int64)
    labels = anchors.new_full(shape, NEGATIVE, dtype=torch.int64)
    tiles = _Tiles(min(TILE_PAIRS, gt_valid.shape[1] * shape[1]), anchors.device)
    columns = _columns(anchors) if anchors.dim() == 2 else None
    for image, valid in enumerate(gt_valid):
        slots = valid.nonzero()[:, 0]
        if len(slots) and shape[1]:
            index = _match_image(
                _columns(anchors[image]) if columns is None else columns,
                _columns(gt_boxes[image, slots]),
                *(low, high, allow_low_quality),
                labels[image],
                tiles,
            )
            matched[image] = slots[index]
    return matched, labels


def _match_image(
    anchors: Tensor,
    gts: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool,
    labels: Tensor,
    tiles: _Tiles,
) -> Tensor:
    """Fills ``labels`` ``(A,)``; returns ``(A,)`` indices of gts, all of which are valid."""
    num_gts, num_anchors = gts.shape[1], anchors.shape[1]
    width = TILE_PAIRS // min(num_gts, TILE_GTS)
    chunks = anchors.split(width, dim=1)
    # An IoU's bits, as float64, order as integers do and leave 29 low bits free. There the gt is
    # noted, earlier ones as larger numbers: one maximum gives the best IoU and its first gt, many
    # times faster than a maximum with indices.
    mark = torch.arange(num_gts - 1, -1, -1, device=gts.device)[:, None]
    best = torch.empty(num_anchors, dtype=torch.int64, device=gts.device)
    best_of_gts = anchors.new_empty(len(chunks), num_gts)  # in each chunk
    for chunk, best_here, gts_here in zip(chunks, best.split(width), best_of_gts, strict=True):
        for first in range(0, num_gts, TILE_GTS):
            part = slice(first, first + TILE_GTS)
            tile = tiles.iou(gts[:, part], chunk)
            torch.amax(tile, 1, out=gts_here[part])
            marked = tiles.as_float64(tile).view(torch.int64).bitwise_or_(mark[part]).amax(0)
            best_here.copy_(torch.maximum(best_here, marked) if first else marked)

    iou = best.view(torch.float64).float()  # the mark is too small to survive rounding
    labels.fill_(IGNORED).masked_fill_(iou < low, NEGATIVE).masked_fill_(iou >= high, POSITIVE)
    if allow_low_quality and len(chunks) == 1 and num_gts <= TILE_GTS:
        # The overlaps are all still there. A best of 0 becomes one that none can reach.
        short = tile.sub_(best_of_gts.T.where(best_of_gts.T > 0, torch.inf))
        labels.masked_fill_(short.amax(0) == 0, POSITIVE)
    elif allow_low_quality:
        best_of_gt = best_of_gts.amax(0)
        reached = (best_of_gts == best_of_gt) & (best_of_gt > 0)
        # Few chunks hold an anchor that is some gt's best: these are compared again.
        for number in reached.any(1).nonzero()[:, 0].tolist():
            for part in reached[number].nonzero()[:, 0].split(TILE_GTS):
                short = tiles.iou(gts[:, part], chunks[number]).sub_(best_of_gt[part, None])
                labels.split(width)[number].masked_fill_(short.amax(0) == 0, POSITIVE)
    return num_gts - 1 - (best & ((1 << 29) - 1))


def _columns(boxes: Tensor) -> Tensor:
    """``(5, N)``: x1, y1, x2, y2 and area, each contiguous. Adding 0 makes -0 a 0."""
    columns = torch.empty(5, len(boxes), device=boxes.device)
    torch.add(boxes.float().t(), 0.0, out=columns[:4])
    width, height = (columns[2:4] - columns[:2]).clamp_(min=0)
    torch.mul(width, height, out=columns[4])
    return columns


class _Tiles:
    """Scratch memory for the overlaps of one tile, used again for the next."""

    def __init__(self, num_pairs: int, device: torch.device) -> None:
        self._float32 = torch.empty(3, num_pairs, device=device)
        self._float64 = torch.empty(num_pairs, dtype=torch.float64, device=device)

    def iou(self, gts: Tensor, anchors: Tensor) -> Tensor:
        """IoU ``(G, A)`` of :func:`_columns` ``(5, G)`` and ``(5, A)``; the bits of ``box_iou``."""
        gts, shape = gts[..., None], (gts.shape[1], anchors.shape[1])
        size, other, corner = (x[: shape[0] * shape[1]].view(shape) for x in self._float32)
        for axis, out in ((0, size), (1, other)):
            torch.minimum(gts[axis + 2], anchors[axis + 2], out=out)
            out.sub_(torch.maximum(gts[axis], anchors[axis], out=corner)).clamp_(min=0)
        intersection = size.mul_(other)
        union = torch.add(gts[4], anchors[4], out=other).sub_(intersection)
        # NaN: both boxes are empty, or one is not finite.
        return intersection.div_(union).nan_to_num_(0.0)

    def as_float64(self, tile: Tensor) -> Tensor:
        return self._float64[: tile.numel()].view(tile.shape).copy_(tile)


_match_boxes.register_kernel("cuda")(runtime.or_else(kernels.match_boxes, _match_in_tiles))
