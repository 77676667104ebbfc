"""Masks, boxes and polygons to try the mask ops with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from detector.ops.masks import masks_to_rle, paste_masks
from detector.ops.polygons import rasterize_polygons
from detector.ops.reference.masks import paste_masks as reference_paste_masks
from detector.ops.reference.polygons import rasterize_polygons as reference_rasterize_polygons
from detector.structures import Polygons
from tests.ops.case import OpCase


def random_boxes(number: int, height: int, width: int, seed: int, reach: float = 0.3) -> Tensor:
    """Boxes of all sizes, some partly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    corners = (torch.rand(number, 2, 2, generator=generator) * (1 + 2 * reach) - reach) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 0.5], dim=1)


def extreme_boxes() -> Tensor:
    """Slivers, giants, far away, at pixel centres, and numbers that are none."""
    nan, inf = float("nan"), float("inf")
    rows = [[x, 2.0, x + size, 31.0] for x in (4.5, 11.25, 33.0) for size in (1e-6, 1e-3, 0.5, 2)]
    rows += [[-reach, -reach / 2, reach, reach] for reach in (1e2, 1e5, 1e9, 1e17, 1e30)]
    rows += [[8.0 - reach, 5.0, 8.0 + reach, 6.5] for reach in (1e4, 1e12, 3e38)]
    rows += [[1e7, 1e7, 2e7, 2e7], [-1e30, -1e30, -1e29, -1e29], [9.5, 9.5, 9.5, 9.5]]
    for place in range(4):
        for value in (nan, inf, -inf):
            row = [3.0, 4.0, 30.0, 29.0]
            row[place] = value
            rows.append(row)
    return torch.tensor(rows + [[nan] * 4, [-inf, -inf, inf, inf]])


def smooth_masks(number: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, 1, 5, 5, generator=generator)
    return F.interpolate(coarse, size=side, mode="bilinear")[:, 0].mul(3).sigmoid()


Ring = list[tuple[float, float]]


def edges_of(rings: list[Ring]) -> list[tuple[float, float, float, float]]:
    return [(*ring[i - 1], *ring[i]) for ring in rings for i in range(len(ring))]


def pack(images: list[list[list[Ring]]], gt_slots: int | None = None, spare: int = 3) -> Polygons:
    """Rings by image and gt, in the padded form of a batch, with ``spare`` unused edge slots."""
    gt_slots = gt_slots or max(len(gts) for gts in images)
    lists = [[edges_of(rings) for rings in gts] for gts in images]
    total = max(sum(len(edges) for edges in gts) for gts in lists) + spare
    edges = torch.zeros(len(images), total, 4)
    offsets = torch.zeros(len(images), gt_slots + 1, dtype=torch.int64)
    for image, gts in enumerate(lists):
        flat = [edge for gt in gts for edge in gt]
        if flat:
            edges[image, : len(flat)] = torch.tensor(flat)
        counts = [len(gt) for gt in gts] + [0] * (gt_slots - len(gts))
        offsets[image, 1:] = torch.tensor(counts).cumsum(0)
    longest = max((len(gt) for gts in lists for gt in gts), default=0)
    return Polygons(edges, offsets, max_edges=longest + spare)


def circle(x: float, y: float, radius: float, vertices: int, clockwise: bool = False) -> Ring:
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False) * (-1 if clockwise else 1)
    return [(x + radius * np.cos(t), y + radius * np.sin(t)) for t in turn]


SHAPES: dict[str, list[Ring]] = {
    "triangle": [[(3.1, 4.2), (40.7, 9.9), (17.3, 44.4)]],
    "triangle turned the other way": [[(17.3, 44.4), (40.7, 9.9), (3.1, 4.2)]],
    "two parts": [circle(12, 12, 8.3, 9), circle(33.3, 30.1, 9.7, 11)],
    "overlapping parts unite": [circle(18, 20, 11.3, 17), circle(28, 25, 12.1, 13)],
    "hole": [circle(25, 25, 20.2, 31), circle(24, 26, 9.4, 15, clockwise=True)],
    "hole with an island": [
        circle(25, 25, 22.2, 31),
        circle(25, 25, 15.1, 25, clockwise=True),
        circle(25, 25, 7.3, 13),
    ],
    "star wound twice": [
        [
            (25 + 20 * np.cos(4 * np.pi * i / 5), 25 + 20 * np.sin(4 * np.pi * i / 5))
            for i in range(5)
        ]
    ],
    "figure of eight": [[(5, 5.3), (45, 44.1), (45, 5.7), (5, 43.2)]],
    "300 vertices": [circle(25, 25, 18.9, 300)],
    "vertices far outside": [[(-300.5, -200.1), (500.3, -100.7), (30.2, 700.9)]],
    "covers everything": [[(-1000.0, -1000), (1000, -1000), (1000, 1000), (-1000, 1000)]],
    "wholly left": [circle(-50, 25, 20, 12)],
    "wholly right": [circle(150, 25, 20, 12)],
    "wholly above": [circle(25, -60, 20, 12)],
    "repeated vertices": [[(5.2, 5.1), (5.2, 5.1), (40.4, 6.3), (40.4, 6.3), (22.7, 41.9)]],
    "no edges": [],
}


