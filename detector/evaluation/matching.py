"""Which detection finds which object, and where the others lie, at one IoU threshold.

Of an image's detections the best-scored one chooses first: of its own class the free object that it
overlaps most. By VOC's rules it can only have the one that it overlaps most, and is a duplicate
where that is taken. What curves, confusion and error kinds are counted from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.voc_boxes import inclusive_iou, to_inclusive

# Of an image, over all classes, as Bolya et al. and COCO's detectors have it; VOC counts all.
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """What became of n detections and m objects, crowd regions not counted among the objects.

    Detections stand image by image, best first, the first 100 of each; objects image by image.
    Difficult objects of VOC stand for crowd regions; what overlaps one by the threshold is in it.

    Attributes:
        detections: ``(n,)`` int64, their places in the table.
        images: ``(n,)`` int64, the position of each one's image.
        labels, scores: ``(n,)`` as in the table.
        found: ``(n,)`` int64, the object that a detection finds, -1 where none.
        ignored: ``(n,)`` bool, finds no object and lies in a crowd region of its class.
        own_iou: ``(n,)``, the highest IoU with an object of its class in its image, 0 without.
        own_object: ``(n,)`` int64, which; -1 without.
        other_iou, other_object: likewise with objects of other classes.
        in_crowd: ``(n,)`` bool, more than half of it lies in a crowd region of any class.
        object_places: ``(m,)`` int64, places in the ground truth's annotations.
        object_images, object_labels: ``(m,)`` int64.
        finders: ``(m,)`` int64, the detection that finds each object, -1 where none.
        ious: a list by image of ``(n_i, m_i)`` IoUs, for a matching without classes.
    """

    detections: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    found: np.ndarray
    ignored: np.ndarray
    own_iou: np.ndarray
    own_object: np.ndarray
    other_iou: np.ndarray
    other_object: np.ndarray
    in_crowd: np.ndarray
    object_places: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray
    finders: np.ndarray
    ious: list[np.ndarray]


def match(
    kind: str,
    truth: dict[str, list[dict[str, Any]]],
    table: DetectionTable,
    iou_threshold: float = 0.5,
) -> Matches:
    """Matches the detections of every image.

    Args:
        kind: ``"box"``, ``"mask"``, or ``"voc"``: boxes by VOC's rules.
        truth: ``images``, ``categories`` in the order of the labels and ``annotations``; masks are
            compressed run lengths or polygons.
        table: the detections.
        iou_threshold: the least IoU of a found object.
    """
    label_of = {category["id"]: k for k, category in enumerate(truth["categories"])}
    places: dict[int, list[int]] = {image["id"]: [] for image in truth["images"]}
    for place, annotation in enumerate(truth["annotations"]):
        places[annotation["image_id"]].append(place)
    most = None if kind == "voc" else MAX_DETECTIONS
    match_image = _match_image_as_voc if kind == "voc" else _match_image
    parts, ious = [], []
    num_detections = num_objects = 0
    for i, image_id in enumerate(table.image_ids.tolist()):
        own = places[image_id]
        is_crowd = np.array([truth["annotations"][place]["iscrowd"] for place in own], dtype=bool)
        order = np.argsort(-table.scores[table.offsets[i] : table.offsets[i + 1]], kind="stable")
        which = table.offsets[i] + order[:most]
        overlap = _overlaps(kind, truth, own, is_crowd, table, which, table.sizes[i])
        gt_labels = np.array(
            [label_of[truth["annotations"][place]["category_id"]] for place in own], dtype=np.int64
        )
        labels = table.labels[which].astype(np.int64)
        part = match_image(overlap, labels, gt_labels, is_crowd, iou_threshold)
        for name, first in (
            ("found", num_objects),
            ("own_object", num_objects),
            ("other_object", num_objects),
            ("finders", num_detections),
        ):
            part[name] = np.where(part[name] >= 0, part[name] + first, -1)
        part |= {
            "detections": which,
            "images": np.full(len(which), i),
            "labels": labels,
            "scores": table.scores[which],
            "object_places": np.array(own, dtype=np.int64)[~is_crowd],
            "object_images": np.full(np.count_nonzero(~is_crowd), i),
            "object_labels": gt_labels[~is_crowd],
        }
        parts.append(part)
        ious.append(overlap[:, ~is_crowd])
        num_detections += len(which)
        num_objects += len(part["finders"])
    return Matches(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, ious=ious
    )


def _match_image(
    overlap: np.ndarray,
    labels: np.ndarray,
    gt_labels: np.ndarray,
    is_crowd: np.ndarray,
    iou_threshold: float,
) -> dict[str, np.ndarray]:
    """The fields of an image's n detections, best first, and m objects, numbered from 0."""
    iou, same = overlap[:, ~is_crowd], labels[:, None] == gt_labels[None, ~is_crowd]
    crowd, same_crowd = overlap[:, is_crowd], labels[:, None] == gt_labels[None, is_crowd]
    found, finders = np.full(len(iou), -1), np.full(iou.shape[1], -1)
    free = np.where(same, iou, 0.0)
    for d in np.flatnonzero((free >= iou_threshold).any(1)):
        best = int(free[d].argmax())
        if free[d, best] >= iou_threshold:
            found[d], finders[best] = best, d
            free[:, best] = 0.0
    own_iou, own_object = _best(np.where(same, iou, 0.0))
    other_iou, other_object = _best(np.where(same, 0.0, iou))
    return {
        "found": found,
        "finders": finders,
        "ignored": (found < 0) & ((crowd > iou_threshold) & same_crowd).any(1),
        "own_iou": own_iou,
        "own_object": own_object,
        "other_iou": other_iou,
        "other_object": other_object,
        "in_crowd": (crowd > 0.5).any(1),
    }


