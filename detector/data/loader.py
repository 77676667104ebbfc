"""Loaders: an endless, exactly resumable one for training and a finite one for evaluation."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from detector.data.batches import TrainBatches
from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.end_of_training import SampleKey
from detector.data.image_repeats import image_repeats
from detector.structures import Batch

Buckets = Sequence[Sequence[int]]


class TrainLoader:
    """An endless iterable of batches that knows its position.

    The position counts batches handed out, not batches that workers have prepared ahead, so a
    loader with the state of another continues with exactly the batches the other would have given.
    Iterating again continues where the last iteration stopped.

    Several processes that train together each get their part of every batch. Positions and states
    are those of whole batches, and so the same for any number of processes.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batches: TrainBatches,
        collate: Collate,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        if batches.batch_size % num_ranks:
            raise ValueError(
                f"data.batch_size={batches.batch_size}, the images of a batch on all processes "
                f"together, cannot be divided among {num_ranks}; choose a multiple of {num_ranks}"
            )
        self.dataset = dataset
        self.batches = batches
        self.collate = collate
        self.epoch = 0
        self.batch = 0
        self.rank = rank
        self.num_ranks = num_ranks
        self._options = _loader_options(num_workers, pin_memory, prefetch_factor)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return len(self.batches)

    @property
    def batch_size(self) -> int:
        """Images per batch, of all processes together."""
        return self.batches.batch_size

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Positions(self.batches, self.epoch, self.batch, self._part(self.rank)),
            collate_fn=self.collate,
            **self._options,
        )
        for batch in loader:
            self.batch += 1
            if self.batch == self.steps_per_epoch:
                self.epoch, self.batch = self.epoch + 1, 0
            yield batch

    def plan(self, num_steps: int) -> None:
        """See :meth:`TrainBatches.plan`; call it before iterating."""
        self.batches.plan(num_steps)

    @property
    def position(self) -> tuple[int, int]:
        """``(epoch, batch)`` of the next batch."""
        return self.epoch, self.batch

    def batches_at(
        self, position: tuple[int, int], count: int, every_rank: bool = False
    ) -> Iterator[Batch]:
        """Batches from a position on; its own stays where it is.

        Args:
            position: ``(epoch, batch)``.
            count: how many.
            every_rank: not this process' part of each, but the parts of all, one after the other.
        """
        ranks = range(self.num_ranks) if every_rank else [self.rank]
        whole = islice(self.batches.starting_at(*position), count)
        yield from DataLoader(
            self.dataset,
            batch_sampler=[batch[self._part(rank)] for batch in whole for rank in ranks],
            collate_fn=self.collate,
            **self._options,
        )

    def _part(self, rank: int) -> slice:
        """The places of a process' images in a batch."""
        size = self.batch_size // self.num_ranks
        return slice(rank * size, (rank + 1) * size)

    def state_dict(self) -> dict[str, int | str]:
        """The position, and what makes it meaningful."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "num_images": self.batches.num_images,
            "sampler": self.batches.sampler,
            "batch_size": self.batches.step_size,
            "batches_per_step": self.batches.batches_per_step,
            "seed": self.batches.seed,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Moves to a saved position; call it before iterating.

        Steps may be in other parts than they were, as long as their images are as many.

        Raises:
            ValueError: the state is of a loader whose batches were others.
        """
        for key, value in self.state_dict().items():
            # Checkpoints of before there were samplers do not name theirs.
            former = state.get(key, "default")
            if key not in ("epoch", "batch", "batches_per_step") and former != value:
                of = " images in a step (times training.accumulate)" if key == "batch_size" else ""
                raise ValueError(
                    f"cannot continue: the checkpoint was trained with {key} {former}, now it "
                    f"is {value}{of}; restore the data settings or start a new run"
                )
        parts = self.batches.batches_per_step
        step, rest = divmod(state["batch"], state.get("batches_per_step", 1))
        assert rest == 0 or parts == state["batches_per_step"], "in the middle of a step"
        self.epoch, self.batch = state["epoch"], step * parts + rest


class _Positions:
    """Batch sampler from a position on; a class, since workers need it picklable."""

    def __init__(self, batches: TrainBatches, epoch: int, batch: int, part: slice):
        self._arguments = (batches, epoch, batch, part)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batches, epoch, batch, part = self._arguments
        return (whole[part] for whole in batches.starting_at(epoch, batch))


