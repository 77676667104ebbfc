"""Augmentations that stop some steps before training ends, so that it ends on plain images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Moment(NamedTuple):
    """When in a training a sample is seen.

    Attributes:
        step: finished steps, 0 at the first.
        num_steps: of the whole training; ``None`` where there is none, as when data is looked at.
    """

    step: int = 0
    num_steps: int | None = None


LOOKING = Moment()  # no training at all
AFTER = Moment(0, 0)  # whatever is off at the end is off


class SampleKey(NamedTuple):
    """What a loader asks a training set for: a sample depends on its key and seed alone.

    Attributes:
        epoch: of the training, from 0; each has other random numbers.
        index: of the image in the dataset.
        moment: decides which augmentations are off.
    """

    epoch: int
    index: int
    moment: Moment = LOOKING


class OffAtTheEnd:
    """Entries of ``augment.train`` that are left out in the last steps of a training.

    The steps are those of the training plan (``training.max_steps`` or ``max_epochs``), so batches
    are the same after a resume and with any number of workers. A training that a time limit or
    early stopping ends before has not come to them.

    Args:
        transforms: albumentations transforms or mixes of images, at their place in the list.
        last_steps: how many steps are without them.
        last_fraction: instead, which share of the training is.
        replaced_by: what stands in their place then, such as a resize to one size where
            ``transforms`` scale at random.

    Raises:
        ValueError: both or neither are given, or one is out of range.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        last_steps: int | None = None,
        last_fraction: float | None = None,
        replaced_by: Sequence[Any] = (),
    ):
        self.transforms = list(transforms)
        self.replaced_by = list(replaced_by)
        self.last_steps = last_steps
        self.last_fraction = last_fraction
        if (last_steps is None) == (last_fraction is None):
            raise ValueError(
                f"OffAtTheEnd: last_steps={last_steps} and last_fraction={last_fraction}; give one "
                "of them, and null for the other"
            )
        if last_steps is not None and (not isinstance(last_steps, int) or last_steps < 0):
            raise ValueError(
                f"OffAtTheEnd: last_steps={last_steps}; it must be a whole number of 0 or more"
            )
        if last_fraction is not None and not 0 <= last_fraction <= 1:
            raise ValueError(
                f"OffAtTheEnd: last_fraction={last_fraction}; it must lie between 0 and 1"
            )

    def is_off(self, moment: Moment) -> bool:
        """Whether the transforms are left out; never, where no training is planned."""
        if moment.num_steps is None:
            return False
        return moment.step >= self.first_off(moment.num_steps)

    def is_on(self, moment: Moment) -> bool:
        """The opposite."""
        return not self.is_off(moment)

    def first_off(self, num_steps: int) -> int:
        """How many steps of a training are finished when they are first left out."""
        last = self.last_steps
        if last is None:
            last = round(self.last_fraction * num_steps)
        return max(num_steps - last, 0)
