"""The detections of a whole dataset, collected batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from detector.results import to_results
from detector.structures import Batch, Detections

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex


class DetectionCollector:
    """What evaluators have in common: records in COCO's results format, by image.

    Args:
        index: the dataset; every image of it has to be seen before the evaluation.
    """

    def __init__(self, index: AnnotationIndex) -> None:
        self._index = index
        self.reset()

    def reset(self) -> None:
        """Forget the detections."""
        self._results: dict[int, list[dict[str, Any]]] = {}

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
        new = [result for result in found if result.image_id not in self._results]
        self.merge({result.image_id: result.to_coco() for result in new})

    def state(self) -> dict[int, list[dict[str, Any]]]:
        """The results so far by image id: plain values that can be sent to another process."""
        return self._results

    def merge(self, state: dict[int, list[dict[str, Any]]]) -> None:
        """Take in the state of another evaluator; images that both saw count once."""
        for image_id, records in state.items():
            self._results.setdefault(image_id, records)

    def _records_by_image(self) -> list[list[dict[str, Any]]]:
        """The records of every image in the dataset's order.

        Raises:
            ValueError: when images of the dataset were not seen, naming them.
        """
        image_ids = np.asarray(self._index.image_ids).tolist()
        missing = [image_id for image_id in image_ids if image_id not in self._results]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(image_ids)} images of {self._index.source_file} were not"
                f" evaluated, the first of them {missing[:5]}: pass every image to update()"
            )
        return [self._results[image_id] for image_id in image_ids]
