"""One gradient of several ranks: that of all their images in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.engine.distributed import Ranks
from detector.engine.precise_bn import tracked_norms
from detector.ops.loss_counts import WholeBatch, asking


class DataParallel:
    """A model whose losses and gradients are those of all ranks' images.

    Losses are divided by what the batch has on all ranks (:mod:`detector.ops.loss_counts`), so that
    those of the ranks add up to that of the batch. Batch norm that is not synchronised sees the
    images of its rank; running statistics are averaged over the ranks in every step, so that all
    have the same model. A single rank goes through the model as it is.

    Args:
        model: with the same weights on all ranks.
        ranks: who takes part.

    Raises:
        ValueError: synchronised batch norm on a CPU, where torch has none.
    """

    def __init__(self, model: nn.Module, ranks: Ranks | None = None) -> None:
        self.model = model
        self.ranks = ranks or Ranks()
        self._parallel: DistributedDataParallel | None = None
        self._statistics: list[Tensor] = []
        self._first = True
        if self.ranks.size == 1:
            return
        norms = tracked_norms(model)
        synchronised = [norm for norm in norms if isinstance(norm, nn.SyncBatchNorm)]
        if synchronised and not next(model.parameters()).is_cuda:
            raise ValueError(
                f"norm=sync_bn needs GPUs where {self.ranks.size} ranks train together; choose "
                "norm=gn, bn or frozen_bn"
            )
        for norm in norms:
            if norm not in synchronised:
                self._statistics += [norm.running_mean, norm.running_var]
        with warnings.catch_warnings():
            # torch 2.15 is about to rename broadcast_buffers; torch 2.11 knows no other name.
            warnings.simplefilter("ignore", FutureWarning)
            self._parallel = DistributedDataParallel(
                model,
                broadcast_buffers=False,
                init_sync=False,
                gradient_as_bucket_view=True,
                static_graph=True,
            )

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """The model's losses, for a way backward."""
        return self.model(*inputs) if self._parallel is None else self._parallel(*inputs)

    def counting(self) -> AbstractContextManager[None]:
        """Around the forward pass of a batch: losses are divided by the counts of all ranks."""
        return nullcontext() if self._parallel is None else asking(self._total)

    def add_up(self, whole: WholeBatch) -> None:
        """Makes the counts of this rank's parts of a batch those of all ranks'."""
        if self._parallel is None:
            return
        counts = [n.clone() for n in whole.totals if isinstance(n, Tensor)]
        self.ranks.add_up(counts)
        summed = iter(counts)
        whole.totals = [
            next(summed) if isinstance(n, Tensor) else n * self.ranks.size for n in whole.totals
        ]

    def sharing(self, is_last: bool) -> AbstractContextManager[None]:
        """Around a way forward and backward; gradients go round after the last of a step.

        In the first step they do after each, which gives the same sum: a static graph is learnt
        from the very first way backward, and has to see one that goes round.
        """
        if self._parallel is None or is_last or self._first:
            self._first = self._first and not is_last
            return nullcontext()
        return self._parallel.no_sync()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from: gradients are averaged over the ranks, where losses add."""
        return loss if self._parallel is None else loss * self.ranks.size

    def reduce(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses of all ranks together; batch statistics become their means.

        One collective, so that all ranks know of a loss that is not finite.
        """
        if self._parallel is None:
            return dict(losses)
        summed = torch.stack([loss.detach().float() for loss in losses.values()])
        for statistic in self._statistics:
            statistic /= self.ranks.size
        self.ranks.add_up([summed, *self._statistics])
        return dict(zip(losses, summed.unbind(), strict=True))

    def _total(self, own: int | Tensor) -> int | Tensor:
        if not isinstance(own, Tensor):
            return own * self.ranks.size  # it follows from shapes, which are the same on all
        total = own.clone()
        dist.all_reduce(total)
        return total
