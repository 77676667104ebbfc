"""Unpacks archives of strangers: nothing goes anywhere but into the folder."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

CHUNK = 1 << 20
# What archivers of other systems leave behind.
LITTER = ("__MACOSX", ".DS_Store")


def unpack(archive: Path, folder: Path, strip: str = "") -> int:
    """Unpacks the regular files of a zip or tar file into a folder; how many.

    They are unpacked beside the folder first and moved when all are there. Files that are there
    already are replaced.

    Args:
        archive: the file.
        folder: is made.
        strip: leading folder of the members that is left out.

    Raises:
        ValueError: it is no archive, is damaged, or holds names or links that lead out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking.", dir=folder))
    try:
        names = []
        for name, stream in _members(archive):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(stream, file, CHUNK)
            names.append(name)
        for name in names:
            parts = PurePosixPath(name).parts
            kept = parts[1:] if strip and parts[0] == strip and len(parts) > 1 else parts
            target = folder.joinpath(*kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / name, target)
        return len(names)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{archive}: a damaged archive ({error}); remove it and try again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise _refuse(archive, entry.filename, "is a link")
                name = _checked(archive, entry.filename)
                if not entry.is_dir() and name is not None:
                    with file.open(entry) as stream:
                        yield name, stream
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            for entry in file:
                name = _checked(archive, entry.name)
                if entry.isdir() or name is None:
                    continue
                if not entry.isreg():
                    raise _refuse(archive, entry.name, "is a link or a device")
                stream = file.extractfile(entry)
                assert stream is not None, "a regular file has content"
                yield name, stream
    else:
        raise ValueError(f"{archive}: neither a zip nor a tar file; remove it and try again")


def _checked(archive: Path, name: str) -> str | None:
    """The name if it stays inside, ``None`` for litter."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        if path.parts:
            raise _refuse(archive, name, "leads out of the folder")
        return None
    return None if set(path.parts) & set(LITTER) else str(path)


def _refuse(archive: Path, name: str, what: str) -> ValueError:
    return ValueError(f"{archive}: its member {name!r} {what}; this is not the dataset's archive")
