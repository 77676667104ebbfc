"""Tells whether an image file is whole, without decoding it where its format allows."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"


def is_whole(data: bytes) -> bool:
    """Whether an image file's content is complete.

    A JPEG is whole if its end marker follows its first scan, a PNG if its chunks have the right
    checksums up to the last; both take microseconds, where decoding takes milliseconds. Other
    formats are decoded.
    """
    if data.startswith(JPEG_START):
        return _is_whole_jpeg(data)
    if data.startswith(PNG_START):
        return _is_whole_png(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:  # Pillow's readers raise many kinds for damaged files
        return False
    return True


def _is_whole_jpeg(data: bytes) -> bool:
    # Segments carry their length, so a thumbnail's own end marker is stepped over. In the coded
    # data after the first scan header, FF D9 can only be the end.
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            position += 2
            continue
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", position) >= 0
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return False


def _is_whole_png(data: bytes) -> bool:
    position = len(PNG_START)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            return False
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != stored:
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end
    return False
