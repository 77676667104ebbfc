"""The tool that fetches public datasets."""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from detector.data.download.fetching import check_digest, fetch
from detector.data.download.sources import SOURCES, Archive, Source
from detector.data.download.unpacking import unpack

MARGIN = 1.05  # of the room asked for: file systems need some themselves


def download(cfg: DictConfig, console: Console) -> None:
    """Fetches ``cfg.dataset``, a key of :data:`SOURCES`, into ``cfg.output``.

    What an earlier call has fetched or unpacked is not fetched again.

    Raises:
        ValueError: an unknown name, too little room, or what came is not what was published.
        OSError: no connection.
    """
    if cfg.dataset not in SOURCES:
        raise ValueError(f"dataset={cfg.dataset} is not known: write {', '.join(SOURCES)}")
    source, root = SOURCES[cfg.dataset], Path(str(cfg.output))
    console.print(f"{source.title}; its terms of use are at {source.site}", soft_wrap=True)
    download_source(source, root, console, bool(cfg.keep_archives))
    words = source.words.format(root=root)
    console.print(f"read with {words}", soft_wrap=True)


def download_source(source: Source, root: Path, console: Console, keep_archives: bool) -> None:
    """Fetches, checks and unpacks what is not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    missing = [archive for archive in source.archives if not _mark(root, archive).exists()]
    check_room(root, missing, keep_archives)
    for archive in source.archives:
        if archive not in missing:
            console.print(f"{archive.name}: is there", soft_wrap=True)
            continue
        file = root / archive.name
        if file.exists():  # laid there by hand, or kept
            check_digest(file, archive.md5, archive.url)
        else:
            _fetch_shown(archive, file, console)
        count = unpack(file, root / archive.folder, archive.strip)
        _mark(root, archive).write_text(f"{archive.url}\n")
        if not keep_archives:
            file.unlink()
        console.print(f"{archive.name}: {count} files", soft_wrap=True)
    if source.finish is not None and missing:
        source.finish(root)


def check_room(root: Path, missing: list[Archive], keep_archives: bool) -> None:
    """Asks whether the archives and their content find room.

    Raises:
        ValueError: they do not.
    """
    needed = sum(archive.unpacked for archive in missing)
    packed = [archive.megabytes for archive in missing]
    needed += sum(packed) if keep_archives else max(packed, default=0)
    for archive in missing:
        for name in (archive.name, f"{archive.name}.part"):
            if (root / name).exists():
                needed -= (root / name).stat().st_size / 1e6
    free = shutil.disk_usage(root).free / 1e6
    if MARGIN * needed > free:
        raise ValueError(
            f"{root}: {needed / 1e3:.1f} GB are needed and {free / 1e3:.1f} GB free; make room, or "
            "choose another output="
        )


def _mark(root: Path, archive: Archive) -> Path:
    return root / f".{archive.name}.unpacked"


def _fetch_shown(archive: Archive, file: Path, console: Console) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(archive.name, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        fetch(archive.url, file, archive.md5, show)
