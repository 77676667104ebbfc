"""Fetches a file that may be large over a connection that may break."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 6  # without any progress
AGENT = "detector-dataset-download"


def fetch(
    url: str,
    path: Path,
    md5: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    pause: float = 1.0,
) -> None:
    """Fetches ``url`` to ``path``, which is there whole or not at all.

    What has come lies in ``NAME.part`` beside it; a broken transfer, of this call or of an earlier
    one, goes on from there, unless the file has changed at the server.

    Args:
        url: of the file.
        path: where it goes; its folder is made.
        md5: of its content, 32 hexadecimal digits; ``None``: the size that the server tells counts.
        progress: called with the bytes that are there and all, ``None`` if the server does not say.
        pause: seconds before the second attempt; doubled each time nothing came.

    Raises:
        ValueError: the server has no such file, or what came is not it.
        OSError: no connection, again and again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.tag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(url, part, tag, progress):
                break
            reason: Exception | str = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ValueError(
                    f"{url}: the server answers {error.code} {error.reason}; fetch the file by "
                    f"hand and lay it at {path}"
                ) from None
            reason = error
        except (OSError, http.client.HTTPException) as error:
            reason = error
        came = (part.stat().st_size if part.exists() else 0) > before
        failures = 0 if came else failures + 1
        if failures >= ATTEMPTS:
            raise OSError(_explain(url, reason, path, part))
        time.sleep(min(pause * 2**failures, 60.0))
    try:
        check_digest(part, md5, url)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, path)
    tag.unlink(missing_ok=True)


def _explain(url: str, reason: Exception | str, path: Path, part: Path) -> str:
    """Why nothing comes any more, and what can be done."""
    failed = f"{url}: {getattr(reason, 'reason', reason)}, {ATTEMPTS} times; "
    no_answer = isinstance(reason, OSError) and not isinstance(reason, urllib.error.HTTPError)
    if not no_answer or (part.exists() and part.stat().st_size):
        return f"{failed}what has come is kept in {part}, and the same command goes on from there"
    site = urllib.parse.urlsplit(url).hostname
    return (
        f"{failed}{site} cannot be reached from here. See whether a browser opens the address "
        "(behind a proxy, set HTTPS_PROXY), or fetch the file where there is a network and lay it "
        f"at {path}; the same command goes on with it"
    )


def check_digest(file: Path, md5: str | None, url: str) -> None:
    """Compares a file's content with what is published.

    Raises:
        ValueError: it is another.
    """
    if md5 is None:
        return
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != md5:
        raise ValueError(
            f"{url}: what came ({file}) has the MD5 {found}, published is {md5}; it was damaged on "
            "its way or changed at the server. Remove it and try again"
        )


def _transfer(url: str, part: Path, tag: Path, progress: Callable[[int, int | None], None]) -> bool:
    """Adds to ``part`` what comes; whether that is all."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": AGENT})
    validator = tag.read_text() if start and tag.exists() else ""
    if start and validator:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    else:
        start = 0  # without a validator nobody knows whether the rest belongs to it
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # All there is has come, or more than that: the size says.
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(start):
            return True
        part.unlink()
        return False
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag.write_text("" if name.startswith("W/") else name)
        done = start
        with open(part, "ab" if start else "wb") as file:
            progress(done, total)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    return total is None or done == total
