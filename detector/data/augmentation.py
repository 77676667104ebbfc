"""The augmentation of a dataset: transforms of one image and mixes of several, in one list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from detector.data.end_of_training import LOOKING, Moment, OffAtTheEnd
from detector.data.mixing import ImageMix
from detector.data.sample import Sample
from detector.data.transform_chain import TransformChain
from detector.data.transform_support import leaves, num_cuts

Condition = Callable[[Moment], bool]


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
        switches: the :class:`OffAtTheEnd` among them.

    Raises:
        ValueError: masks and boxes cannot follow one of the transforms.
    """

    def __init__(self, transforms: Sequence[Any] = (), keypoint_flip: Sequence[int] = ()):
        self._stages: list[tuple[TransformChain | ImageMix, Condition | None]] = []
        self.switches = [entry for entry in transforms if isinstance(entry, OffAtTheEnd)]
        # Neighbours of one kind and condition make one stage.
        for (is_mix, applies), group in itertools.groupby(
            _entries(transforms), lambda pair: (isinstance(pair[0], ImageMix), pair[1])
        ):
            entries = [entry for entry, _ in group]
            if not is_mix:
                entries = [TransformChain(chain, keypoint_flip) for chain in _chains(entries)]
            self._stages += [(stage, applies) for stage in entries]
        first, applies = self._stages[0] if self._stages else (None, None)
        if not isinstance(first, TransformChain) or applies:
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

    def late_switches(self, num_steps: int) -> list[str]:
        """What a training of so many steps does not come to if it is ended before by the time."""
        said = []
        for switch in self.switches:
            if 0 < (first := switch.first_off(num_steps)) < num_steps:
                names = ", ".join(type(entry).__name__ for entry in switch.transforms)
                said.append(
                    f"augment: {names} will be off from step {first + 1} on, which "
                    "training.time_limit may not leave time for; set training.max_steps to the "
                    "steps that it does"
                )
        return said

    def _until(
        self,
        end: int,
        sample: Sample,
        rng: np.random.Generator,
        source: ImageSource | None,
        moment: Moment,
    ) -> Sample:
        for place, (stage, applies) in enumerate(self._stages[:end]):
            if applies is not None and not applies(moment):
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


def _entries(transforms: Sequence[Any]) -> list[tuple[Any, Condition | None]]:
    """Every transform with the condition of the switch around it."""
    found: list[tuple[Any, Condition | None]] = []
    for entry in transforms:
        if not isinstance(entry, OffAtTheEnd):
            found.append((entry, None))
            continue
        if any(isinstance(inner, OffAtTheEnd) for inner in entry.transforms + entry.replaced_by):
            raise ValueError("augment: an OffAtTheEnd inside another; put it beside it")
        found += [(inner, entry.is_on) for inner in entry.transforms]
        found += [(inner, entry.is_off) for inner in entry.replaced_by]
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
