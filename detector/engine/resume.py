"""Which checkpoint a training goes on from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from detector.engine.checkpoint import check_newest, check_resumable, load_checkpoint
from detector.engine.run_directory import RunDirectory


def load_to_resume(
    path: Path, run: RunDirectory, automatic: bool
) -> tuple[Path, dict[str, Any], list[str]]:
    """Reads the checkpoint to go on from, or the newest whole one before it.

    Args:
        path: the one chosen.
        run: where training will write.
        automatic: whether the run's newest is asked for (``resume=auto``); another one takes its
            place if it is broken. A checkpoint asked for by its name is never replaced.

    Returns:
        Its path, its content, and sentences on what could not be read.

    Raises:
        ValueError: no checkpoint can be read, or it is no state to go on from, or an older one than
            the run's last.
    """
    candidates = [path]
    if automatic:
        candidates += [file for file in run.saved if file != path]
    broken = []
    for file in candidates:
        try:
            content = _read_whole(file)
            check_resumable(file, content)
        except ValueError as error:
            if not automatic:
                raise
            broken.append((file, error))
            continue
        if not broken:
            check_newest(file, content, run.last)
        said = [
            f"{bad} cannot be read ({_first_clause(error)}); going on from {file} of step "
            f"{content['step']}, the newest whole one"
            for bad, error in broken
        ]
        return file, content, said
    raise broken[0][1]


def _read_whole(path: Path) -> dict[str, Any]:
    """As :func:`load_checkpoint`, which does not notice bits that have changed inside a tensor."""
    content = load_checkpoint(path)
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of its part {damaged} is wrong. Take another one, "
            "for example previous.pt or best.pt beside it"
        )
    return content


def _first_clause(error: Exception) -> str:
    return str(error).partition(". ")[0]
