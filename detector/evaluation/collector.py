"""The detections of a whole dataset, collected batch by batch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from detector.evaluation.detection_table import (
    DetectionTable,
    ImageDetections,
    join_images,
    pack_records,
)
from detector.results import to_results
from detector.structures import Batch, Detections

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex


class DetectionCollector:
    """What evaluators have in common: the detections of each image, masks as run lengths.

    Args:
        index: the dataset; every image of it has to be seen before the evaluation.
    """

    def __init__(self, index: AnnotationIndex) -> None:
        self._index = index
        self.reset()

    def reset(self) -> None:
        """Forget the detections."""
        self._found: dict[int, ImageDetections] = {}

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take in the detections of a batch; an image that was seen before is passed over."""
        found = to_results(
            detections,
            batch.image_sizes,
            batch.original_sizes,
            self._index.category_names,
            category_ids=self._index.category_ids,
            image_ids=batch.image_ids,
        )
        for result in found:
            if result.image_id not in self._found:
                size = (result.height, result.width)
                packed = pack_records(result.to_coco(), result.labels, size)
                self._found[result.image_id] = packed

    def state(self) -> dict[int, ImageDetections]:
        """The detections so far by image id, which can be sent to another process."""
        return self._found

    def merge(self, state: dict[int, ImageDetections]) -> None:
        """Take in the state of another evaluator; images that both saw count once."""
        for image_id, found in state.items():
            self._found.setdefault(image_id, found)

    def fill_up(self) -> None:
        """Take images that were not seen for images in which nothing was found."""
        index = self._index
        for i, image_id in enumerate(np.asarray(index.image_ids).tolist()):
            if image_id not in self._found:
                size = (int(index.heights[i]), int(index.widths[i]))
                self._found[image_id] = pack_records([], np.zeros(0, np.int64), size)

    def table(self) -> DetectionTable:
        """The detections of every image in the dataset's order.

        Raises:
            ValueError: when images of the dataset were not seen, naming them.
        """
        image_ids = np.asarray(self._index.image_ids).tolist()
        missing = [image_id for image_id in image_ids if image_id not in self._found]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(image_ids)} images of {self._index.source_file} were not"
                f" evaluated, the first of them {missing[:5]}: pass every image to update()"
            )
        per_image = [self._found[image_id] for image_id in image_ids]
        table = join_images(image_ids, self._index.category_ids, per_image)
        if self._index.source_format == "coco":
            return table
        names = [self._index.file_name(i) for i in range(len(self._index))]
        return dataclasses.replace(table, file_names=names)  # ids are the reader's own
