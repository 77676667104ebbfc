"""Ground truth beside predictions, on a few images of the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detector.data.images import read_image
from detector.visualize import draw_instances, panel

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex
    from detector.predictor import Detector


class Comparisons:
    """The same images after every evaluation, so that one can watch the detector learn.

    Args:
        index: the validation set.
        count: how many images, taken evenly from those with objects.
        score_threshold: detections below are not drawn.
    """

    def __init__(self, index: AnnotationIndex, count: int, score_threshold: float) -> None:
        self.index = index
        self.score_threshold = score_threshold
        with_objects = np.flatnonzero(np.diff(index.annotation_offsets))
        places = np.linspace(0, len(with_objects) - 1, min(count, len(with_objects)))
        self.images = with_objects[places.round().astype(int)].tolist()

    def draw(self, detector: Detector, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Writes ``<folder>/<name>.jpg`` for each image; gives its name and the picture.

        Args:
            detector: predicts on them.
            folder: is made; pictures of the same images in it are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for i in self.images:
            # With its folders in the name, since files in two of them may be called alike.
            name = "_".join(Path(self.index.file_name(i)).with_suffix("").parts)
            result = detector.predict(self.index.path(i), self.score_threshold)
            picture = panel(
                draw_ground_truth(self.index, i),
                np.asarray(result.plot()),
                titles=("ground truth", f"prediction, scores from {self.score_threshold:g}"),
            )
            Image.fromarray(picture).save(folder / f"{name}.jpg", quality=92)
            yield name, picture


def draw_ground_truth(index: AnnotationIndex, i: int) -> np.ndarray:
    """The ``i``-th image with its annotations, crowd regions left out, as ``(H, W, 3)`` uint8."""
    annotations = np.arange(*index.annotations(i).indices(index.num_annotations))
    annotations = annotations[~index.crowd[annotations]]
    rings = [
        [
            index.vertices[index.vertex_offsets[r] : index.vertex_offsets[r + 1]]
            for r in range(index.ring_offsets[a], index.ring_offsets[a + 1])
        ]
        for a in annotations
    ]
    labels = index.labels[annotations]
    return draw_instances(
        read_image(index.path(i)),
        index.boxes[annotations],
        labels,
        [index.category_names[label] for label in labels],
        rings=rings if index.has_masks else None,
        keypoints=index.keypoints[annotations] if index.has_keypoints else None,
        skeleton=index.skeleton,
    )
