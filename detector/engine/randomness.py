"""Random numbers that follow from the seed and the step alone."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seeds torch (all devices), numpy and Python from the numbers in ``key``.

    The training loop calls it before every step with ``(seed, step)``. What a step draws then
    depends neither on what loading, evaluation or drawing pictures drew before it, nor on where
    training was interrupted: resuming is exact without generator states in the checkpoint.

    Raises:
        ValueError: a number is negative.
    """
    if min(key) < 0:
        raise ValueError(f"seed={key[0]}; it must be 0 or more")
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(key).generate_state(3).tolist()
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    random.seed(python_seed)
