"""Processes that train one model together, each on its part of every batch: the *ranks*.

torchrun, or whatever else sets its environment variables, starts them; see ``docs/distributed.md``.
Models know nothing of it. What ranks decide together goes over a group of its own on the host
(gloo), so that a GPU is never asked; gradients go over NCCL on GPUs and gloo on CPUs.

Until :meth:`Ranks.start` a rank that fails tells the others, and all end with one message.
Afterwards all do the same number of collectives whatever their data, and one that is missing is
named by the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detector.engine.rank_failure import describe_missing, is_connection_error, missing_ranks
from detector.engine.runtime import Runtime

Value = TypeVar("Value")

_opened = 0  # groups of this process so far: each has its own part of the store


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, on all machines and on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place_in_environment() -> Place:
    """What torchrun says in ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``.

    Where somebody else has set ``WORLD_SIZE`` and ``MASTER_ADDR``, Slurm's numbers of the task
    stand in for the others.

    Raises:
        ValueError: some are missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Place()
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    if rank is None or local_rank is None or "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE={size} is in the environment, but RANK, LOCAL_RANK or MASTER_ADDR is not. "
            "Start with torchrun, which sets them all, or unset WORLD_SIZE"
        )
    return Place(int(rank), size, int(local_rank))


def check_alone(what: str) -> None:
    """Refuses what only one process can do.

    Raises:
        ValueError: names ``what``.
    """
    size = place_in_environment().size
    if size > 1:
        raise ValueError(f"{what} is not for {size} ranks; start it without torchrun")


