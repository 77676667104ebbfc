"""Reads detections in COCO's results format, whoever made them.

https://cocodataset.org/#format-results: a list of records ``image_id``, ``category_id``, ``score``
and of ``bbox`` (x, y, width, height), ``segmentation`` (run lengths, or polygons) and ``keypoints``
what was found. Where images have no ids, as in formats other than COCO's, ``file_name`` tells the
image: as in the dataset, or its last part where that is of one image alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from detector.data.json_files import read_json
from detector.evaluation.detection_table import ImageDetections, pack_records

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

FORMAT = (
    '[{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9, '
    '"segmentation": {"size": [height, width], "counts": "..."}}, ...]'
)
_LISTED = 5


@dataclass(frozen=True)
class ResultsFile:
    """What a file holds.

    Attributes:
        found: the detections of every image of the dataset by its id.
        kinds: of ``"box"``, ``"mask"`` and ``"keypoint"``, what every record has.
        notes: what may be a mistake and need not be.
    """

    found: dict[int, ImageDetections]
    kinds: list[str]
    notes: list[str] = field(default_factory=list)


def read_results(path: Path | str, index: AnnotationIndex) -> ResultsFile:
    """Reads and checks a results file against its dataset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no results file, or records are not what they should be: what, and of
            which record, counted from 0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give detections=FILE.json")
    records = read_json(path)
    if isinstance(records, list):
        records = _identified(path, records, index)
    else:
        hint = ""
        if isinstance(records, dict) and "annotations" in records:
            hint = "; with 'annotations' in it this looks like ground truth: annotations=FILE"
        raise ValueError(
            f"{path} holds a {type(records).__name__}, no list of detections{hint}. COCO's results "
            f"format is {FORMAT}"
        )
    _check(path, _plain_problems(records))
    _check_ids(path, records, index)
    kinds = _kinds(path, records)
    sizes = {
        int(image_id): (int(height), int(width))
        for image_id, height, width in zip(
            index.image_ids, index.heights, index.widths, strict=True
        )
    }
    num_keypoints = index.num_keypoints if "keypoint" in kinds else 0
    _check(path, _shape_problems(records, kinds, sizes, num_keypoints))
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        of_image[record["image_id"]].append(_standard(record, kinds, sizes))
    label_of = {int(category): k for k, category in enumerate(index.category_ids)}
    found = {
        image_id: pack_records(
            of_image[image_id], [label_of[r["category_id"]] for r in of_image[image_id]], size
        )
        for image_id, size in sizes.items()
    }
    return ResultsFile(found, kinds, _notes(found))


def _identified(path: Path, records: list[Any], index: AnnotationIndex) -> list[Any]:
    """Records with the ids of the images that they name; in COCO's format an id of theirs stays.

    Raises:
        ValueError: no image has the name, or several.
    """

    def named(record: Any) -> bool:
        has_name = isinstance(record, dict) and isinstance(record.get("file_name"), str)
        return has_name and ("image_id" not in record or index.source_format != "coco")

    if not any(map(named, records)):
        return records
    names = [index.file_name(i).replace("\\", "/") for i in range(len(index))]
    ids = np.asarray(index.image_ids).tolist()
    of_name = dict(zip(names, ids, strict=True))
    of_last = defaultdict(set)
    for name, image_id in of_name.items():
        of_last[name.rpartition("/")[2]].add(image_id)
    problems, found = [], []
    for number, record in enumerate(records):
        if named(record):
            name = record["file_name"].replace("\\", "/")
            fitting = {of_name[name]} if name in of_name else of_last.get(name, set())
            if len(fitting) != 1:
                what = f"that {len(fitting)} images have" if fitting else "that no image has"
                problems.append((number, f"file_name is {name!r}, a name {what}"))
                continue
            record = record | {"image_id": next(iter(fitting))}
        found.append(record)
    _check(path, problems, f"{index.source_file} has images such as {names[0]!r}")
    return found


def _plain_problems(records: list[Any]):
    """``(number, what is wrong)`` of records whose ids and scores cannot be read."""
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            yield number, f"is {record!r:.60}, no record"
            continue
        for key in ("image_id", "category_id"):
            if key not in record:
                yield number, f"has no {key}"
            elif type(record[key]) is not int:
                yield number, f"{key} is {record[key]!r:.60}, no whole number"
        if "score" not in record:
            yield number, "has no score, by which detections are ordered"
        elif not _are_numbers([record["score"]], 1):
            yield number, f"score is {record['score']!r:.60}, no finite number"
        if not any(record.get(key) for key in ("bbox", "segmentation", "keypoints")):
            yield number, "has neither bbox nor segmentation nor keypoints"


