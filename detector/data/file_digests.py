"""Digests of files' contents, made again only for files that changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.cache import cache_directory

# A file written to this recently may change again within one tick of its file system's clock.
_SETTLED_SECONDS = 2.0


def digest_files(files: Sequence[Path | str]) -> str:
    """SHA-256 of the contents of files, in their order; 64 hexadecimal digits.

    The digest is remembered beside each file's size, times and inode, so that the next start asks
    the file system only. A file that is not there counts as such.
    """
    paths = [os.path.abspath(file) for file in files]
    before = time.time()
    stamps = stamp_files(paths)
    cache = cache_directory() / "digests" / f"v1-{_hash_text(paths)}.npy"
    known = _remembered(cache, stamps)
    if known is not None:
        return known
    digest = _digest_contents(paths)
    newest = max(stamps[:, 1].max(initial=0), stamps[:, 2].max(initial=0)) / 1e9
    if newest < before - _SETTLED_SECONDS:
        _remember(cache, stamps, digest)
    return digest


def stamp_files(paths: Sequence[str]) -> np.ndarray:
    """Size, time of writing, time of change (ns) and inode of files, ``(n, 4)`` int64; -1: none."""
    return np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 4)


def _stamp(path: str) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1, -1, -1
    # Some file systems number their files with 64 bits.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def _digest_contents(paths: list[str]) -> str:
    if len(paths) == 1:
        try:
            with open(paths[0], "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            pass
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError:
            digest.update(b"none:")
        else:
            digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def _hash_text(paths: list[str]) -> str:
    return hashlib.sha256("\0".join(paths).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _remembered(cache: Path, stamps: np.ndarray) -> str | None:
    try:
        known = np.load(cache)
    except (OSError, ValueError, EOFError):
        return None
    if known.shape != (len(stamps) + 1, 4) or known.dtype != np.int64:
        return None
    return known[0].tobytes().hex() if np.array_equal(known[1:], stamps) else None


def _remember(cache: Path, stamps: np.ndarray, digest: str) -> None:
    first = np.frombuffer(bytes.fromhex(digest), dtype=np.int64)
    temporary = cache.with_name(f"{cache.stem}.{os.getpid()}.tmp.npy")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, np.concatenate([first[None], stamps]))
        os.replace(temporary, cache)
    except OSError:
        # Only time is lost: the next start reads the files again.
        with contextlib.suppress(OSError):
            temporary.unlink()