def _match_image_as_voc(
    overlap: np.ndarray,
    labels: np.ndarray,
    gt_labels: np.ndarray,
    is_difficult: np.ndarray,
    iou_threshold: float,
) -> dict[str, np.ndarray]:
    """The same, where a detection can have the object that it overlaps most and no other."""
    part = _match_image(overlap, labels, gt_labels, is_difficult, iou_threshold)
    iou, best = _best(np.where(labels[:, None] == gt_labels[None], overlap, 0.0))
    best = np.where(iou >= iou_threshold, best, -1)
    ignored = (best >= 0) & is_difficult[best] if len(gt_labels) else np.zeros(len(best), bool)
    number = np.cumsum(~is_difficult) - 1  # among the objects that count
    wanted = np.where((best >= 0) & ~ignored, number[best] if len(number) else -1, -1)
    found, finders = np.full_like(part["found"], -1), np.full_like(part["finders"], -1)
    objects, first = np.unique(wanted, return_index=True)
    objects, first = objects[objects >= 0], first[objects >= 0]
    found[first], finders[objects] = objects, first
    in_crowd = (overlap[:, is_difficult] >= iou_threshold).any(1)
    return part | {"found": found, "finders": finders, "ignored": ignored, "in_crowd": in_crowd}


def _best(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not iou.shape[1]:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    return iou.max(1), np.where(iou.max(1) > 0, iou.argmax(1), -1)


def _overlaps(
    kind: str,
    truth: dict[str, list[dict[str, Any]]],
    places: list[int],
    is_crowd: np.ndarray,
    table: DetectionTable,
    which: np.ndarray,
    size: np.ndarray,
) -> np.ndarray:
    """``(n, m)`` IoU of an image's detections and annotations; of crowds the share inside them.

    VOC's difficult objects have an IoU as the others.
    """
    if not len(which) or not places:
        return np.zeros((len(which), len(places)))
    annotations = [truth["annotations"][place] for place in places]
    if kind != "mask":
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
        if kind == "voc":
            sides = [_inclusive(found) for found in (table.boxes[which], boxes)]
            return inclusive_iou(sides[0][:, None], sides[1][None])
        return np.asarray(coco_mask.iou(table.boxes[which], boxes, is_crowd.astype(np.uint8)))
    rles = [to_rle(annotation["segmentation"], *size.tolist()) for annotation in annotations]
    return np.asarray(coco_mask.iou(table.rles(which), rles, is_crowd.astype(np.uint8)))


def _inclusive(boxes: np.ndarray) -> np.ndarray:
    return to_inclusive(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of polygons, or of run lengths of either kind."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation
