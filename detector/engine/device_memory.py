"""How much memory a training may take, and how much it has taken at most.

On a GPU the driver and torch's allocator say. On a CPU it is what the kernel can still give this
process: what is available on the machine, less where a control group (of a container, or a job of
Slurm) or ``ulimit`` allows less. Data workers and other programs share it, and Linux kills what
takes too much instead of refusing, so that less of it is planned with than of a GPU's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

GIB = 2**30
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": GIB, "t": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b", re.IGNORECASE)
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


class DeviceMemory(Protocol):
    """The memory of one device as this process sees it; all in bytes.

    Attributes:
        share: of :meth:`available` that is planned with, if nothing else is said.
        forgiving: whether asking for too much is refused, and does no harm.
    """

    share: float
    forgiving: bool

    def available(self) -> float:
        """What this process has, and what it could still get."""

    def begin(self) -> None:
        """Gives back what is not in use, and forgets the peak."""

    def bounded(self) -> AbstractContextManager[None]:
        """Within it, asking for more than there is raises an error, and nothing worse."""

    def used(self) -> float:
        """What this process has now."""

    def peak(self) -> float:
        """The most that it had since :meth:`begin`."""


class GpuMemory:
    """Of a GPU: what torch's allocator has reserved, of what is not taken by other programs."""

    share = 0.9
    forgiving = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def available(self) -> float:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + self.used()

    def begin(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def bounded(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def used(self) -> float:
        return torch.cuda.memory_reserved(self._device)

    def peak(self) -> float:
        return torch.cuda.max_memory_reserved(self._device)


class HostMemory:
    """Of the machine: resident pages of this process, whose high-water mark Linux keeps.

    Args:
        processes: of the same training on this machine, which share what is free.
        proc, cgroups: where the kernel tells.

    Raises:
        ValueError: the kernel does not tell.
    """

    share = 0.8
    forgiving = False

    def __init__(self, processes: int = 1, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._processes = processes
        self._proc = proc
        self._cgroups = cgroups
        try:
            self.peak()
            self._forget_peak()
        except (OSError, KeyError) as error:
            raise ValueError(
                f"data.batch_size=auto on a CPU needs Linux to say what a process has taken "
                f"({error}); give a number"
            ) from error

    def available(self) -> float:
        # "MemAvailable:   24000000 kB": what can be had without swapping.
        free = [self._field("meminfo", "MemAvailable")]
        free += cgroup_free(self._proc, self._cgroups)
        import resource

        for limit, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            allowed, _ = resource.getrlimit(limit)
            if allowed != resource.RLIM_INFINITY:
                free.append(allowed - self._field("self/status", taken))
        return max(min(free), 0.0) / self._processes + self.used()

    def begin(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # only glibc keeps what is freed
            ctypes.CDLL(None).malloc_trim(0)
        self._forget_peak()

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        room = self._field("self/status", "VmData") + self.available() - self.used()
        limits = [room, *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_DATA, (int(min(limits)), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def used(self) -> float:
        return self._field("self/status", "VmRSS")

    def peak(self) -> float:
        return self._field("self/status", "VmHWM")

    def _forget_peak(self) -> None:
        (self._proc / "self" / "clear_refs").write_text("5")

    def _field(self, file: str, name: str) -> float:
        for line in (self._proc / file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return float(value.split()[0]) * 1024
        raise KeyError(f"{self._proc / file} has no {name}")


def cgroup_free(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> list[float]:
    """Bytes that each control group of this process, of version 2 or 1, can still give it.

    What the kernel has read from files and can drop again counts as free.
    """
    with contextlib.suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text().splitlines()
        for _, controllers, path in (line.split(":", 2) for line in lines):
            if controllers == "":
                names, top = ("memory.max", "memory.current", "inactive_file"), cgroups
            elif "memory" in controllers.split(","):
                names = (
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
                top = cgroups / "memory"
            else:
                continue
            group = top / path.strip("/")
            groups = [group, *group.parents] if group.is_relative_to(top) else [top]
            found = [_group_free(each, *names) for each in groups if each.is_relative_to(top)]
            if free := [value for value in found if value is not None]:
                return free
    return []


def _group_free(group: Path, limit: str, usage: str, droppable: str) -> float | None:
    try:
        allowed, taken = (group / limit).read_text(), float((group / usage).read_text())
        statistics = (group / "memory.stat").read_text().split()
    except OSError:
        return None
    if allowed.strip() == "max":
        return None
    cache = dict(zip(statistics[::2], map(float, statistics[1::2]), strict=True))
    return float(allowed) - taken + cache.get(droppable, 0.0)


def memory_of(device: torch.device) -> DeviceMemory:
    """Of the device, as one process of a training sees it.

    Raises:
        ValueError: a CPU whose operating system does not say enough.
    """
    if device.type == "cuda":
        return GpuMemory(device)
    return HostMemory(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parse_memory(key: str, value: str | float | None, available: float, share: float) -> float:
    """Bytes of ``"16GiB"``, ``"500 MB"`` or a share of what is available, such as ``0.5``.

    A GB is meant as a GiB.

    Args:
        key: the setting, for the message.
        value: what it is set to; ``None`` is ``share``.
        available: bytes.
        share: of it.

    Raises:
        ValueError: no amount of memory.
    """
    if value is None:
        return share * available
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return value * available
    if isinstance(value, str) and (found := _AMOUNT.fullmatch(value.strip())):
        amount = float(found[1]) * _UNITS[found[2].lower()]
        if amount > 0:
            return amount
    raise ValueError(
        f"{key}={value}: write an amount such as 16GiB or 500MiB, a share such as 0.8, or null"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there; torch has a type of its own for GPUs only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed")
    words += ("bad_alloc",)
    return isinstance(error, RuntimeError) and any(word in text for word in words)
