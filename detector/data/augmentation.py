"""The augmentation of a dataset: transforms of one image and mixes of several, in one list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from detector.data.end_of_training import LOOKING, Moment, OffAtTheEnd
from detector.data.mixing import ImageMix
from detector.data.sample import Sample
from detector.data.transform_chain import TransformChain
from detector.data.transform_support import leaves, num_cuts


class ImageSource(Protocol):
    """Where mixes of images find partners: a dataset."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """One image and its objects as they are on disk."""


class Augmentation:
    """A list of albumentations transforms and mixes of images for samples.

    Args:
        transforms: albumentations transforms, see :class:`TransformChain`;
            :class:`detector.data.mixing.ImageMix`, whose partners go through what comes before it;
            and :class:`OffAtTheEnd` with such entries.
        keypoint_flip: see :class:`TransformChain`.

    Attributes:
        mixes: the mixes of images among them.

    Raises:
        ValueError: masks and boxes cannot follow one of the transforms.
    """

    def __init__(self, transforms: Sequence[Any] = (), keypoint_flip: Sequence[int] = ()):
        self._stages: list[tuple[TransformChain | ImageMix, OffAtTheEnd | None]] = []
        # Neighbours of one kind and switch make one stage.
        for (is_mix, switch), group in itertools.groupby(
            _entries(transforms), lambda pair: (isinstance(pair[0], ImageMix), pair[1])
        ):
            entries = [entry for entry, _ in group]
            if not is_mix:
                entries = [TransformChain(chain, keypoint_flip) for chain in _chains(entries)]
            self._stages += [(stage, switch) for stage in entries]
        first, switch = self._stages[0] if self._stages else (None, None)
        if not isinstance(first, TransformChain) or switch:
            # It drops what lies outside the image as files have it, which nothing else would.
            self._stages.insert(0, (TransformChain((), keypoint_flip), None))
        self.mixes = [stage for stage, _ in self._stages if isinstance(stage, ImageMix)]

    def __call__(
        self,
        sample: Sample,
        rng: np.random.Generator,
        source: ImageSource | None = None,
        moment: Moment = LOOKING,
    ) -> Sample:
        """The augmented sample.

        Args:
            sample: as it is on disk.
            rng: all randomness comes from it.
            source: where mixes find their partners.
            moment: of the training, which decides what is off.

        Raises:
            ValueError: a mix of images without a source of them.
        """
        return self._until(len(self._stages), sample, rng, source, moment)

    def _until(
        self,
        end: int,
        sample: Sample,
        rng: np.random.Generator,
        source: ImageSource | None,
        moment: Moment,
    ) -> Sample:
        for place, (stage, switch) in enumerate(self._stages[:end]):
            if switch is not None and switch.is_off(moment):
                continue
            if isinstance(stage, TransformChain):
                sample = stage(sample, rng)
                continue
            if source is None:
                raise ValueError(
                    f"augment: {type(stage).__name__} mixes images of a training set, and there is "
                    "none here; it belongs in augment.train only"
                )
            if rng.random() >= stage.p:
                continue
            partners = []
            for seed in rng.integers(2**63, size=stage.num_partners).tolist():
                own = np.random.Generator(np.random.PCG64(seed))
                partner = source.read(int(own.integers(len(source))))
                partners.append(self._until(place, partner, own, source, moment))
            sample = stage(sample, partners, rng)
        return sample


def _entries(transforms: Sequence[Any]) -> list[tuple[Any, OffAtTheEnd | None]]:
    """Every transform with the switch around it."""
    found: list[tuple[Any, OffAtTheEnd | None]] = []
    for entry in transforms:
        if not isinstance(entry, OffAtTheEnd):
            found.append((entry, None))
            continue
        for inner in entry.transforms:
            if isinstance(inner, OffAtTheEnd):
                raise ValueError("augment: an OffAtTheEnd inside another; put it beside it")
            found.append((inner, entry))
    return found


def _chains(transforms: Sequence[Any]) -> list[list[Any]]:
    """Parts of a list, each with at most one transform that may cut objects or add a border.

    Between two, masks are cut at the image: what left it must not come back in a border.
    """
    chains: list[list[Any]] = [[]]
    for transform in transforms:
        leaves(transform)  # refuses what is no transform
        cuts = num_cuts(transform)
        if cuts and any(map(num_cuts, chains[-1])):
            chains.append([])
        chains[-1].append(transform)
    return chains
