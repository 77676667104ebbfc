"""Against a server of this process: broken transfers, wrong content, hostile archives."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import socket
import tarfile
import threading
import zipfile
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detector.commands import download as tool
from detector.data.coco import read_coco
from detector.data.download.fetching import fetch
from detector.data.download.mask_images import nuclei_records, penn_fudan_records, write_splits
from detector.data.download.sources import SOURCES, Archive, Source
from detector.data.download.unpacking import unpack
from detector.engine.progress import open_console

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves :attr:`files`; cuts each answer after :attr:`cut` bytes while :attr:`cuts` last."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []
        self.tag, self.cut, self.cuts, self.ranges = '"one"', 0, 0, True

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        content = server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        start = 0
        if server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts > 0:
            server.cuts -= 1
            body = body[: server.cut]
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    with Server() as server:
        server.files["a.bin"] = CONTENT
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cut, server.cuts = 100_000, 2
    told = []
    path = tmp_path / "new" / "a.bin"
    fetch(server.url("a.bin"), path, hashlib.md5(CONTENT).hexdigest(),
          lambda done, total: told.append((done, total)), pause=0)  # fmt: skip
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert told[-1] == (300_000, 300_000) and {total for _, total in told} == {300_000}
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_a_later_call_goes_on_too(server, tmp_path):
    server.cut, server.cuts = 120_000, 1
    path = tmp_path / "a.bin"

    class Killed(Exception):
        pass

    def kill(done, total):
        if done:
            raise Killed

    with pytest.raises(Killed):
        fetch(server.url("a.bin"), path, progress=kill, pause=0)
    assert not path.exists() and (tmp_path / "a.bin.part").stat().st_size == 120_000
    fetch(server.url("a.bin"), path, pause=0)
    assert path.read_bytes() == CONTENT and server.requests[-1] == "bytes=120000-"


def test_a_transfer_that_was_whole_but_for_its_name(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.tag").write_text(server.tag)
    fetch(server.url("a.bin"), tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and len(server.requests) == 1


@pytest.mark.parametrize("change", ["another file", "no ranges"])
def test_what_does_not_belong_together_is_not_joined(server, tmp_path, change):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 100_000)
    (tmp_path / "a.bin.part.tag").write_text('"former"' if change == "another file" else server.tag)
    server.ranges = change != "no ranges"
    fetch(server.url("a.bin"), tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    with pytest.raises(ValueError, match=f"has the MD5 {hashlib.md5(CONTENT).hexdigest()}"):
        fetch(server.url("a.bin"), tmp_path / "a.bin", "0" * 32, pause=0)
    assert not list(tmp_path.glob("a.bin")) and not list(tmp_path.glob("*.part"))


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(ValueError, match=r"answers 404 .* by hand and lay it at"):
        fetch(server.url("b.bin"), tmp_path / "b.bin", pause=0)
    server.cut, server.cuts = 0, 100
    with pytest.raises(OSError, match="6 times; what has come is kept"):
        fetch(server.url("a.bin"), tmp_path / "a.bin", pause=0)


def test_a_site_that_cannot_be_reached_is_named_with_what_helps(tmp_path):
    with socket.socket() as free:  # a port where nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
        with pytest.raises(OSError) as refused:
            fetch(url, tmp_path / "a.bin", pause=0)
    message = str(refused.value)
    assert message.startswith(f"{url}: ") and "refused, 6 times; 127.0.0.1 cannot" in message
    assert f"lay it at {tmp_path / 'a.bin'}" in message and "HTTPS_PROXY" in message
    (tmp_path / "a.bin.part").write_bytes(b"x")
    (tmp_path / "a.bin.part.tag").write_text("tag")
    with pytest.raises(OSError, match=r"what has come is kept in .*a\.bin\.part"):
        fetch(url, tmp_path / "a.bin", pause=0)


def packed(files, kind="zip"):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_unpacked_without_their_first_folder(tmp_path, kind):
    files = {"top/a/b.txt": b"1", "top/c.txt": b"2", "__MACOSX/top/._c.txt": b"3", "d.txt": b"4"}
    (tmp_path / "x").write_bytes(packed(files, kind))
    assert unpack(tmp_path / "x", tmp_path / "out", "top") == 3
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
             for p in (tmp_path / "out").rglob("*") if p.is_file()}  # fmt: skip
    assert found == {"a/b.txt": b"1", "c.txt": b"2", "d.txt": b"4"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "C:\\out.txt"])
def test_names_that_lead_out_are_refused(tmp_path, kind, name):
    (tmp_path / "x").write_bytes(packed({"good.txt": b"1", name: b"2"}, kind))
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack(tmp_path / "x", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_links_and_damage_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="is a link or a device"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    whole = packed({"a.txt": CONTENT})
    (tmp_path / "x.zip").write_bytes(whole[:1000] + b"?" * 1000 + whole[2000:])
    with pytest.raises(ValueError, match="a damaged archive"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "x.txt").write_text("<html>sorry</html>")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        unpack(tmp_path / "x.txt", tmp_path / "out")


def test_the_tool_fetches_what_is_missing(server, tmp_path, capsys):
    server.files |= {
        "one.zip": packed({"train/1.jpg": b"1"}),
        "two.tar": packed({"x/2": b"2"}, "tar"),
    }
    source = Source(
        "A set",
        "its site",
        tuple(
            Archive(
                server.url(name), 1, 1, hashlib.md5(server.files[name]).hexdigest(), strip=strip
            )
            for name, strip in (("one.zip", ""), ("two.tar", "x"))
        ),
        "data=custom",
    )
    tool.download_source(source, tmp_path / "set", open_console(), keep_archives=False)
    assert (tmp_path / "set/train/1.jpg").read_bytes() == b"1"
    assert (tmp_path / "set/2").read_bytes() == b"2"
    assert not (tmp_path / "set/one.zip").exists()
    server.requests.clear()
    tool.download_source(source, tmp_path / "set", open_console(), keep_archives=False)
    assert server.requests == [] and "two.tar: is there" in capsys.readouterr().out


def test_too_little_room_is_said_before_anything_is_fetched(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda path: usage(0, 0, 30e9))
    with pytest.raises(ValueError, match=r"40\.3 GB are needed and 30\.0 GB free"):
        tool.check_room(tmp_path, list(SOURCES["coco"].archives), keep_archives=False)
    tool.check_room(tmp_path, list(SOURCES["voc07"].archives), keep_archives=True)


def test_sources_are_whole():
    for source in SOURCES.values():
        for archive in source.archives:
            assert archive.url.startswith("http") and archive.name.endswith((".zip", ".tar"))
            assert archive.md5 is None or len(bytes.fromhex(archive.md5)) == 16


@pytest.mark.parametrize("form", ["penn_fudan", "nuclei"])
def test_images_of_masks_become_coco(tmp_path, form):
    rng = np.random.default_rng(0)
    expected = {}
    for number in range(12):
        numbers = np.zeros((40, 50), np.uint8)
        numbers[5:20, 3:9], numbers[10:30, 20 : 30 + number] = 1, 2
        image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
        if form == "penn_fudan":
            name, mask_folder = f"PNGImages/p{number}.png", tmp_path / "PedMasks"
            masks = {f"p{number}_mask.png": numbers}
        else:
            name = f"stage1_train/n{number}/images/n{number}.png"
            mask_folder = tmp_path / f"stage1_train/n{number}/masks"
            masks = {f"{k}.png": (numbers == k).astype(np.uint8) * 255 for k in (1, 2)}
        for folder in (mask_folder, (tmp_path / name).parent):
            folder.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
        for file, content in masks.items():
            Image.fromarray(content).save(mask_folder / file)
        expected[name] = numbers
    records = penn_fudan_records if form == "penn_fudan" else nuclei_records
    write_splits(tmp_path, "thing", records(tmp_path))
    seen = {}
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"{split}.json"
        assert len(read_coco(file, tmp_path)) > 0
        data = json.loads(file.read_text())
        for image in data["images"]:
            own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            seen[image["file_name"]] = sum(
                (k + 1) * coco_mask.decode(a["segmentation"]) for k, a in enumerate(own)
            )
    assert seen.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(seen[name], numbers)


def test_a_layout_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images in what was unpacked"):
        write_splits(tmp_path, "thing", penn_fudan_records(tmp_path))
