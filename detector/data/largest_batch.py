"""The largest batch that training can meet: what its memory has to suffice for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.end_of_training import AFTER, LOOKING, SampleKey
from detector.data.sample import Sample
from detector.structures import Batch

_EXTREMES = 16  # images of each kind that are looked at
_EPOCHS = 2  # times that each is augmented


class LargestBatch:
    """Batches of any number of images, of the largest shapes that a dataset gives.

    Height and width are those of a batch that mixes the widest and the highest images, as the last
    batch of an epoch does; gt slots, edges and proposals those of the fullest image. Numbers of
    objects are known from the index. What augmentation makes of sizes is not: it is tried, twice
    each, on the images with the most objects, the largest, the widest, the highest and some others.

    Args:
        dataset: of the training.
        collate: of the training.
    """

    def __init__(self, dataset: DetectionDataset, collate: Collate) -> None:
        self._collate = collate
        self._sample = _fullest(dataset, collate)
        one = self(1)
        self.height, self.width = one.images.shape[-2:]
        self.gt_slots = one.targets.valid.shape[1]

    def __call__(self, images: int) -> Batch:
        """A batch of so many images."""
        return self._collate([dataclasses.replace(self._sample, seed=i) for i in range(images)])

    def __str__(self) -> str:
        return f"{self.height}x{self.width} with {self.gt_slots} gt slots"


def _fullest(dataset: DetectionDataset, collate: Collate) -> Sample:
    """One image as large, and with as many of everything, as any has."""
    index = dataset.index
    per_object = _vertices_per_object(dataset)
    per_image = _sums(np.where(index.crowd, 0, per_object), index.annotation_offsets)
    num_objects = int(_sums(~index.crowd, index.annotation_offsets).max())
    num_vertices, longest = int(per_image.max()), int(per_object.max(initial=0))
    height = width = num_proposals = 1
    for sample in _samples(dataset):
        height, width = max(height, sample.image.shape[0]), max(width, sample.image.shape[1])
        num_objects = max(num_objects, len(sample))
        num_vertices = max(num_vertices, len(sample.vertices))
        lengths = np.diff(sample.vertex_offsets[sample.ring_offsets])
        longest = max(longest, int(lengths.max(initial=0)))
        if sample.proposals is not None:
            num_proposals = max(num_proposals, len(sample.proposals))
    height, width = collate.padded_size(height, width)

    rng = np.random.default_rng(0)
    boxes = _boxes(rng, num_objects, height, width)
    # A ring each, the first as long as the longest object; three vertices make an area.
    longest = max(longest, 3)
    others = (num_vertices - longest) // max(num_objects - 1, 1)
    lengths = np.full(num_objects, max(others, 3))
    lengths[0] = longest
    vertices = [_ring(box, length) for box, length in zip(boxes, lengths, strict=True)]
    given = {}
    if index.has_keypoints:
        keypoints = np.full((num_objects, index.num_keypoints, 3), 2, np.float32)  # 2: visible
        keypoints[..., :2] = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
        given["keypoints"] = keypoints
    if dataset.has_proposals:
        given["proposals"] = _boxes(rng, num_proposals, height, width)
        given["proposal_scores"] = rng.random(num_proposals, np.float32)
    return Sample(
        image=rng.integers(0, 256, (height, width, 3), np.uint8),
        boxes=boxes,
        labels=np.zeros(num_objects, np.int64),
        ring_offsets=np.arange(num_objects + 1),
        vertex_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        vertices=np.concatenate(vertices).astype(np.float32),
        image_id=0,
        original_size=(height, width),
        **given,
    )


def _samples(dataset: DetectionDataset) -> Iterator[Sample]:
    index = dataset.index
    widths, heights = index.widths.astype(np.int64), index.heights.astype(np.int64)
    objects = _sums(~index.crowd, index.annotation_offsets)
    keys = (-objects, -widths * heights, widths / heights, heights / widths)
    chosen = [np.argsort(key, kind="stable")[:_EXTREMES] for key in keys]
    others = np.random.default_rng(0).permutation(len(index))[:_EXTREMES]
    moments = (LOOKING, AFTER) if dataset.augmentation.switches else (LOOKING,)
    for image in np.unique(np.concatenate([*chosen, others])).tolist():
        for epoch, moment in itertools.product(range(_EPOCHS), moments):
            yield dataset[SampleKey(epoch, image, moment)]


def _vertices_per_object(dataset: DetectionDataset) -> np.ndarray:
    index = dataset.index
    return np.diff(np.asarray(index.vertex_offsets)[np.asarray(index.ring_offsets)])


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0], np.cumsum(values)])[offsets])


def _boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """``(count, 4)`` float32, an eighth to a half of the image in each direction."""
    size = rng.uniform(1 / 8, 1 / 2, (count, 2)) * (width, height)
    corner = rng.uniform(0, 1, (count, 2)) * ((width, height) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def _ring(box: np.ndarray, length: int) -> np.ndarray:
    """``(length, 2)``: an ellipse in the box."""
    angles = np.linspace(0, 2 * np.pi, length, endpoint=False)
    center, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
