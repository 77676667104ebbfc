"""Objects annotated twice, or as two things, or whose mask is not where their box is."""

from __future__ import annotations

import numpy as np
import torch

from detector.data.doctor.findings import Finding, Record, Spot, name_image, name_object
from detector.data.index import AnnotationIndex
from detector.data.rings import next_in_ring
from detector.data.sample import select_rings
from detector.ops.polygons import rasterize_polygons
from detector.structures import Polygons

# Two people draw a box of an object with an IoU of about .9.
SAME_IOU = 0.9
SAME_MASK_IOU = 0.75
CELLS = 48  # a side, for the overlap of two masks
# A box may be looser than its mask by these: pixels, and the share of the longer side.
LOOSE_PIXELS, LOOSE_SHARE = 3.0, 0.2
# A thing of which more is in an image cannot all be found by default.
COUNTED_DETECTIONS = 100


def check_objects(split: str, index: AnnotationIndex) -> list[Finding]:
    """What is odd about the objects of a split."""
    pairs = _same_places(index)
    same_class = [pair for pair in pairs if index.labels[pair[0]] == index.labels[pair[1]]]
    other_class = [pair for pair in pairs if index.labels[pair[0]] != index.labels[pair[1]]]
    found = [
        Finding(
            "duplicate_annotation",
            "warning",
            "Objects annotated twice",
            "Two boxes of one class on one object: the model is asked for both, and in evaluation "
            "the second cannot be found without a duplicate detection.",
            "Remove the second annotation of each pair.",
            [_pair(split, index, *pair) for pair in same_class],
        ),
        Finding(
            "conflicting_classes",
            "warning",
            "One object under two classes",
            "Two classes claim the same place: one of them is wrong, and each step unlearns what "
            "the other taught.",
            "Keep the annotation whose class is right.",
            [_pair(split, index, *pair) for pair in other_class],
        ),
        Finding(
            "mask_off_box",
            "warning",
            "Masks that are not where their boxes are",
            f"A side of the box lies more than {LOOSE_SHARE:.0%} of its length from the mask: "
            "boxes and masks teach different things.",
            "Draw the box around the mask, or correct the mask.",
            _masks_off_boxes(split, index),
        ),
    ]
    if split == "val":
        found.append(
            Finding(
                "crowded_image",
                "note",
                f"Images of more than {COUNTED_DETECTIONS} objects",
                f"The evaluation counts the {COUNTED_DETECTIONS} best detections of an image, so "
                "that not all can be found.",
                "Raise it together with the detections of the model: "
                "evaluation.max_detections=[1,10,300].",
                _crowded(split, index),
            )
        )
    return [finding for finding in found if finding.records]


