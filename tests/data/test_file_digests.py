"""Digests of files: the content's, made again when a file may have changed."""

from __future__ import annotations

import hashlib
import os

import detector.data.file_digests as file_digests
from detector.data.file_digests import digest_files


def test_one_file_has_its_own_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert digest_files([tmp_path / "a"]) == hashlib.sha256(b"content").hexdigest()


def test_old_files_are_read_once_and_changed_ones_again(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    for path in paths[:2]:
        path.write_bytes(b"content")
    reads = []
    digest = file_digests._digest_contents
    monkeypatch.setattr(file_digests, "_digest_contents", lambda p: reads.append(1) or digest(p))
    first = digest_files(paths)
    digest_files(paths)
    assert len(reads) == 2, "written just now: it may change again in the same tick of the clock"
    monkeypatch.setattr(file_digests, "_SETTLED_SECONDS", -5.0)
    assert [digest_files(paths), digest_files(paths)] == [first, first] and len(reads) == 3
    os.utime(paths[0], (10, 10))
    assert digest_files(paths) == first and len(reads) == 4
    paths[1].write_bytes(b"Content")
    second = digest_files(paths)
    assert second != first
    paths[2].write_bytes(b"")
    assert digest_files(paths) not in (first, second)


def test_files_are_told_apart_where_they_meet(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    first = digest_files([a, b])
    a.write_bytes(b"1")
    b.write_bytes(b"23")
    assert digest_files([a, b]) != first != digest_files([b, a])
