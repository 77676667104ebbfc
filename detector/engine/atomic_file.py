"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_write(path: Path, before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` which takes its name when the block ends well.

    The bytes are on the disk before the rename, so a crash, a full disk or a power cut leaves the
    former file or the new one, never a part.

    Args:
        path: the file.
        before: called when the bytes are on the disk and before the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # of a write: the kernel does not say to which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_copy(source: Path, path: Path) -> None:
    """Makes ``path`` a file with the content of ``source``, without writing it twice if possible.

    A hard link serves as the copy: files of this module are replaced, never changed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
    except OSError:  # a file system without links
        with atomic_write(path) as file:
            file.write(source.read_bytes())
    else:
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # left where both names already were one file


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON, atomically; numpy and torch scalars become plain numbers.

    A list is written with one compact line per item, anything else indented for reading.
    """
    if isinstance(content, list):
        lines = [json.dumps(item, separators=(",", ":"), default=float) for item in content]
        text = "[" + ",\n".join(lines) + "]"
    else:
        text = json.dumps(content, indent=1, default=float)
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())
