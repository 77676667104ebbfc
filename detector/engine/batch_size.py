"""``data.batch_size=auto``: the largest batch that fits into the device's memory.

Found by taking training steps on the largest batch there can be, with a copy of the model and an
optimiser of its own: doubling the number of images until it does not fit, then halving the
interval. The model, its optimiser and all random numbers stay as they were, so that training is
the same as with the number given. On a CPU nothing is tried that the steps before it say will not
fit: Linux kills a process that takes too much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.largest_batch import LargestBatch
from detector.engine import assembly
from detector.engine.batch_scaling import is_auto, scale_to_batch
from detector.engine.checkpoint import checkpoint_config
from detector.engine.checkpoint_writer import checkpoint_bytes
from detector.engine.device_memory import (
    GIB,
    DeviceMemory,
    is_out_of_memory,
    memory_of,
    parse_memory,
)
from detector.engine.distributed import Ranks
from detector.engine.out_of_memory import less_memory
from detector.engine.randomness import generators_kept
from detector.engine.runtime import Runtime
from detector.engine.step_guard import StepGuard
from detector.engine.stopwatch import Stopwatch
from detector.engine.training_step import TrainingStep
from detector.ops.slots import keep_empty_slots

PREFETCHED = 3  # batches that a data worker holds: two ready, one in the making


def settle_batch_size(
    cfg: DictConfig,
    scaled: str | None,
    former: dict[str, Any] | None,
    model: nn.Module,
    runtime: Runtime,
    train_set: DetectionDataset,
    ranks: Ranks,
) -> list[str]:
    """Puts a number in the place of ``data.batch_size=auto``, and scales the rate to it.

    Args:
        cfg: of the training; ``data.batch_size`` and what follows from it are changed.
        scaled: what :func:`detector.engine.batch_scaling.scale_to_batch` has said.
        former: the checkpoint that training goes on from, whose number stays.
        model: in training mode, on its device; left as it is.
        runtime: how to run it.
        train_set: of the training.
        ranks: that train together; all take the number that fits on each.

    Returns:
        Sentences on the batch, if it was to be found, and on the learning rate.

    Raises:
        ValueError: another word; or one image is too much; or an impossible amount of memory.
    """
    said = []
    if is_auto(cfg.data.batch_size):
        images, sentence = _find(cfg, former, model, runtime, train_set, ranks)
        OmegaConf.update(cfg, "data.batch_size", images)
        said, scaled = [sentence], scale_to_batch(cfg)
    return [*said, scaled or f"learning rate {cfg.optimizer.lr:g}, as given"]


class TrialSteps:
    """Training steps whose peak of memory is measured.

    Args:
        step: takes a step on so many images.
        memory: of the device.
        limit: bytes.
        beside: bytes that training needs beside such a step, of so many images; may be negative.

    Attributes:
        peaks: bytes by number of images, those beside the step included.
    """

    def __init__(
        self,
        step: Callable[[int], None],
        memory: DeviceMemory,
        limit: float,
        beside: Callable[[int], float] = lambda images: 0.0,
    ) -> None:
        self._step = step
        self._memory = memory
        self._limit = limit
        self._beside = beside
        self.peaks: dict[int, float] = {}

    def fits(self, images: int) -> bool:
        """Whether a step on so many images stays within the limit; it may be tried for that."""
        if not self._memory.forgiving and self._expected(images) > self._memory.available():
            return False
        self._memory.begin()
        try:
            with self._memory.bounded():
                if not self.peaks:
                    self._step(images)  # the optimiser's state is there from its end on
                self._step(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        self.peaks[images] = self._memory.peak() + self._beside(images)
        return self.peaks[images] <= self._limit

    def _expected(self, images: int) -> float:
        """As a straight line through the last two numbers of images, or none and one, has it."""
        points = {0: self._memory.used() + self._beside(0), **self.peaks}
        if len(points) == 1:
            return points[0]
        (few, low), (many, high) = sorted(points.items())[-2:]
        return high + (high - low) / (many - few) * (images - many)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, 0 if not even 1 does.

    Asks for 1, 2, 4, ... until one does not fit, then in the middle of what is left.
    """
    low, high, tried = 0, most + 1, 1
    while low < high - 1:
        if fits(tried):
            low = tried
        else:
            high = tried
        doubled = 2 * low if low else 1
        tried = doubled if high == most + 1 and doubled <= most else (low + high) // 2
    return low