def build_train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    buckets: Buckets | None = None,
    aspect_ratio_grouping: bool = True,
    with_masks: bool = True,
    size_divisor: int = 32,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    with_keypoints: bool = False,
    sampler: str = "default",
    repeat_threshold: float = 0.001,
    rank: int = 0,
    num_ranks: int = 1,
    batches_per_step: int = 1,
) -> TrainLoader:
    """A loader of shuffled, augmented batches of one size, without end.

    Args:
        dataset: what to train on.
        batch_size: images per batch, of all processes that train together.
        num_workers: processes that prepare batches; 0 prepares them in this one. The batches are
            the same.
        seed: of the shuffling; augmentations have the dataset's.
        buckets: shapes that batches are padded to, see :class:`Collate`.
        aspect_ratio_grouping: whether landscape and portrait images form separate batches.
        with_masks: whether targets get polygons.
        size_divisor: see :class:`Collate`.
        pin_memory: whether batches lie in page-locked memory.
        prefetch_factor: batches that each worker prepares ahead.
        with_keypoints: whether targets get keypoints.
        sampler: how often images come, ``"default"``, ``"class_balanced"`` or ``"repeat_factor"``,
            see :func:`detector.data.image_repeats.image_repeats`.
        repeat_threshold: of ``"repeat_factor"``.
        rank: which of the processes that train together this is.
        num_ranks: how many they are.
        batches_per_step: how many batches make a step, see :class:`TrainBatches`.

    Raises:
        ValueError: masks are asked of a dataset that lacks some, or keypoints of one without, or
            the processes cannot have equal parts of a batch.
    """
    _require_masks(dataset, with_masks)
    _require_keypoints(dataset, with_keypoints)
    landscape = _landscape(dataset) if aspect_ratio_grouping else None
    repeats = image_repeats(dataset.index, sampler, repeat_threshold)
    threshold = f" of {repeat_threshold:g}" if sampler == "repeat_factor" else ""
    batches = TrainBatches(
        len(dataset),
        batch_size,
        seed,
        landscape,
        repeats,
        f"{sampler}{threshold}",
        batches_per_step,
    )
    collate = Collate(buckets, size_divisor, with_masks, with_keypoints)
    return TrainLoader(
        dataset, batches, collate, num_workers, pin_memory, prefetch_factor, rank, num_ranks
    )


def build_eval_loader(
    dataset: DetectionDataset,
    batch_size: int = 1,
    num_workers: int = 0,
    buckets: Buckets | None = None,
    with_masks: bool | None = None,
    size_divisor: int = 32,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    with_keypoints: bool | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader:
    """A finite loader that gives every image once, landscape images first.

    Of several processes each gets every ``num_ranks``-th batch, the first ones one batch more if it
    does not come out even: together they have the batches of one process.

    Args:
        dataset: what to evaluate on; its augmentation should hold no more than a resize.
        batch_size: images per batch; the last of the landscape and of the portrait images may have
            fewer.
        num_workers: see :func:`build_train_loader`, as for the rest.
        buckets: likewise.
        with_masks: whether targets get polygons; by default, if the dataset has masks.
        size_divisor: likewise.
        pin_memory: likewise.
        prefetch_factor: likewise.
        with_keypoints: whether targets get keypoints; by default, if the dataset has some.
        rank: which of the processes that evaluate together this is.
        num_ranks: how many they are.

    Returns:
        An iterable of :class:`detector.structures.Batch` whose ``len`` is the number of batches.

    Raises:
        ValueError: masks are asked of a dataset that lacks some, or keypoints of one without, or
            its augmentation mixes images.
    """
    if with_masks is None:
        with_masks = dataset.index.has_masks
    if with_keypoints is None:
        with_keypoints = dataset.index.has_keypoints
    for mix in dataset.augmentation.mixes:
        raise ValueError(
            f"augment.val: {type(mix).__name__} mixes images, whose detections nobody could judge; "
            "it belongs in augment.train only"
        )
    _require_masks(dataset, with_masks)
    _require_keypoints(dataset, with_keypoints)
    if batch_size < 1:
        raise ValueError(f"the batch size for evaluation is {batch_size}; it must be at least 1")
    landscape = _landscape(dataset)
    batches = [
        group[start : start + batch_size].tolist()
        for group in (np.flatnonzero(landscape), np.flatnonzero(~landscape))
        for start in range(0, len(group), batch_size)
    ]
    return DataLoader(
        dataset,
        batch_sampler=batches[rank::num_ranks],
        collate_fn=Collate(buckets, size_divisor, with_masks, with_keypoints),
        **_loader_options(num_workers, pin_memory, prefetch_factor),
    )


def _landscape(dataset: DetectionDataset) -> np.ndarray:
    return dataset.index.widths >= dataset.index.heights


def _require_masks(dataset: DetectionDataset, with_masks: bool) -> None:
    missing = dataset.index.first_without_mask() if with_masks else None
    if missing is not None:
        raise ValueError(
            f"{dataset.index.source_file}: annotation {missing} has no segmentation, which mask "
            "training needs; add it, or train a model without masks"
        )


def _require_keypoints(dataset: DetectionDataset, with_keypoints: bool) -> None:
    if with_keypoints and not dataset.index.has_keypoints:
        raise ValueError(
            f"{dataset.index.source_file}: its categories name no keypoints, which keypoint "
            "training needs; add them, or train a model without keypoints"
        )


def _loader_options(num_workers: int, pin_memory: bool, prefetch_factor: int) -> dict:
    options = {"num_workers": num_workers, "pin_memory": pin_memory}
    if num_workers:
        options |= {"prefetch_factor": prefetch_factor, "worker_init_fn": _start_worker}
    return options


def _start_worker(worker: int) -> None:
    # One thread per worker: the parallelism is in the processes.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C, and what a job scheduler sends to stop, reach every process. The main process still
    # wants batches until it has saved; a worker that died first would end it with an error.
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has SIGINT alone
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, name="SIGTERM", daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent() -> None:
    # Ignoring SIGTERM altogether would leave the main process waiting for ever when it exits with
    # its loader still open: that is how multiprocessing then tells workers to go.
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