class Ranks:
    """The processes of a training; one that is alone has no need to wait for anybody.

    Args:
        place: of this process.
        store: what all can write into; ``None`` for one alone.
        decisions: the group on the host.
        timeout: seconds that a rank may be late.

    Attributes:
        rank, size, local_rank: as in :class:`Place`.
        waiting_for: what a rank that is missing has not reached, for those who read of it.
    """

    def __init__(
        self,
        place: Place | None = None,
        store: dist.Store | None = None,
        decisions: dist.ProcessGroup | None = None,
        timeout: float = 600.0,
    ) -> None:
        place = place or Place()
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.waiting_for = "the first step"
        self._store = store
        self._decisions = decisions
        self._timeout = timeout
        self._started = False
        self._names: list[str] = []

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def __str__(self) -> str:
        return f" on {self.size} ranks" if self.size > 1 else ""

    # Before the first step.

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What ``function`` gives on the first rank, on all; it must be picklable."""
        return self.exchange(function() if self.is_first else None)[0]

    def in_turn(self, function: Callable[[], Value]) -> Value:
        """Calls it on one rank of each machine first: it may make files that the others read."""
        value = function() if self.local_rank == 0 else None
        self.exchange(None)
        return function() if self.local_rank else value

    def exchange(self, value: Any) -> list[Any]:
        """The values of all ranks in their order; each must be picklable.

        Raises:
            SystemExit: another rank has failed, and says why.
        """
        if self.size == 1:
            return [value]
        return self._exchange(value, failed=False)

    def place(self, runtime: Runtime) -> Runtime:
        """The same on this rank's own GPU.

        Raises:
            ValueError: there are fewer GPUs than ranks on this machine, or a certain one is asked
                for.
        """
        if self.size == 1 or runtime.torch_device.type != "cuda":
            return runtime
        if torch.device(runtime.device).index is not None:
            raise ValueError(
                f"runtime.device={runtime.device}: {self.size} ranks use a GPU each; leave it auto"
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise ValueError(
                f"torch sees {count} CUDA devices, but rank {self.rank} is number "
                f"{self.local_rank + 1} on {socket.gethostname()}; start {count} processes there "
                f"(torchrun --nproc-per-node={count})"
            )
        return replace(runtime, device=f"cuda:{self.local_rank}")

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Every rank gets the first one's parameters and buffers."""
        if self.size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            sent = tensor.detach().contiguous()  # weights may be channels_last
            dist.broadcast(sent, 0)
            tensor.copy_(sent)

    def start(self) -> None:
        """All have come so far without an error; call it before the first step."""
        self._names = self.exchange(f"{socket.gethostname()}, process {os.getpid()}")
        self._started = True

    # While training. All ranks call these equally often.

    def highest(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        shared = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self._decisions)
        return shared.item()

    def of_first(self, value: float) -> float:
        """The first rank's value, which is not negative."""
        return self.highest(value if self.is_first else 0.0)

    def meet(self, step: int) -> None:
        """Waits until all have the data for ``step`` (1 is the first)."""
        self.waiting_for = f"step {step}"
        if self.size > 1:
            dist.barrier(group=self._decisions)

    def gather(self, value: Any) -> list[Any] | None:
        """All values on the first rank, ``None`` on the others."""
        if self.size == 1:
            return [value]
        found = [None] * self.size if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self._decisions)
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks; of one dtype and device, one collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    # When something goes wrong.

    def failed(self, error: BaseException) -> BaseException:
        """What to raise instead of ``error``, that all ranks together say one thing once.

        If another rank is the cause, this ends the process and names it.
        """
        if self.size == 1 or not isinstance(error, Exception):
            return error
        if isinstance(error, FloatingPointError) and not self.is_first:
            return SystemExit(2)  # all have the same losses
        if is_connection_error(error):
            self._blame_others(error)
        if not self._started:
            with contextlib.suppress(RuntimeError, ValueError):  # then they are gone already
                self._exchange(None, failed=True)
        elif self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(f"failed/{self.rank}", f"{type(error).__name__}: {error}")
        if not isinstance(error, OSError | ValueError):
            error.add_note(f"on rank {self.rank}")
        return error

    def _exchange(self, value: Any, failed: bool) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (failed, value), group=self._decisions)
        whose = [rank for rank, (bad, _) in enumerate(found) if bad]
        if whose and (not failed or whose[0] != self.rank):
            raise SystemExit(2)
        return [value for _, value in found]

    def _blame_others(self, error: Exception) -> None:
        assert self._store is not None
        missing = missing_ranks(self._store, self.rank, self.size)
        said = describe_missing(missing, self._names, self.waiting_for, self._timeout, str(error))
        # Threads of the collective that will never end could keep an ordinary exit from ending.
        print(f"detector: rank {self.rank}: {said}", file=sys.stderr, flush=True)
        os._exit(1)


@contextlib.contextmanager
def open_ranks(timeout: float, on_gpu: bool) -> Iterator[Ranks]:
    """The ranks that the environment speaks of.

    Args:
        timeout: seconds that a rank may be later than the others.
        on_gpu: whether gradients lie on GPUs.

    Raises:
        ValueError: the environment variables are not complete.
    """
    global _opened
    place = place_in_environment()
    if place.size == 1:
        yield Ranks()
        return
    os.environ.setdefault("RANK", str(place.rank))  # for torch's rendezvous
    wait = timedelta(seconds=timeout)
    if on_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    root, _, _ = next(iter(dist.rendezvous("env://", timeout=wait)))
    store = dist.PrefixStore(f"detector/{_opened}", root)
    _opened += 1
    # Twice as patient as the group that decides, which can tell who is late.
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("gradients", store),
        rank=place.rank,
        world_size=place.size,
        timeout=2 * wait,
    )
    ranks = Ranks(place, store, dist.new_group(backend="gloo", timeout=wait), timeout)
    try:
        yield ranks
        ranks.exchange(None)  # none leaves, and takes the store along, while another needs it
    except BaseException as error:
        instead = ranks.failed(error)
        if instead is error:
            raise
        raise instead from None
    finally:
        dist.destroy_process_group()


class Unwritten:
    """Stands on the other ranks for what only the first one writes: takes any call."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None
