"""One step of the optimiser, over one batch or over several that make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from detector.engine.data_parallel import DataParallel
from detector.engine.distributed import Ranks
from detector.engine.inference import given_proposals
from detector.engine.precise_bn import tracked_norms
from detector.engine.randomness import seed_everything
from detector.engine.runtime import Runtime
from detector.engine.step_guard import StepGuard
from detector.engine.stopwatch import Stopwatch
from detector.engine.weight_average import WeightAverage
from detector.ops.loss_counts import WholeBatch
from detector.structures import Batch


class _Untimed(Stopwatch):
    """For steps whose parts nobody can time: in a CUDA graph there are no events."""

    def __init__(self) -> None:
        pass

    def lap(self, name: str, on_host: bool = False) -> None:
        pass


_UNTIMED = _Untimed()


class TrainingStep:
    """Forward, backward, clipping and update, of the weights and of their average.

    Several batches have the gradient of one that holds all their images: losses that are means over
    what a batch has (its sampled RoIs, its foreground) are divided by the number in all of them.
    These numbers are only known after a forward pass, so there is one without gradients first; a
    step costs about a third more than its images in one batch, and no more memory than one of its
    batches. The same holds for batches on several ranks. Up to rounding only batch norm differs,
    which sees the batches one by one: what is drawn for an image follows from its own seed.

    Args:
        model: gives losses by name.
        optimizer: of its parameters.
        runtime: how to run it.
        guard: takes the optimiser's step.
        seed: of the training; a step draws from ``(seed, step)``, in further batches from ``(seed,
            step, number)``, and on further ranks from ``(seed, step, number, rank)``.
        gradient_clip: largest L2 norm of all gradients together, or ``None``.
        ranks: that take the step together.
        average: of the weights, where one is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        guard: StepGuard,
        seed: int,
        gradient_clip: float | None = None,
        ranks: Ranks | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.parallel = DataParallel(model, ranks)
        self.optimizer = optimizer
        self.runtime = runtime
        self.guard = guard
        self.seed = seed
        self.gradient_clip = gradient_clip
        self.average = average
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(
        self, batches: Sequence[Batch], step: int, stopwatch: Stopwatch
    ) -> dict[str, Tensor]:
        """Takes the step after ``step`` finished ones.

        Args:
            batches: this rank's part of each, on the host or on the device.
            step: finished steps.
            stopwatch: gets the laps ``data`` (the copy to the device), ``forward``, ``backward``
                and ``update``; the count before several batches is ``forward`` too.

        Returns:
            0-d tensors: ``loss``, the losses it is the sum of, and ``gradient_norm``, the same on
            all ranks.
        """
        found = self._take(batches, step, stopwatch)
        if self.average:
            self.average.update(self.model, step + 1)
        stopwatch.lap("update")
        return found

    def record(
        self, batch: Batch, average_weight: Tensor, stopwatch: Stopwatch | None = None
    ) -> dict[str, Tensor]:
        """The same step, where nothing that changes from step to step comes from the host.

        The random numbers of the step have been seeded, and the optimiser's learning rates are
        tensors.

        Args:
            batch: on the device.
            average_weight: 0-d, see :meth:`detector.engine.weight_average.WeightAverage.follow`.
            stopwatch: gets the laps, where the step is taken and not only recorded.
        """
        stopwatch = stopwatch or _UNTIMED
        found = self._take([batch], None, stopwatch)
        if self.average:
            self.average.follow(self.model, average_weight)
        stopwatch.lap("update")
        return found

    def seed_step(self, step: int, number: int = 0) -> None:
        """Fixes what the ``number``-th batch of the step after ``step`` finished ones draws."""
        rank = self.parallel.ranks.rank
        further = [number, rank] if rank else [number] if number else []
        seed_everything(self.seed, step, *further)

    def _take(
        self, batches: Sequence[Batch], step: int | None, stopwatch: Stopwatch
    ) -> dict[str, Tensor]:
        self.guard.begin()
        losses = self.parallel.reduce(self.backward(batches, step, stopwatch))
        norm = self.gradient_norm()
        if self.gradient_clip is not None:
            clip_grads_with_norm_(self._parameters, self.gradient_clip, norm)
        norm = self.guard.step(losses["loss"], norm)
        return {**losses, "gradient_norm": norm}

    def backward(
        self,
        batches: Sequence[Batch],
        step: int | None,
        stopwatch: Stopwatch,
        look: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> dict[str, Tensor]:
        """Losses and gradients alone, the latter times the loss scale.

        The losses are this rank's share of those of the batch. Without a ``step`` nothing is
        seeded. ``look`` is handed each batch's losses before the way backward.
        """
        whole = self._count(batches, step) if len(batches) > 1 else None
        stopwatch.lap("forward")
        self.optimizer.zero_grad(set_to_none=True)
        summed: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            moved = self.runtime.move(batch)
            stopwatch.lap("data", on_host=True)
            with self.parallel.sharing(number == len(batches) - 1):
                with whole.dividing() if whole else self.parallel.counting():
                    losses = self._losses(self.parallel, moved, step, number)
                total = sum(losses.values())
                if look is not None:
                    look(losses)
                stopwatch.lap("forward")
                self.guard.scale(self.parallel.scale(total)).backward()
            stopwatch.lap("backward")
            for name, loss in {"loss": total, **losses}.items():
                summed[name] = summed[name] + loss.detach() if number else loss.detach()
        return summed

    def gradient_norm(self) -> Tensor:
        """0-d: L2 over all gradients, which are freed from the loss scale first."""
        self.guard.unscale()
        return get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def _losses(
        self, forward: Callable[..., dict[str, Tensor]], batch: Batch, step: int | None, number: int
    ) -> dict[str, Tensor]:
        if step is not None:
            self.seed_step(step, number)
        with self.runtime.autocast():
            return forward(batch.images, batch.image_sizes, batch.targets, *given_proposals(batch))

    @torch.no_grad()
    def _count(self, batches: Sequence[Batch], step: int | None) -> WholeBatch:
        whole = WholeBatch()
        with _statistics_kept(self.model):
            for number, batch in enumerate(batches):
                moved = self.runtime.move(batch)
                with whole.counting():
                    self._losses(self.model, moved, step, number)
        self.parallel.add_up(whole)
        return whole


def check_accumulate(number: int) -> int:
    """How many batches make a step.

    Raises:
        ValueError: less than one.
    """
    if number < 1:
        raise ValueError(f"training.accumulate={number}; it must be at least 1")
    return number


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm that normalises by the batch, as in training, and does not remember it."""
    norms = tracked_norms(model)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
