"""The ground truth of an evaluation: the dataset's own JSON, as pycocotools wants it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detector.data.writers.coco import coco_records
from detector.evaluation.backends import as_coco
from detector.evaluation.keypoints import keypoint_fields

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex


def load_ground_truth(index: AnnotationIndex) -> COCO:
    """Read the JSON behind an index again, with its original polygons, RLEs, areas and crowds.

    Of other formats the records are made from the index, with the area of their polygons.
    Only the index's images and annotations remain, so records that were skipped as damaged are in
    neither training nor evaluation; categories are those the index gives them. Annotations are
    numbered anew from 1: pycocotools takes a match with an annotation of id 0 for no match. With
    keypoints in the index every annotation has some, if only unlabelled ones.

    Raises:
        ValueError: the file is no longer what the index was made of.
    """
    if index.source_format == "coco":
        with open(index.source_file, encoding="utf-8") as file:
            source = json.load(file)
    else:
        source = {"annotations": coco_records(index)[1]}
    sizes = zip(index.image_ids, index.heights, index.widths, strict=True)
    images = {
        int(image_id): {"id": int(image_id), "height": int(height), "width": int(width)}
        for image_id, height, width in sizes
    }
    category_of_label = np.asarray(index.category_ids).tolist()
    kept = {
        annotation_id: category_of_label[label]
        for annotation_id, label in zip(
            np.asarray(index.annotation_ids).tolist(), index.labels, strict=True
        )
    }
    annotations: dict[int, dict[str, Any]] = {}
    for record in source["annotations"]:
        # Damaged records may lack anything; of several with one id the index holds the first.
        identifier = record.get("id") if isinstance(record, dict) else None
        if not isinstance(identifier, int) or identifier not in kept:
            continue
        if record["image_id"] in images and identifier not in annotations:
            image = images[record["image_id"]]
            cleaned = _clean(record, len(annotations) + 1, image)
            if index.has_keypoints:
                cleaned |= keypoint_fields(record, index.num_keypoints)
            annotations[identifier] = cleaned | {"category_id": kept[identifier]}
    if len(annotations) != len(kept):
        raise ValueError(f"{index.source_file} was changed while in use; start again")
    categories = [
        {"id": int(category_id), "name": name}
        for category_id, name in zip(index.category_ids, index.category_names, strict=True)
    ]
    return as_coco(list(images.values()), categories, list(annotations.values()))


def _clean(annotation: dict[str, Any], number: int, image: dict[str, Any]) -> dict[str, Any]:
    """The fields pycocotools reads, with what hand-made files leave out filled in."""
    x, y, width, height = annotation["bbox"]
    crowd = int(annotation.get("iscrowd", 0))
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        # A part of four numbers would be read as a box.
        segmentation = [part for part in segmentation if len(part) >= 6]
    if not segmentation and crowd:
        segmentation = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    cleaned = {
        "id": number,
        "image_id": annotation["image_id"],
        "bbox": annotation["bbox"],
        "iscrowd": crowd,
        "area": annotation.get("area"),
    }
    if segmentation:
        cleaned["segmentation"] = segmentation
    if cleaned["area"] is None:
        cleaned["area"] = _area(segmentation, image) if segmentation else width * height
    return cleaned


def _area(segmentation: list[list[float]] | dict[str, Any], image: dict[str, Any]) -> float:
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return float(coco_mask.area(encoded))
