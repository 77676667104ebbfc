"""Which rank is missing when a collective has failed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist

ROLL_CALL = 20.0  # seconds to answer in: a rank hears of the failure at its next collective
AT_LEAST = 2.0  # seconds, if only one has not answered yet
_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "timed out")


def is_connection_error(error: Exception) -> bool:
    """Whether it says that a collective has failed, and not what this rank has done wrong.

    Gloo has no type of its own for its errors.
    """
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _WORDS)


def missing_ranks(
    store: dist.Store,
    rank: int,
    size: int,
    patience: float = ROLL_CALL,
    at_least: float = AT_LEAST,
) -> dict[int, str]:
    """The ranks that do not answer, each with what it has said of its own failure, if anything.

    All that are alive and have noticed call it: a collective that failed for one fails for all.

    Args:
        store: of all ranks; it may have gone with the first one.
        rank: of this process.
        size: the number of ranks.
        patience: seconds to wait for answers.
        at_least: seconds after which only one missing is the one.
    """
    began = time.monotonic()
    try:
        store.set(f"here/{rank}", "")
        missing = set(range(size)) - {rank}
        while missing:
            missing = {other for other in missing if not store.check([f"here/{other}"])}
            waited = time.monotonic() - began
            if waited > patience or (len(missing) == 1 and waited > at_least):
                break
            time.sleep(0.1)
        return {
            other: store.get(f"failed/{other}").decode() if store.check([f"failed/{other}"]) else ""
            for other in sorted(missing)
        }
    except RuntimeError:  # the store is where the first rank is, or was
        return {} if rank == 0 else {0: ""}


def describe_missing(
    missing: Mapping[int, str], names: Sequence[str], waiting_for: str, timeout: float, cause: str
) -> str:
    """``"rank 1 (host, process 42) did not reach step 7: ..."``, and what to do.

    Args:
        missing: of :func:`missing_ranks`.
        names: of all ranks.
        waiting_for: what the others wait for, such as ``"step 7"``.
        timeout: seconds that a rank may be late.
        cause: the failed collective's error.
    """
    again = "Go on from the last checkpoint with resume=auto, on as many ranks as you like"
    if not missing:
        return (
            f"a collective has failed before {waiting_for}, though all ranks are there ({cause}). "
            f"{again}"
        )
    said = []
    for rank, failure in missing.items():
        name = f"rank {rank} ({names[rank]})" if names else f"rank {rank}"
        said.append(f"{name} did not reach {waiting_for}" + (f": {failure}" if failure else ""))
    listed = "; ".join(said)
    if not any(missing.values()):
        listed += (
            f". It has died, or is more than distributed.timeout={timeout:g} s later than this one"
        )
    return f"{listed.removesuffix('.')}. {again}"