def _shape_problems(
    records: list[dict], kinds: list[str], sizes: dict[int, tuple[int, int]], num_keypoints: int
):
    for number, record in enumerate(records):
        box = record.get("bbox")
        if "box" in kinds and box is not None:
            if not _are_numbers(box, 4):
                yield number, f"bbox is {box!r:.60}, not [x, y, width, height]"
            elif min(box[2:]) < 0:
                yield number, f"bbox {box} has a negative width or height"
        if "mask" in kinds:
            problem = _mask_problem(record["segmentation"], sizes[record["image_id"]])
            if problem:
                yield number, problem
        if "keypoint" in kinds and not _are_numbers(record["keypoints"], 3 * num_keypoints):
            yield number, f"keypoints are not {num_keypoints} times x, y, score"


def _mask_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    if isinstance(segmentation, list):
        good = all(
            isinstance(ring, list) and len(ring) >= 6 and _are_numbers(ring, len(ring) // 2 * 2)
            for ring in segmentation
        )
        return None if good else "segmentation is no list of polygons [x1, y1, x2, y2, ...]"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return f"segmentation is {segmentation!r:.60}; run lengths have size and counts"
    if list(segmentation["size"]) != list(size):
        return (
            f"segmentation has the size {segmentation['size']}, but the image's [height, width] is "
            f"{list(size)}"
        )
    if sum(_lengths(segmentation)) != size[0] * size[1]:
        return "segmentation: its run lengths do not fill the image"
    return None


def _lengths(segmentation: dict[str, Any]) -> list[int]:
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return counts if _are_numbers(counts, len(counts)) and min(counts, default=0) >= 0 else []
    if not isinstance(counts, str) or not counts.isascii():
        return []
    # Decoding what is broken would read beyond memory, so it is done here.
    lengths, value, shift = [], 0, 0
    for character in counts.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 50:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            if len(lengths) > 2:
                value += lengths[-2]
            if value < 0:
                return []
            lengths.append(value)
            value = shift = 0
    return lengths if not shift else []


def _kinds(path: Path, records: list[dict]) -> list[str]:
    kinds = []
    for kind, key in (("box", "bbox"), ("mask", "segmentation"), ("keypoint", "keypoints")):
        lacking = [number for number, record in enumerate(records) if not record.get(key)]
        if len(lacking) < len(records) and lacking and key != "bbox":
            raise ValueError(
                f"{path}: record {lacking[0]} and {len(lacking) - 1} others of {len(records)} have "
                f"no {key}, though some have; give all of them or none"
            )
        if len(lacking) < len(records):
            kinds.append(kind)
    if "mask" in kinds and "box" not in kinds:
        kinds.insert(0, "box")  # the masks' own
    return kinds or ["box"]


def _check_ids(path: Path, records: list[dict], index: AnnotationIndex) -> None:
    for key, known in (("image_id", index.image_ids), ("category_id", index.category_ids)):
        given = {record[key] for record in records}
        unknown = sorted(given - set(np.asarray(known).tolist()))
        if not unknown:
            continue
        what = key.removesuffix("_id")
        remedy = "give the results of this dataset's images"
        if key == "category_id":
            remedy = f"its categories are {np.asarray(known).tolist()[:10]}"
            if given <= set(range(len(known))):
                remedy += "; counted from 0, are these a model's labels? map them to the ids"
        raise ValueError(
            f"{path}: {len(unknown)} {what} ids are not in {index.source_file}, the first of them "
            f"{unknown[:_LISTED]}; {remedy}"
        )


def _check(path: Path, problems: Any, remedy: str = f"COCO's results format is {FORMAT}") -> None:
    problems = list(problems)
    if problems:
        listed = "\n".join(f"  record {number}: {what}" for number, what in problems[:_LISTED])
        more = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(f"{path}: {len(problems)} problems\n{listed}{more}\n{remedy}")


def _standard(
    record: dict[str, Any], kinds: list[str], sizes: dict[int, tuple[int, int]]
) -> dict[str, Any]:
    """A record with box, compressed run lengths as text, and what else is evaluated."""
    kept = {key: record[key] for key in ("category_id", "score")}
    height, width = sizes[record["image_id"]]
    if "mask" in kinds:
        segmentation = record["segmentation"]
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        kept["segmentation"] = {"size": [height, width], "counts": text}
    if record.get("bbox"):
        kept["bbox"] = record["bbox"]
    elif "mask" in kinds:
        kept["bbox"] = coco_mask.toBbox(kept["segmentation"]).tolist()
    else:
        kept["bbox"] = [0.0, 0.0, 0.0, 0.0]  # keypoints alone: boxes are not evaluated
    if "keypoint" in kinds:
        kept["keypoints"] = record["keypoints"]
    return kept


def _notes(found: dict[int, ImageDetections]) -> list[str]:
    notes = []
    empty = sum(not len(each) for each in found.values())
    if empty:
        notes.append(f"{empty} of {len(found)} images have no detections.")
    beyond = total = 0
    for each in found.values():
        height, width = each.size
        corners = each.boxes[:, :2] + each.boxes[:, 2:]
        beyond += int((corners > (width + 1, height + 1)).any(1).sum())
        total += len(each)
    if beyond > 0.2 * total:
        notes.append(
            f"{beyond} of {total} boxes reach beyond their image: are they (x1, y1, x2, y2)? "
            "COCO's are (x, y, width, height)."
        )
    return notes


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )
