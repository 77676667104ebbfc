"""A dataset of images with boxes, labels, masks and keypoints, sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data

from detector.data.augmentation import Augmentation
from detector.data.coco import read_coco
from detector.data.end_of_training import SampleKey
from detector.data.images import read_image
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError
from detector.data.proposals import ProposalFile
from detector.data.rings import offsets_of
from detector.data.sample import Sample, select_rings

_TRAINING = 1  # beside the key of the augmentations: another stream of random numbers


class DetectionDataset(torch.utils.data.Dataset):
    """COCO annotations and their images as augmented samples.

    A sample depends on the seed and its :class:`SampleKey` alone, whichever process makes it and in
    whatever order. Crowd regions are never targets.

    Args:
        annotations: COCO JSON file, absolute or relative to ``root``.
        images: folder of the images, likewise.
        augment: albumentations transforms, see :class:`detector.data.augmentation.Augmentation`.
        on_error: ``"raise"`` or ``"skip"`` damaged records, see :func:`read_coco`.
        seed: of the augmentations.
        root: folder that holds the dataset.
        keep_empty: whether images without objects are kept (the references leave them out of
            training).
        proposals: file of proposals, see :mod:`detector.data.proposals`, relative to the working
            directory; for Fast R-CNN.
        max_proposals: of each image, the first this many of the file are used.
        keypoint_flip: pairs of names of keypoints that change places in a mirror; by default
            ``left_*`` and ``right_*``.
        min_keypoints: images with fewer labelled keypoints in all are left out (the references
            train on images with at least one).

    Attributes:
        index: the :class:`detector.data.index.AnnotationIndex`.
        metric: the evaluation that goes with such data, ``"coco"``, ``"lvis"`` or ``"voc"``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_coco` and
            :class:`detector.data.proposals.ProposalFile`.
    """

    metric = "coco"

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
        keypoint_flip: Sequence[Sequence[str]] | None = None,
        min_keypoints: int = 0,
    ):
        base = Path(root) if root is not None else Path()
        index = read_coco(base / annotations, base / images, on_error, keypoint_flip=keypoint_flip)
        if min_keypoints > 0:
            index = _with_keypoints(index, min_keypoints)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)

    def _use(
        self,
        index: AnnotationIndex,
        augment: Sequence[Any] | None,
        seed: int,
        keep_empty: bool,
        proposals: Path | str | None,
        max_proposals: int,
    ) -> None:
        """Takes what any reader made; the arguments are the constructor's."""
        self.index = index
        self.augmentation = Augmentation(augment or (), index.keypoint_flip)
        self.seed = seed
        if not keep_empty:
            self.index = self.index.keep_images(self._objects_per_image() > 0)
        self._proposals = (
            None if proposals is None else ProposalFile(proposals, self.index, max_proposals)
        )
        self._check_mixes()

    def _check_mixes(self) -> None:
        """Refuses mixes of images that these samples cannot go through."""
        without_mask = self.index.first_without_mask()
        for mix in self.augmentation.mixes:
            name = type(mix).__name__
            if self.has_proposals:
                raise ValueError(
                    f"augment: {name} makes images that a file of proposals does not know; train "
                    "with another augment, or a model that proposes itself"
                )
            if mix.needs_masks and without_mask is not None:
                raise ValueError(
                    f"{self.index.source_file}: annotation {without_mask} has no segmentation, "
                    f"which {name} needs; add it, or train with another augment"
                )

    @property
    def has_proposals(self) -> bool:
        """Whether samples have proposals of a file."""
        return self._proposals is not None

    def _objects_per_image(self) -> np.ndarray:
        objects = np.concatenate([[0], np.cumsum(~self.index.crowd)])
        return np.diff(objects[self.index.annotation_offsets])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int] | SampleKey) -> Sample:
        """The sample ``index`` of epoch 0, or ``(epoch, index)``, or of a :class:`SampleKey`."""
        epoch, index, moment = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch, index]))
        sample = self.augmentation(self.read(index), rng, self, moment)
        seeds = np.random.SeedSequence([self.seed, epoch, index, _TRAINING])
        return dataclasses.replace(sample, seed=int(seeds.generate_state(1)[0]))

    def read(self, index: int) -> Sample:
        """One image and its objects as they are on disk.

        Raises:
            FileNotFoundError, ValueError: the file went away or changed since the dataset was made.
        """
        annotations = self.index
        path = annotations.path(index)
        image = read_image(path)
        height, width = int(annotations.heights[index]), int(annotations.widths[index])
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]} but the annotations say "
                f"{width}x{height}; it changed while in use, start again"
            )
        return self.sample_of(index, image)

    def sample_of(self, index: int, image: np.ndarray) -> Sample:
        """The objects of an image with these pixels, ``(H, W, 3)`` uint8; reads no image file."""
        annotations = self.index
        start, stop = annotations.annotation_offsets[index : index + 2]
        targets = start + np.flatnonzero(~annotations.crowd[start:stop])
        ring_offsets, vertex_offsets, vertices = select_rings(
            annotations.ring_offsets, annotations.vertex_offsets, annotations.vertices, targets
        )
        proposals, scores = self._proposals(index) if self._proposals else (None, None)
        return Sample(
            image=image,
            boxes=annotations.boxes[targets],
            labels=annotations.labels[targets].astype(np.int64),
            ring_offsets=ring_offsets,
            vertex_offsets=vertex_offsets,
            vertices=vertices,
            image_id=int(annotations.image_ids[index]),
            original_size=image.shape[:2],
            proposals=proposals,
            proposal_scores=scores,
            keypoints=annotations.keypoints[targets] if annotations.has_keypoints else None,
        )


def _with_keypoints(index: AnnotationIndex, min_keypoints: int) -> AnnotationIndex:
    """The images of an index with enough labelled keypoints.

    Raises:
        ValueError: no image has.
    """
    labelled = ((index.keypoints[..., 2] > 0) & ~index.crowd[:, None]).sum(axis=1)
    keep = np.diff(offsets_of(labelled)[index.annotation_offsets]) >= min_keypoints
    if not keep.any():
        raise ValueError(
            f"{index.source_file}: no image has min_keypoints={min_keypoints} labelled keypoints; "
            "lower it, or take annotations with keypoints"
        )
    return index.keep_images(keep)
