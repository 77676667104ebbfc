"""Which images form which batch: shuffled, grouped by aspect ratio, the same for every resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detector.data.end_of_training import Moment, SampleKey
from detector.data.image_repeats import draw_repeats, epoch_length


class TrainBatches:
    """The batches of every epoch as lists of ``(epoch, index)``.

    An epoch is a permutation of the dataset that depends on ``(seed, epoch)`` alone. With grouping,
    landscape and portrait images fill separate batches (less padding, fewer shapes); what is left
    of both at the end shares the last ones. An incomplete last batch is filled up with the epoch's
    first images, so every batch has the same size and every image is seen every epoch. With
    repeats, an epoch holds each image as often as :func:`detector.data.image_repeats.draw_repeats`
    draws it.

    All this is done with the images of a step; where several batches make one, they are its parts
    one after the other. So a step has the same images in however many batches it is taken.

    Args:
        landscape: ``(N,)`` bool, whether an image is at least as wide as high; ``None`` switches
            grouping off.
        num_images: N.
        batch_size: images per batch.
        seed: of the permutations.
        repeats: ``(N,)`` how often an epoch holds each image on average; ``None``: once.
        sampler: what made the repeats, for those who compare batches.
        batches_per_step: how many make a step.

    Attributes:
        num_steps: of the training, see :meth:`plan`; ``None``: not planned.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        landscape: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
        sampler: str = "default",
        batches_per_step: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; it must be at least 1")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.landscape = landscape
        self.repeats = repeats
        self.sampler = sampler
        self.batches_per_step = batches_per_step
        self.num_steps: int | None = None

    def plan(self, num_steps: int) -> None:
        """Says how long training will be, for augmentations that are off near its end."""
        self.num_steps = num_steps

    @property
    def step_size(self) -> int:
        """Images per step."""
        return self.batch_size * self.batches_per_step

    @property
    def epoch_length(self) -> int:
        """Images of an epoch, without those that fill up its last step."""
        return self.num_images if self.repeats is None else epoch_length(self.repeats)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.epoch_length // self.step_size) * self.batches_per_step

    def epoch(self, epoch: int) -> list[list[tuple[int, int]]]:
        """All batches of one epoch."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        if self.repeats is None:
            order = rng.permutation(self.num_images).tolist()
        else:
            order = draw_repeats(self.repeats, rng).tolist()
        steps: list[list[int]] = []
        waiting: dict[bool, list[int]] = {True: [], False: []}
        for index in order:
            group = waiting[True if self.landscape is None else bool(self.landscape[index])]
            group.append(index)
            if len(group) == self.step_size:
                steps.append(list(group))
                group.clear()
        rest = waiting[True] + waiting[False]
        filler = 0
        while len(rest) % self.step_size:
            rest.append(order[filler % len(order)])
            filler += 1
        images = [index for step in steps for index in step] + rest
        size = self.batch_size
        return [
            [(epoch, index) for index in images[start : start + size]]
            for start in range(0, len(images), size)
        ]

    def starting_at(self, epoch: int, batch: int) -> Iterator[list[SampleKey]]:
        """The keys of all batches from one position on, without end."""
        while True:
            for keys in self.epoch(epoch)[batch:]:
                step = (epoch * len(self) + batch) // self.batches_per_step
                moment = Moment(step, self.num_steps)
                yield [SampleKey(*key, moment) for key in keys]
                batch += 1
            epoch, batch = epoch + 1, 0
