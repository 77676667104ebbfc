"""The training's losses on the validation set."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from detector.engine.inference import given_proposals
from detector.engine.randomness import seed_everything
from detector.engine.runtime import Runtime
from detector.structures import Batch

VALIDATION = 2**32 - 1  # stands in place of a step in the seed: no training is that long


class ValidationLoss:
    """Means over the images of a dataset, weights and batch statistics left as they are.

    A batch's losses count with its number of images. Which anchors and RoIs are drawn follows from
    the images, so that evaluations differ by the weights alone. Training seeds each of its steps;
    it is not disturbed.

    Args:
        runtime: how to run the model.
        seed: of the training.
    """

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self._runtime = runtime
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self._images = self._batches = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Adds a batch; the model's training mode is restored afterwards."""
        was_training = model.training
        model.eval()
        moved = self._runtime.move(batch)
        seed_everything(self._seed, VALIDATION, self._batches)
        try:
            with torch.inference_mode(), self._runtime.autocast():
                losses = model(
                    moved.images, moved.image_sizes, moved.targets, *given_proposals(moved)
                )
        finally:
            model.train(was_training)
        images = len(batch.images)
        for name, loss in {"loss": sum(losses.values()), **losses}.items():
            self._sums[name] = self._sums[name].to(loss.device) + loss.double() * images
        self._images += images
        self._batches += 1

    def state(self) -> tuple[int, dict[str, float]]:
        """Images and sums so far, which can be sent to another process."""
        return self._images, {name: float(total) for name, total in self._sums.items()}

    def merge(self, state: tuple[int, dict[str, float]]) -> None:
        """Takes in the state of another, of other images."""
        images, sums = state
        self._images += images
        for name, total in sums.items():
            self._sums[name] = self._sums[name] + total

    def result(self) -> dict[str, float]:
        """``{"loss": the sum of the others, "loss_box": ..., ...}``."""
        return {name: float(total) / self._images for name, total in self._sums.items()}
