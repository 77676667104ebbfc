"""The detections of a dataset as flat arrays: no Python object per detection.

Masks are COCO's compressed run lengths from the moment an image is done, their texts one after
another in one buffer. A hundred detections with masks in each of COCO val's 5000 images take about
a tenth of a gigabyte, where records as Python's dicts take ten times as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from detector.data.rings import offsets_of, ranges

# Records are made for this many detections at a time.
CHUNK = 10_000


@dataclass(frozen=True)
class ImageDetections:
    """The n detections of an image.

    Attributes:
        boxes: ``(n, 4)`` float64 ``(x, y, width, height)`` in pixels of the image file.
        labels: ``(n,)`` int32 in ``0..K-1``.
        scores: ``(n,)`` float64.
        size: ``(height, width)`` of the image file.
        counts: the texts of the masks' run lengths one after another, ``None`` without masks.
        count_ends: ``(n,)`` int64, where each ends; ``None`` without masks.
        keypoints: ``(n, 3 J)`` float64 as COCO's results have them, ``None`` without.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    size: tuple[int, int]
    counts: bytes | None = None
    count_ends: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


def pack_records(
    records: Sequence[dict[str, Any]], labels: np.ndarray, size: tuple[int, int]
) -> ImageDetections:
    """Records in COCO's results format of one image, of which all or none have masks, as arrays.

    Args:
        records: n of them; a segmentation must be compressed run lengths.
        labels: ``(n,)`` ints.
        size: ``(height, width)`` of the image file.
    """
    counts = ends = keypoints = None
    if records and "segmentation" in records[0]:
        texts = [record["segmentation"]["counts"].encode("ascii") for record in records]
        counts, ends = b"".join(texts), np.cumsum([len(text) for text in texts])
    if records and "keypoints" in records[0]:
        keypoints = np.array([record["keypoints"] for record in records], dtype=np.float64)
    return ImageDetections(
        np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4),
        np.asarray(labels, dtype=np.int32),
        np.array([record["score"] for record in records], dtype=np.float64),
        size,
        counts,
        ends,
        keypoints,
    )


@dataclass(frozen=True, eq=False)
class DetectionTable(Sequence):
    """n detections in N images; as a sequence, records in COCO's results format made when read.

    Attributes:
        image_ids: ``(N,)`` int64.
        sizes: ``(N, 2)`` int64 ``(height, width)``.
        offsets: ``(N + 1,)`` int64; those of image ``i`` are ``offsets[i]:offsets[i + 1]``.
        boxes, labels, scores: ``(n, 4)``, ``(n,)``, ``(n,)`` as in :class:`ImageDetections`.
        category_ids: ``(K,)`` int64.
        counts: uint8, the texts of all masks, or ``None`` without masks.
        count_offsets: ``(n + 1,)`` int64 into ``counts``.
        keypoints: ``(n, 3 J)`` float64, or ``None``.
        file_names: N names that the records tell too, none by default.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    counts: np.ndarray | None = None
    count_offsets: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    file_names: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        return self.counts is not None

    @property
    def num_bytes(self) -> int:
        """What the arrays take."""
        arrays = (getattr(self, name) for name in self.__dataclass_fields__)
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    def images(self) -> np.ndarray:
        """``(n,)`` int64, the position of each detection's image."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    def select(self, keep: np.ndarray) -> DetectionTable:
        """The detections where ``keep``, ``(n,)`` bool, is true, of the same images."""
        kept = np.flatnonzero(keep)
        counts = count_offsets = None
        if self.counts is not None:
            lengths = np.diff(self.count_offsets)[kept]
            counts = self.counts[ranges(self.count_offsets[kept], lengths)]
            count_offsets = offsets_of(lengths)
        per_image = np.bincount(self.images()[kept], minlength=len(self.image_ids))
        return replace(
            self,
            offsets=offsets_of(per_image),
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            scores=self.scores[kept],
            counts=counts,
            count_offsets=count_offsets,
            keypoints=None if self.keypoints is None else self.keypoints[kept],
        )

    def rles(self, which: np.ndarray) -> list[dict[str, Any]]:
        """The masks of the detections ``which``, ``(m,)`` ints, with ``counts`` as bytes."""
        if len(which) == 0:
            return []
        text = memoryview(self.counts)
        starts, ends = self.count_offsets[which].tolist(), self.count_offsets[which + 1].tolist()
        images = np.searchsorted(self.offsets, which, side="right") - 1
        sizes = self.sizes[images].tolist()
        return [
            {"size": size, "counts": bytes(text[start:end])}
            for size, start, end in zip(sizes, starts, ends, strict=True)
        ]

    def records(self, which: np.ndarray) -> list[dict[str, Any]]:
        """The detections ``which``, ``(m,)`` ints, in COCO's results format: plain values."""
        images = np.searchsorted(self.offsets, which, side="right") - 1
        records = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(
                self.image_ids[images].tolist(),
                self.category_ids[self.labels[which]].tolist(),
                self.boxes[which].tolist(),
                self.scores[which].tolist(),
                strict=True,
            )
        ]
        if self.counts is not None:
            for record, rle in zip(records, self.rles(which), strict=True):
                record["segmentation"] = rle | {"counts": rle["counts"].decode("ascii")}
        if self.keypoints is not None:
            for record, keypoints in zip(records, self.keypoints[which].tolist(), strict=True):
                record["keypoints"] = keypoints
        if self.file_names:
            for record, image in zip(records, images.tolist(), strict=True):
                record["file_name"] = self.file_names[image]
        return records

    def write_json(self, file: BinaryIO) -> None:
        """The records as a JSON list with a compact line for each."""
        file.write(b"[")
        separator = b""
        for record in self:
            file.write(separator + json.dumps(record, separators=(",", ":")).encode())
            separator = b",\n"
        file.write(b"]\n")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return self.records(np.arange(len(self))[key])
        return self.records(np.array([range(len(self))[key]]))[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), CHUNK):
            yield from self.records(np.arange(start, min(start + CHUNK, len(self))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def join_images(
    image_ids: np.ndarray, category_ids: np.ndarray, per_image: Sequence[ImageDetections]
) -> DetectionTable:
    """One table of the detections of N images, of which all or none that have any have masks."""
    lengths = np.array([len(found) for found in per_image], dtype=np.int64)
    some = [found for found in per_image if len(found)]
    counts = count_offsets = keypoints = None
    if some and some[0].counts is not None:
        counts = np.frombuffer(b"".join(found.counts for found in some), dtype=np.uint8)
        texts = [np.diff(found.count_ends, prepend=0) for found in some]
        count_offsets = offsets_of(np.concatenate(texts))
    if some and some[0].keypoints is not None:
        keypoints = np.concatenate([found.keypoints for found in some])
    return DetectionTable(
        np.asarray(image_ids, dtype=np.int64),
        np.array([found.size for found in per_image], dtype=np.int64).reshape(-1, 2),
        offsets_of(lengths),
        np.concatenate([found.boxes for found in some] or [np.zeros((0, 4))]),
        np.concatenate([found.labels for found in some] or [np.zeros(0, np.int32)]),
        np.concatenate([found.scores for found in some] or [np.zeros(0)]),
        np.asarray(category_ids, dtype=np.int64),
        counts,
        count_offsets,
        keypoints,
    )
