"""The folder that holds everything a training leaves behind.

config.yaml      the resolved configuration
metrics.jsonl    one JSON object per log line and per evaluation
metrics.json     the final evaluation
checkpoints/     last.pt, previous.pt, best.pt, see :mod:`detector.engine.checkpoint_writer`
replay.pt        a step with a non-finite loss, see :mod:`detector.commands.replay`
tensorboard/     event files
profile/         traces of steps, see :mod:`detector.engine.profiler`
pictures/        ground truth beside predictions on validation images
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from detector.engine.checkpoint import checkpoint_file
from detector.engine.sweep import SWEEP_DIR


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metric_lines(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def previous(self, age: int = 1) -> Path:
        """The checkpoint ``age`` saves before the last."""
        return self.last.with_name("previous.pt" if age == 1 else f"previous_{age}.pt")

    def kept(self, step: int) -> Path:
        """The copy of a step that is kept for good."""
        return self.last.with_name(f"step_{step:08d}.pt")

    @property
    def saved(self) -> list[Path]:
        """The checkpoints, the newest first as far as names and times tell."""

        def age(previous: Path) -> int:
            return int(previous.stem.partition("_")[2] or 1)

        named = [self.last, *sorted(self.last.parent.glob("previous*.pt"), key=age)]
        others = [file for file in self.last.parent.glob("*.pt") if file not in named]
        others.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        return [file for file in (*named, *others) if file.is_file()]

    @property
    def replay(self) -> Path:
        return self.path / "replay.pt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"


def choose_run_directory(
    run_dir: str | None, resume: str | None, name: str, runs: Path = Path("runs")
) -> tuple[RunDirectory, Path | None]:
    """Decides where a training writes and which checkpoint it goes on from.

    Args:
        run_dir: the folder asked for; ``None`` is ``runs/<name>/<time>``, or when resuming, the
            folder of the checkpoint.
        resume: ``None`` for a new training; ``"auto"`` goes on from ``last.pt`` of ``run_dir``, or
            of the newest run of that ``name``, and starts anew where there is none (so a job that
            is killed and started again needs one command); else a checkpoint or a run directory.
        name: the experiment's name.
        runs: parent of the default folders.

    Returns:
        The run directory, not created yet, and the checkpoint to resume from or ``None``.

    Raises:
        FileNotFoundError: the checkpoint to resume from does not exist.
        ValueError: a new training was asked for in a folder that holds checkpoints.
    """
    # A folder called 2024 is a number to Hydra.
    run_dir, resume = (None if text is None else str(text) for text in (run_dir, resume))
    if resume == "auto":
        if run_dir is not None:
            directory = RunDirectory(Path(run_dir))
            return directory, next(iter(directory.saved), None)
        for folder in sorted((runs / name).glob("*"), reverse=True):
            if saved := RunDirectory(folder).saved:
                return RunDirectory(folder), saved[0]
    elif resume is not None:
        checkpoint = checkpoint_file(resume)
        inside_run = checkpoint.parent.name == "checkpoints"
        if run_dir is None and inside_run:
            return RunDirectory(checkpoint.parent.parent), checkpoint
        return RunDirectory(Path(run_dir) if run_dir else _new_folder(runs / name)), checkpoint
    if run_dir is None:
        return RunDirectory(_new_folder(runs / name)), None
    directory = RunDirectory(Path(run_dir))
    if any(directory.path.glob("checkpoints/*.pt")):
        raise ValueError(
            f"run_dir={run_dir} already holds checkpoints, which a new training would overwrite. "
            "Go on with resume=auto, or choose another run_dir"
        )
    return directory, None


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = parent / stamp, 2
    while folder.exists():
        folder, number = parent / f"{stamp}_{number}", number + 1
    return folder


def resume_command(
    directory: RunDirectory,
    arguments: list[str] | None = None,
    instead: Mapping[str, object] | None = None,
) -> str:
    """The shell command that goes on with this run.

    Args:
        directory: the run.
        arguments: the running command, by default ``sys.argv``; its overrides are kept.
        instead: settings that replace some of them.
    """
    program, *overrides = sys.argv if arguments is None else arguments
    instead = instead or {}
    again = ("run_dir", "resume", SWEEP_DIR, *instead)
    kept = [word for word in overrides if word.split("=")[0] not in again]
    if program.endswith(".py"):
        start = [_short(Path(sys.executable)), program]
    else:  # the installed command, followed by the tool's name
        path, _, tool = program.rpartition(" ")
        name = Path(path).name
        start = [name if shutil.which(name) == path else path, tool]
    kept += [f"{key}={value}" for key, value in instead.items()]
    return shlex.join([*start, *kept, f"run_dir={directory.path}", "resume=auto"])


def _short(path: Path) -> str:
    """Relative to the working directory where it lies inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
