"""Checkpoints that are written while training goes on.

    last.pt             the newest
    previous.pt         the one before, previous_2.pt the one before that (checkpoint.keep_last)
    best.pt             that of the best evaluation
    step_00010000.pt    kept for good (checkpoint.keep_every)

Files that hold the same step are one file under several names, where the file system has links.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from detector.engine.atomic_file import atomic_copy
from detector.engine.checkpoint import save_checkpoint
from detector.engine.run_directory import RunDirectory

GIB = 2**30


class CheckpointWriter:
    """Writes checkpoints in a thread, one after the other.

    A save copies everything to the host's memory and returns; the next one waits until this one is
    on the disk. A save that fails leaves the former checkpoint whole. Training goes on and the
    failure is told, unless the caller waits for this checkpoint (:meth:`save_now`): the last one
    of a training or before an exit has to be there.

    Args:
        run: where to write.
        keep_last: how many of the newest are kept, 1 for ``last.pt`` alone.
        step: of the checkpoint in ``last.pt`` that training goes on from, if it does.
        warn: is told what has gone wrong.

    Attributes:
        seconds: what the last one took to write.
    """

    def __init__(
        self,
        run: RunDirectory,
        keep_last: int = 2,
        step: int | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.run = run
        self.keep_last = keep_last
        self.seconds = 0.0
        self._warn = warn
        self._step = step  # what last.pt holds; a file that nobody has read is not kept
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._writing = -1 if step is None else step

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint, be it still being written; -1 for none."""
        return self._writing

    def __enter__(self) -> Self:
        # What a training that was killed while writing has left behind.
        for rest in self.run.last.parent.glob(".*.pt.*.tmp"):
            rest.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.wait()

    def save(self, content: dict[str, Any], best: bool = False, keep: bool = False) -> None:
        """Begins to write ``content``, which may be changed at once.

        Args:
            content: see :mod:`detector.engine.checkpoint`.
            best: also as ``best.pt``.
            keep: also as a copy of its step.

        Raises:
            FloatingPointError: a weight of the former checkpoint was not finite.
        """
        self.wait()
        copied = _to_host(content)
        self._writing = copied["step"]
        self._thread = threading.Thread(target=self._write, args=(copied, best, keep), daemon=True)
        self._thread.start()

    def save_now(self, content: dict[str, Any], best: bool = False, keep: bool = False) -> None:
        """Like :meth:`save`, and the file is there afterwards.

        Raises:
            OSError: it could not be written; says what is left and what to do.
            FloatingPointError: a weight is not finite.
        """
        self.save(content, best, keep)
        self.wait(required=True)

    def wait(self, required: bool = False) -> None:
        """Until nothing is being written; tells of a failure, or raises it if ``required``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        left = "no checkpoint is there yet"
        if self._step is not None:
            left = f"{self.run.last} of step {self._step} stays"
        said = f"the checkpoint of step {self._writing} could not be written ({error}); {left}"
        if required:
            raise OSError(
                f"{said}. Make room or the folder writable ({_free(self.run.path)}), and go on "
                "with resume=auto"
            ) from error
        self._warn(f"warning: {said}; training goes on ({_free(self.run.path)})")

    def _write(self, content: dict[str, Any], best: bool, keep: bool) -> None:
        began = time.perf_counter()
        try:
            step = content["step"]
            rotate = self._rotate if self._step not in (None, step) else None
            save_checkpoint(self.run.last, content, before=rotate)
            self._step = step
            if best:
                atomic_copy(self.run.last, self.run.best)
            if keep:
                atomic_copy(self.run.last, self.run.kept(step))
        except OSError as error:  # its frames would keep the copy in memory
            self._error = error.with_traceback(None)
        except BaseException as error:  # for the thread that waits
            self._error = error
        self.seconds = time.perf_counter() - began

    def _rotate(self) -> None:
        """``last.pt`` becomes ``previous.pt``, and keeps its name until it is replaced."""
        previous = [self.run.previous(age) for age in range(1, self.keep_last)]
        for newer, older in reversed(list(itertools.pairwise(previous))):
            if newer.exists():
                os.replace(newer, older)
        if previous:
            atomic_copy(self.run.last, previous[0])


class CheckpointFollower:
    """Stands on the other ranks for the :class:`CheckpointWriter` of the first: writes nothing."""

    seconds = 0.0

    def __init__(self, step: int | None = None) -> None:
        self.newest = -1 if step is None else step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def save(self, content: dict[str, Any], best: bool = False, keep: bool = False) -> None:
        """Notes the step."""
        self.newest = content["step"]

    save_now = save

    def wait(self, required: bool = False) -> None:
        pass


def check_writable(
    run: RunDirectory, content_bytes: int, keep_last: int, keep_every: int, max_steps: int
) -> None:
    """Refuses a folder that cannot hold what a training will write into it.

    Args:
        run: the run directory; made if it is not there.
        content_bytes: about the size of one checkpoint.
        keep_last, keep_every: of the group ``checkpoint``.
        max_steps: of the training.

    Raises:
        ValueError: a setting out of its range.
        OSError: it cannot be written to, the disk has less free space than that, or files may not
            be so large.
    """
    if keep_last < 1 or keep_every < 0:
        raise ValueError(
            f"checkpoint.keep_last={keep_last} and checkpoint.keep_every={keep_every}: give at "
            "least 1 checkpoint, and 0 (none) or more steps"
        )
    folder = run.last.parent
    probe = folder / f".probe.pt.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"written")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"run_dir={run.path} cannot be written to ({error}); choose another run_dir"
        ) from error
    allowed = _largest_file()
    if content_bytes > allowed:
        raise OSError(
            f"run_dir={run.path}: a checkpoint has about {content_bytes / GIB:.2f} GiB, but files "
            f"may have at most {allowed / GIB:.2f} here; raise `ulimit -f`"
        )
    inodes = {(f.stat().st_dev, f.stat().st_ino) for f in folder.glob("*.pt")}
    # The last, the best, the copies; one more lies beside them while it is being written.
    num_files = keep_last + 1 + (max_steps // keep_every if keep_every else 0)
    needed = content_bytes * (max(num_files - len(inodes), 0) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"run_dir={run.path}: {free / GIB:.2f} GiB are free, but the checkpoints need "
            f"{needed / GIB:.2f}, each {content_bytes / GIB:.2f}. Free some, choose a run_dir on "
            "another disk, or lower checkpoint.keep_last or set checkpoint.keep_every=0"
        )


def _largest_file() -> float:
    """Bytes that the system lets this process write into one file."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def checkpoint_bytes(optimizer: torch.optim.Optimizer, *models: nn.Module) -> int:
    """About the size of a checkpoint of these models and an optimiser before its first step.

    An optimiser keeps up to two numbers for each parameter, as Adam does; SGD at most one.
    """
    numbers = sum(p.numel() * p.element_size() for g in optimizer.param_groups for p in g["params"])
    moments = 2
    if isinstance(optimizer, torch.optim.SGD):
        moments = int(any(group["momentum"] for group in optimizer.param_groups))
    tensors = [tensor for model in models for tensor in model.state_dict().values()]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return sum(sizes) + moments * numbers


def _to_host(value: Any) -> Any:
    """A copy that shares no memory with what is trained on."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_host(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_host(child) for child in value)
    return value


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / GIB:.2f} GiB are free there"
    except OSError:
        return f"{folder} is not there"
