"""Several trainings by one command, as rows of a table: ``tools/train.py -m key=a,b,c``.

runs/sweeps/<time>/     or the run_dir of the command line, or what hydra.sweep.dir says
    roi_op=roi_pool/    the run directory of a row, named by what is its own
    roi_op=roi_align/
    table.json          every row's final metrics
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.table import Table

from detector.engine.atomic_file import write_json
from detector.engine.progress import open_console

SWEEP_DIR = "hydra.sweep.dir"  # of several trainings by one command, as run_dir is of one
SHOWN = ("AP", "AP50", "AP75", "AR100", "AR1000")


def row_name(overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """What makes a row: ``"roi_op=roi_pool"``.

    Args:
        overrides: of this one training, as Hydra hands them on: ``true`` has become ``True``.
        arguments: the command line; what it gives one value all rows have in common.
    """
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    given = OverridesParser.create().parse_overrides(words)
    common = {_key(word.input_line) for word in given if not word.is_sweep_override()}
    own = [word for word in overrides if _key(word) not in common]
    pairs = (word.lstrip("+").partition("=") for word in own)
    short = (f"{key.partition('@')[0].rpartition('/')[2]}={value}" for key, _, value in pairs)
    return re.sub(r"[^A-Za-z0-9_=.,+-]+", "-", ",".join(short)) or "row"


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def row_directory(folder: Path, row: str, run_dir: str | None, resume: str | None) -> Path:
    """The run directory of a row.

    Args:
        folder: of all rows, where ``run_dir`` does not say it.
        row: its name.
        run_dir, resume: of the command line.

    Raises:
        ValueError: the rows are to be resumed, but it is not said where they are.
    """
    if resume not in (None, "auto") or (resume == "auto" and run_dir is None):
        raise ValueError(
            f"resume={resume}: several trainings go on with resume=auto and run_dir= the folder of "
            "them all, which each of them printed when it began"
        )
    return (folder if run_dir is None else Path(run_dir)) / row


def report_sweep(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the table of the rows' final metrics and writes ``table.json``.

    Args:
        folder: of the rows; those that other processes have finished in it are in the table too.
        rows: by name, metrics such as ``{"box": {"AP": ...}, "mask": {...}}``, or ``voc``.
    """
    table: dict[str, Any] = {}
    # Another may finish while this is written.
    while table.keys() != (found := {**rows, **finished_rows(folder), **rows}).keys():
        table = found
        write_json(folder / "table.json", table)
    console = open_console()
    console.print(sweep_table(table))
    console.print(f"written to {folder / 'table.json'}", soft_wrap=True)


def finished_rows(folder: Path) -> dict[str, Any]:
    """The final metrics of every training in the folder, by its name."""
    files = sorted(folder.glob("*/metrics.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def sweep_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each training, in percent."""
    columns = [
        (kind, key)
        for kind in dict.fromkeys(kind for metrics in rows.values() for kind in metrics)
        for key in SHOWN
        if any(key in metrics.get(kind, ()) for metrics in rows.values())
    ]
    table = Table(pad_edge=False)
    table.add_column("", no_wrap=True)  # where it is narrow, what the rows are matters most
    for kind, key in columns:
        table.add_column(f"{kind} {key}", justify="right")
    for name, metrics in rows.items():
        values = (metrics.get(kind, {}).get(key) for kind, key in columns)
        table.add_row(name, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    return table
