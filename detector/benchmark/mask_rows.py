"""Masks: targets from polygons, and detections to run lengths, beside the usual ways."""

from __future__ import annotations

import math

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from detector.benchmark.comparison import Comparison
from detector.benchmark.inputs import generator, random_boxes
from detector.ops.masks import masks_to_rle
from detector.ops.polygons import rasterize_polygons
from detector.structures import Polygons

HEIGHT, WIDTH = 800, 1333
MASK_SIZE = 28


def mask_rows(device: torch.device) -> list[Comparison]:
    """Comparisons of the mask ops."""
    return [_run_lengths(device, 100), _mask_targets(device, num_rois=128, num_gts=16)]


def _run_lengths(device: torch.device, num_detections: int) -> Comparison:
    boxes = random_boxes(num_detections, seed=11).clamp(max=WIDTH).to(device)
    # Smooth blobs, as a mask head gives them.
    coarse = torch.rand(num_detections, 1, 6, 6, generator=generator(12))
    masks = torch.nn.functional.interpolate(coarse, (MASK_SIZE, MASK_SIZE), mode="bicubic")
    masks = masks[:, 0].clamp(0, 1).to(device)

    def theirs() -> list[dict]:
        pasted = paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))[:, 0] >= 0.5
        pasted = np.asarray(pasted.cpu().numpy().transpose(1, 2, 0), np.uint8, order="F")
        return coco_mask.encode(pasted)

    def check(ours: list[dict], theirs: list[dict]) -> None:
        # torchvision rounds boxes to whole pixels before it pastes.
        pairs = zip(ours, theirs, strict=True)
        overlap = [coco_mask.iou([mine], [other], [0])[0, 0] for mine, other in pairs]
        assert np.median(overlap) > 0.8

    return Comparison(
        "masks_to_rle",
        f"{num_detections} masks {MASK_SIZE}x{MASK_SIZE} into {HEIGHT}x{WIDTH}",
        lambda: masks_to_rle(masks, boxes, HEIGHT, WIDTH),
        {"torchvision paste, pycocotools encode": theirs},
        check,
        with_memory=True,
    )


def _mask_targets(device: torch.device, num_rois: int, num_gts: int) -> Comparison:
    gt_boxes = random_boxes(num_gts, seed=21)
    polygons = [_blob(box, num_vertices=60) for box in gt_boxes]
    gt_index = torch.arange(num_rois) % num_gts
    sides = (gt_boxes[:, 2:] - gt_boxes[:, :2])[gt_index].repeat(1, 2)
    rois = gt_boxes[gt_index] + sides * 0.1 * torch.randn(num_rois, 4, generator=generator(22))
    rois[:, 2:] = torch.maximum(rois[:, 2:], rois[:, :2] + 2)

    edges = torch.cat([torch.cat((ring, ring.roll(-1, 0)), 1) for ring in polygons])[None]
    offsets = torch.arange(0, 60 * num_gts + 1, 60)[None]
    packed = Polygons(edges, offsets, max_edges=60).to(device)
    on_device = rois.to(device)
    image_index, gt_on_device = torch.zeros_like(gt_index).to(device), gt_index.to(device)

    def pycocotools() -> Tensor:
        targets = []
        for roi, gt in zip(rois.numpy(), gt_index.tolist(), strict=True):
            cell = (roi[2:] - roi[:2]) / MASK_SIZE
            ring = (polygons[gt].numpy() - roi[:2]) / cell
            runs = coco_mask.frPyObjects([ring.flatten().tolist()], MASK_SIZE, MASK_SIZE)
            targets.append(torch.from_numpy(coco_mask.decode(runs)[..., 0]))
        return torch.stack(targets).to(device, torch.float32)

    bitmaps = torch.stack([_bitmap(ring) for ring in polygons]).to(device)

    def from_bitmaps() -> Tensor:
        return project_masks_on_boxes(bitmaps, on_device, gt_on_device, MASK_SIZE)

    def check(ours: Tensor, theirs: Tensor) -> None:
        # The others round: vertices to fractions of a cell, RoIs to the grid of the bitmap.
        assert (ours != theirs.round()).float().mean() < 0.1

    return Comparison(
        "rasterize_polygons",
        f"{num_rois} RoIs, polygons of 60 vertices, {MASK_SIZE}x{MASK_SIZE}",
        lambda: rasterize_polygons(packed, on_device, image_index, gt_on_device, MASK_SIZE),
        {
            "pycocotools, polygon by polygon": pycocotools,
            "torchvision roi_align of bitmaps, bitmaps given": from_bitmaps,
        },
        check,
        with_memory=True,
    )


def _blob(box: Tensor, num_vertices: int) -> Tensor:
    """A star-shaped ring ``(V, 2)`` within a box."""
    angle = torch.arange(num_vertices) * (2 * math.pi / num_vertices)
    radius = 0.5 * (0.75 + 0.25 * torch.sin(5 * angle))
    ring = torch.stack((angle.cos() * radius, angle.sin() * radius), 1) + 0.5
    return box[:2] + ring * (box[2:] - box[:2])


def _bitmap(ring: Tensor) -> Tensor:
    runs = coco_mask.frPyObjects([ring.flatten().tolist()], HEIGHT, WIDTH)
    return torch.from_numpy(coco_mask.decode(runs)[..., 0])