def _find(
    cfg: DictConfig,
    former: dict[str, Any] | None,
    model: nn.Module,
    runtime: Runtime,
    train_set: DetectionDataset,
    ranks: Ranks,
) -> tuple[int, str]:
    if former is not None:
        images = checkpoint_config(former, allow_code=True).data.batch_size
        return images, f"data.batch_size=auto: {images}, as in the checkpoint"
    memory = memory_of(runtime.torch_device)
    available = memory.available()
    value = cfg.training.get("memory_limit")
    limit = parse_memory("training.memory_limit", value, available, memory.share)
    largest = LargestBatch(
        train_set,
        Collate(
            assembly.plain(cfg.data.buckets),
            with_masks=model.has_masks,
            with_keypoints=model.has_keypoints,
        ),
    )
    most = max(len(train_set) // ranks.size, 1)
    with generators_kept():
        images, peaks = largest_on_all(
            _trials(cfg, model, runtime, ranks, largest, memory, limit), ranks, most
        )
    memory.begin()
    planned = f"{limit / GIB:.2f} GiB, of {available / GIB:.2f} there are on {runtime.device}"
    if images == 0:
        takes = f"takes {peaks[1] / GIB:.2f} GiB" if 1 in peaks else "does not fit"
        raise ValueError(
            f"data.batch_size=auto: a training step on one image of {largest} {takes}; it may take "
            f"{planned}. Raise training.memory_limit, or lower in this order:\n  "
            + "\n  ".join(less_memory(cfg, runtime.precision))
        )
    each = f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
    return images * ranks.size, (
        f"data.batch_size=auto: {images * ranks.size}; {images} of up to {largest} take "
        f"{peaks[images] / GIB:.2f} GiB{each} (at most {planned})"
    )


def largest_on_all(trials: TrialSteps, ranks: Ranks, most: int) -> tuple[int, dict[int, float]]:
    """Images of each rank, the same for all, and the peaks on this one."""
    images = largest_that_fits(lambda tried: all(ranks.exchange(trials.fits(tried))), most)
    return images, trials.peaks


def _trials(
    cfg: DictConfig,
    model: nn.Module,
    runtime: Runtime,
    ranks: Ranks,
    largest: LargestBatch,
    memory: DeviceMemory,
    limit: float,
) -> TrialSteps:
    copied = copy.deepcopy(model)
    _normalise_alone(copied)
    optimizer = assembly.build(cfg.optimizer)(copied)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a rate for another batch may make the losses infinite
    guard = StepGuard(copied, optimizer, scaler=runtime.loss_scaler())
    take_step = TrainingStep(
        copied, optimizer, runtime, guard, cfg.seed, cfg.training.gradient_clip
    )

    def step(images: int) -> None:
        with keep_empty_slots():  # later in training they are filled
            take_step([largest(images)], 0, Stopwatch(runtime.torch_device))
        optimizer.zero_grad(set_to_none=True)

    weights = _bytes(copied.state_dict().values())
    has_average = cfg.training.ema_decay is not None
    fixed = 0.0 if has_average else -weights  # the copy is where the average will be
    per_image = 0.0
    gradients = _bytes(p for p in copied.parameters() if p.requires_grad)
    if ranks.size > 1:
        fixed += gradients  # one more to exchange
    elif runtime.graphs:
        fixed += runtime.graphs * gradients  # each graph has its own
    if runtime.torch_device.type == "cpu":  # where checkpoints are copied to and batches wait
        fixed += checkpoint_bytes(optimizer, model, *([model] if has_average else []))
        per_image = cfg.data.num_workers * PREFETCHED * 3.0 * largest.height * largest.width
    return TrialSteps(step, memory, limit, lambda images: fixed + per_image * images)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _normalise_alone(module: nn.Module) -> None:
    """Ranks try steps by themselves: one may run out of memory while others wait for its share."""
    for name, child in module.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            alone = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            module.add_module(name, alone.to(next(child.parameters()).device))
        else:
            _normalise_alone(child)
