"""Random numbers that follow from the seed and the step alone, and results that repeat."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def generators_kept() -> Iterator[None]:
    """What is drawn within leaves the generators of torch (all devices), numpy and Python alone."""
    host, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def set_deterministic(wanted: bool) -> None:
    """Has every operation give the same bits each time, or lets it be as fast as it can.

    Then the same seed gives the same weights, on one machine with one number of threads, whatever
    the number of data workers. On a GPU kernels that add in no fixed order are replaced by slower
    ones; an operation that has none raises and names itself.

    Args:
        wanted: sets it for the whole process, true or false.
    """
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        torch.backends.cudnn.benchmark = False  # it chooses kernels by what they took to run
        # Filling memory that is overwritten anyway finds mistakes, and costs much.
        torch.utils.deterministic.fill_uninitialized_memory = False
        # cuBLAS reads it when it is first used, which is after this.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
