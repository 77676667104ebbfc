"""Launches the kernels of non-maximum suppression."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel

SORT = Kernel.of("nms.cu", "nms_sort_chunks")
MERGE = Kernel.of("nms.cu", "nms_merge_chunks")
SUPPRESS = Kernel.of("nms.cu", "nms_suppress")

MAX_CHUNK = 2048
MAX_THREADS = 1024
TILE = 64
MAX_SHARED_WORDS = 8192  # a bit a slot: 262144 slots beside the kernel's other shared memory


def specialisations() -> list[Kernel]:
    return [SORT, MERGE, SUPPRESS]


def nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """As :func:`detector.ops.nms.nms_slots`."""
    num_images, num_slots = valid.shape
    keep = torch.empty_like(valid, memory_format=torch.contiguous_format)
    if keep.numel() == 0:
        return keep
    assert num_slots < 2**30, f"{num_slots} slots"
    boxes, scores = boxes.float().contiguous(), scores.float().contiguous()
    groups, valid = groups.long().contiguous(), valid.contiguous()

    def scratch(dtype: torch.dtype) -> Tensor:
        return torch.empty(valid.shape, dtype=dtype, device=valid.device)

    # A short row is sorted by a small block; longer ones share the widest chunk.
    width = min(MAX_CHUNK, max(TILE, 1 << (num_slots - 1).bit_length()))
    chunks_per_image = -(-num_slots // width)
    chunks = scratch(torch.int64), scratch(torch.int32), scratch(torch.int32)
    runtime.launch(
        SORT,
        num_images * chunks_per_image,
        width // 2,
        *(scores, groups, valid, *chunks),
        *(num_slots, width, chunks_per_image),
    )
    ordered = scratch(torch.int64), scratch(torch.int32), scratch(torch.int32)
    ordered_boxes = torch.empty_like(boxes)
    runtime.launch(
        MERGE,
        -(-keep.numel() // 256),
        256,
        *(boxes, *chunks, *ordered, ordered_boxes, keep),
        *(num_images, num_slots, width),
    )
    # How many segments there are only the GPU knows. Two blocks for each multiprocessor of a large
    # card keep it busy with the classes of a few images; a block that finds no segment of its own
    # leaves after one look at the groups. 1024 threads, because with FPN's five levels there are
    # fewer segments than multiprocessors, and a segment's own parallelism is what is left.
    blocks_per_image = min(num_slots, 64, max(8, 264 // num_images))
    words = -(-num_slots // TILE) * (TILE // 32)
    spill = None
    if words > MAX_SHARED_WORDS:
        shape = (num_images * blocks_per_image, words)
        spill = torch.empty(shape, dtype=torch.int32, device=valid.device)
    runtime.launch(
        SUPPRESS,
        num_images * blocks_per_image,
        min(MAX_THREADS, max(TILE, -(-num_slots // 32) * 32)),
        *(*ordered, ordered_boxes, keep, spill),
        *(num_slots, blocks_per_image, float32_below(iou_threshold)),
        shared_bytes=0 if spill is not None else words * 4,
    )
    return keep


def float32_below(value: float) -> float:
    """The largest float32 up to ``value``: a float32 exceeds the one exactly if the other.

    PyTorch's and torchvision's CPU code compare with the float64 threshold.
    """
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    if rounded > value:
        bits = struct.unpack("i", struct.pack("f", value))[0]
        rounded = struct.unpack("f", struct.pack("i", bits - 1))[0]
    return rounded
