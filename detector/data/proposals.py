"""Files of proposals: boxes that an RPN found, for a Fast R-CNN to classify.

A file is a NumPy archive (.npz) of N images and T boxes:

    image_ids    (N,) int64, the dataset's ids
    offsets      (N + 1,) int64; image ``i`` has the boxes ``offsets[i]:offsets[i + 1]``, best first
    boxes        (T, 4) float32 (x1, y1, x2, y2) in continuous pixels of the image files
    scores       (T,) float32
    file_names   (N,) text, of the images; files without it are matched by the ids alone

Detectron2's are pickles, see :mod:`detector.data.proposal_pickles`. Like there, what of their boxes
lies outside an image is cut off.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from detector.data.proposal_pickles import is_pickle, read_proposal_pickle
from detector.data.rings import offsets_of

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

ARRAYS = ("image_ids", "offsets", "boxes", "scores")


class ProposalFile:
    """The proposals of the images of a dataset.

    Args:
        path: a file that :func:`write_proposals` wrote, or Detectron2.
        index: the dataset; images of the file that it lacks are passed over.
        max_proposals: of each image, the first this many are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such archive, does not hold every image of the dataset, has another
            image under an id, or boxes lie outside their images.
    """

    def __init__(self, path: Path | str, index: AnnotationIndex, max_proposals: int) -> None:
        if max_proposals < 1:
            raise ValueError(f"max_proposals={max_proposals} must be at least 1")
        self.path = Path(path)
        is_foreign = self.path.is_file() and is_pickle(self.path)
        if is_foreign:
            image_ids, offsets, boxes, scores = read_proposal_pickle(self.path)
            file_names = None
        else:
            image_ids, offsets, boxes, scores, file_names = _read(self.path)
        order = np.argsort(image_ids, kind="stable")
        wanted = np.asarray(index.image_ids)
        place = np.searchsorted(image_ids[order], wanted).clip(max=max(len(order) - 1, 0))
        found = image_ids[order[place]] == wanted if len(order) else np.zeros(len(wanted), bool)
        if not found.all():
            missing = wanted[~found].tolist()
            raise ValueError(
                f"{self.path} has no proposals for {len(missing)} of the {len(wanted)} images of "
                f"{index.source_file}, the first of them image ids {missing[:5]}; write them with "
                "tools/propose.py for this dataset and split"
            )
        self._index = index
        self._image = order[place]
        self._offsets, self._boxes, self._scores = offsets, boxes, scores
        self._max_proposals = max_proposals
        self._check_names(file_names)
        limits = self._limits()
        if is_foreign:
            boxes.clip(0, np.tile(limits, 2), out=boxes)
        self._check_boxes(limits)

    def __call__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(p, 4)`` and scores ``(p,)`` of the dataset's image at ``position``."""
        image = self._image[position]
        start, stop = self._offsets[image], self._offsets[image + 1]
        chosen = slice(start, min(stop, start + self._max_proposals))
        return self._boxes[chosen], self._scores[chosen]

    def __reduce__(self):
        # A worker that is spawned reads the file again; pickling would copy every array.
        return ProposalFile, (self.path, self._index, self._max_proposals)

    def _check_names(self, file_names: np.ndarray | None) -> None:
        # Ids are mere numbers: other splits and other datasets have the same.
        index = self._index
        for position, image in enumerate(self._image if file_names is not None else ()):
            if PurePath(file_names[image]).name != PurePath(index.file_name(position)).name:
                raise ValueError(
                    f"{self.path}: image id {index.image_ids[position]} is {file_names[image]}, in "
                    f"{index.source_file} it is {index.file_name(position)}; write proposals with "
                    "tools/propose.py for this dataset and split"
                )

    def _limits(self) -> np.ndarray:
        """``(T, 2)`` width and height of each box's image; zeros where the dataset lacks it."""
        sizes = np.zeros((len(self._offsets) - 1, 2), np.float32)
        sizes[self._image] = np.stack((self._index.widths, self._index.heights), 1)
        return np.repeat(sizes, np.diff(self._offsets), axis=0)

    def _check_boxes(self, limits: np.ndarray) -> None:
        index = self._index
        # A hundredth of a pixel for the rounding of those who scaled the boxes.
        low, high = self._boxes[:, :2] >= -1e-2, self._boxes[:, 2:] <= limits + 1e-2
        is_used = limits[:, 0] > 0
        wrong = np.flatnonzero(is_used & ~(low & high).all(axis=1))
        if len(wrong):
            image = np.searchsorted(self._offsets, wrong[0], "right") - 1
            position = np.flatnonzero(self._image == image)[0]
            raise ValueError(
                f"{self.path}: proposal {self._boxes[wrong[0]].tolist()} of image "
                f"{index.image_ids[position]} lies outside its {index.widths[position]}x"
                f"{index.heights[position]} pixels, or is NaN; the file was made for other images"
            )


def write_proposals(
    file: BinaryIO,
    image_ids: Sequence[int],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    file_names: Sequence[str] | None = None,
) -> None:
    """Writes a file of proposals.

    Args:
        file: open for writing.
        image_ids: N ids.
        boxes: N arrays ``(p, 4)`` in pixels of the image files, best first.
        scores: N arrays ``(p,)``.
        file_names: N names of the images, by which they are recognised when read.
    """
    names = {} if file_names is None else {"file_names": np.array(file_names, dtype=np.str_)}
    np.savez(
        file,
        image_ids=np.asarray(image_ids, np.int64),
        offsets=offsets_of(np.array([len(each) for each in boxes], np.int64)),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]).astype(np.float32),
        scores=np.concatenate([np.zeros(0, np.float32), *scores]).astype(np.float32),
        **names,
    )


def _read(path: Path) -> tuple[np.ndarray, ...]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file of proposals; write it with tools/propose.py checkpoint=FILE"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not set(ARRAYS) <= set(archive.files):
                raise ValueError(f"it lacks {sorted(set(ARRAYS) - set(archive.files))}")
            arrays = [archive[name] for name in ARRAYS]
            names = archive["file_names"] if "file_names" in archive.files else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of proposals ({error}); write it with tools/propose.py"
        ) from error
    image_ids, offsets, boxes, scores = arrays
    matching = names is None or names.shape == image_ids.shape
    shapes = (len(image_ids) + 1,), (offsets[-1] if len(offsets) else 0, 4), scores.shape
    fits = (offsets.shape, boxes.shape, (len(boxes),)) == shapes and matching
    if not fits or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path} is damaged: its arrays do not fit together; write it again")
    return *arrays, names