def random_scene(seed: int, num_rois: int = 60) -> tuple[Polygons, Tensor, Tensor, Tensor]:
    """Gts of all shapes in three images (one gt slot is empty), and RoIs that look at them:
    about their size, much smaller, much larger, beside them, on grids of halves."""
    generator = np.random.default_rng(seed)
    gts = [*SHAPES.values()]
    gts += [[[tuple(p) for p in generator.uniform(-20, 70, (n, 2))]] for n in (3, 9, 40, 200)]
    gts += [[[(round(x * 2) / 2, round(y * 2) / 2) for x, y in circle(25, 25, 20, 24)]]]
    polygons = pack([gts, gts[::-1], gts[::2]], gt_slots=len(gts) + 1)
    image_index = torch.from_numpy(generator.integers(0, 3, num_rois))
    gt_index = torch.from_numpy(generator.integers(0, len(gts) + 1, num_rois))
    corner = torch.from_numpy(generator.uniform(-10, 30, (num_rois, 2)))
    size = torch.from_numpy(np.exp(generator.uniform(np.log(0.5), np.log(90), (num_rois, 2))))
    boxes = torch.cat([corner, corner + size], dim=1).float()
    boxes[::3] = (boxes[::3] * 2).round() / 2
    boxes[::7] = torch.tensor([0.0, 0.0, 56.0, 56.0])
    return polygons, boxes, image_index, gt_index


def _paste_arguments(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor, int, int]:
    boxes = torch.cat([random_boxes(40, 61, 83, seed=0, reach=1.0), extreme_boxes()])
    masks = smooth_masks(len(boxes), 28, seed=0)
    return masks.to(device, dtype), boxes.to(device), 61, 83


def _paste_custom_ops(device: torch.device) -> list:
    masks, boxes, height, width = _paste_arguments(device, torch.float32, torch.contiguous_format)
    op = torch.ops.detector.paste_masks.default
    return [(op, (masks, boxes, height, width, 0.5)), (op, (masks[:0], boxes[:0], 5, 6, 0.5))]


def _decoded_rle(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    encodings = masks_to_rle(masks, boxes, height, width)
    return torch.from_numpy(coco_mask.decode(encodings)).permute(2, 0, 1).bool().to(masks.device)


def _scene_arguments(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    polygons, boxes, image_index, gt_index = random_scene(seed=0)
    boxes = torch.cat([boxes, extreme_boxes()])
    image_index, gt_index = (F.pad(x, (0, len(boxes) - len(x))) for x in (image_index, gt_index))
    tensors = (polygons.edges, polygons.offsets, boxes, image_index, gt_index)
    return *(tensor.to(device) for tensor in tensors), polygons.max_edges


def _rasterize(edges, offsets, boxes, image_index, gt_index, max_edges):
    polygons = Polygons(edges, offsets, max_edges)
    return rasterize_polygons(polygons, boxes, image_index, gt_index, 28)


def _reference_rasterize(edges, offsets, boxes, image_index, gt_index, max_edges):
    return reference_rasterize_polygons(edges, offsets, boxes, image_index, gt_index, 28)


def _rasterize_custom_ops(device: torch.device) -> list:
    arguments = _scene_arguments(device, torch.float32, torch.contiguous_format)
    op = torch.ops.detector.rasterize_polygons.default
    no_rois = (*arguments[:2], *(tensor[:0] for tensor in arguments[2:5]), arguments[5])
    return [(op, (*arguments, 28)), (op, (*no_rois, 14))]


CASES = [
    OpCase(
        name="paste_masks",
        make=_paste_arguments,
        op=paste_masks,
        reference=reference_paste_masks,
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        exact=True,
        custom_ops=_paste_custom_ops,
    ),
    OpCase(
        name="masks_to_rle",
        make=_paste_arguments,
        op=_decoded_rle,
        reference=reference_paste_masks,
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        exact=True,
        capturable=False,
        traceable=False,
    ),
    OpCase(
        name="rasterize_polygons",
        make=_scene_arguments,
        op=_rasterize,
        reference=_reference_rasterize,
        exact=True,
        custom_ops=_rasterize_custom_ops,
    ),
]
