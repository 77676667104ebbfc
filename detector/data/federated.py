"""Which classes were looked for in an image of a federated dataset.

Gupta, Dollar, Girshick: LVIS, A Dataset for Large Vocabulary Instance Segmentation, 2019, section
3: of the many classes only some are annotated in each image, so what is not annotated need not be
absent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from detector.data.rings import offsets_of, ranges

ARRAYS = (
    "negative_offsets",
    "negative_labels",
    "not_exhaustive_offsets",
    "not_exhaustive_labels",
)


@dataclass
class FederatedLabels:
    """For N images and K classes, what an evaluation of a federated dataset has to know.

    Attributes:
        negative_offsets: ``(N + 1,)`` int64 into ``negative_labels``.
        negative_labels: int32, the classes that were looked for in an image and are not there.
        not_exhaustive_offsets: ``(N + 1,)`` int64 into ``not_exhaustive_labels``.
        not_exhaustive_labels: int32, the classes of which an image has more objects than are
            annotated, so that further detections are not wrong.
        frequencies: K letters, how many training images hold the class: ``"r"`` (rare, at most
            10), ``"c"`` (common, at most 100) or ``"f"`` (frequent); empty where the file does not
            say.
    """

    negative_offsets: np.ndarray
    negative_labels: np.ndarray
    not_exhaustive_offsets: np.ndarray
    not_exhaustive_labels: np.ndarray
    frequencies: list[str] = field(default_factory=list)

    def negatives(self, index: int) -> np.ndarray:
        """Labels of the classes that the ``index``-th image does not show."""
        return self.negative_labels[self.negative_offsets[index] : self.negative_offsets[index + 1]]

    def not_exhaustive(self, index: int) -> np.ndarray:
        """Labels of the classes that are not annotated to the last in the ``index``-th image."""
        start, stop = self.not_exhaustive_offsets[index : index + 2]
        return self.not_exhaustive_labels[start:stop]

    def keep_images(self, images: np.ndarray) -> FederatedLabels:
        """The same of the images at the positions ``images``."""
        chosen = {}
        for kind in ("negative", "not_exhaustive"):
            offsets = getattr(self, f"{kind}_offsets")
            lengths = np.diff(offsets)[images]
            chosen[f"{kind}_offsets"] = offsets_of(lengths)
            chosen[f"{kind}_labels"] = getattr(self, f"{kind}_labels")[
                ranges(offsets[images], lengths)
            ]
        return dataclasses.replace(self, **chosen)