def _same_places(index: AnnotationIndex) -> list[tuple[int, int, float]]:
    """Pairs of annotations whose boxes, and masks, are nearly the same, with the boxes' IoU."""
    pairs = []
    offsets = index.annotation_offsets
    for image in np.flatnonzero(np.diff(offsets) > 1):
        start, stop = offsets[image : image + 2]
        own = start + np.flatnonzero(~index.crowd[start:stop])
        boxes = index.boxes[own].astype(np.float64)
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        common = (high - low).clip(0).prod(2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = common / (areas[:, None] + areas[None] - common)
        for one, other in zip(*np.nonzero(np.triu(iou >= SAME_IOU, 1)), strict=True):
            first, second = int(own[one]), int(own[other])
            if _masks_agree(index, first, second):
                pairs.append((first, second, float(iou[one, other])))
    return pairs


def _masks_agree(index: AnnotationIndex, first: int, second: int) -> bool:
    """Whether two annotations have the same mask; true where one has none.

    Two crossing sticks have the same box.
    """
    rings = np.diff(index.ring_offsets)
    if not rings[first] or not rings[second]:
        return True
    _, vertex_offsets, vertices = select_rings(
        index.ring_offsets, index.vertex_offsets, index.vertices, np.array([first, second])
    )
    end = vertex_offsets[rings[first]]
    polygons = Polygons(
        torch.from_numpy(
            np.concatenate([vertices, vertices[next_in_ring(vertex_offsets)]], 1)[None]
        ),
        torch.tensor([[0, end, len(vertices)]]),
        int(max(end, len(vertices) - end)),
    )
    box = torch.tensor(np.concatenate([vertices.min(0), vertices.max(0)])[None]).expand(2, 4)
    masks = rasterize_polygons(
        polygons,
        box.float().contiguous(),
        torch.zeros(2, dtype=torch.int64),
        torch.arange(2),
        CELLS,
    ).bool()
    union = (masks[0] | masks[1]).sum()
    return bool((masks[0] & masks[1]).sum() >= SAME_MASK_IOU * union)


def _pair(split: str, index: AnnotationIndex, first: int, second: int, iou: float) -> Record:
    image = int(np.searchsorted(index.annotation_offsets, first, side="right")) - 1
    called = name_object(index, first), name_object(index, second)
    names = [index.category_names[index.labels[place]] for place in (first, second)]
    remedy = f"remove {called[1]}"
    if names[0] != names[1]:
        remedy = f"remove {called[0]} or {called[1]}"
    return Record(
        f"{split}: {name_image(index, image)}",
        f'{called[0]}, "{names[0]}", and {called[1]}, "{names[1]}", have one place (IoU {iou:.2f})',
        remedy,
        (Spot(split, image, (first, second)),),
    )


def _masks_off_boxes(split: str, index: AnnotationIndex) -> list[Record]:
    rows = np.flatnonzero((np.diff(index.ring_offsets) > 0) & ~index.crowd)
    if not len(rows):
        return []
    starts = index.vertex_offsets[index.ring_offsets[:-1]][rows]
    stops = index.vertex_offsets[index.ring_offsets[1:]][rows]
    has_vertices = stops > starts
    rows, starts, stops = rows[has_vertices], starts[has_vertices], stops[has_vertices]
    # Between the rows that are looked at, others may lie: the odd places are dropped.
    places = np.stack([starts, stops], 1).ravel()
    padded = np.concatenate([index.vertices, index.vertices[-1:]])
    low = np.minimum.reduceat(padded, places)[::2]
    high = np.maximum.reduceat(padded, places)[::2]
    image = np.searchsorted(index.annotation_offsets, rows, side="right") - 1
    limit = np.stack([index.widths[image], index.heights[image]], 1)
    extents = np.concatenate([low.clip(0, limit), high.clip(0, limit)], 1)
    boxes = index.boxes[rows]
    off = np.abs(extents - boxes)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], extents[:, 2:] - extents[:, :2])
    allowed = np.maximum(LOOSE_PIXELS, LOOSE_SHARE * np.tile(sides, 2))
    records = []
    for place in np.flatnonzero((off > allowed).any(1)):
        row, i = int(rows[place]), int(image[place])
        shown = ", ".join(f"{value:.0f}" for value in extents[place])
        boxed = ", ".join(f"{value:.0f}" for value in boxes[place])
        records.append(
            Record(
                f"{split}: {name_image(index, i)}",
                f'{name_object(index, row)}, "{index.category_names[index.labels[row]]}"'
                f": its mask fills ({shown}), its box is ({boxed})",
                None,
                (Spot(split, i, (row,)),),
            )
        )
    return records


def _crowded(split: str, index: AnnotationIndex) -> list[Record]:
    objects = np.concatenate([[0], np.cumsum(~index.crowd)])
    counts = np.diff(objects[index.annotation_offsets])
    return [
        Record(
            f"{split}: {name_image(index, int(image))}",
            f"{counts[image]} objects",
            None,
            (Spot(split, int(image)),),
        )
        for image in np.flatnonzero(counts > COUNTED_DETECTIONS)
    ]
