"""The sizes of image files, for annotation formats that do not say them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from detector.data.problems import DamagedRecord
from detector.data.slow_work import slow_work

_logger = logging.getLogger(__name__)

_WORTH_SAYING = 5000  # files; some seconds
_EXIF_ORIENTATION = 0x0112


def read_image_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | DamagedRecord]:
    """Width and height of every file after EXIF rotation, or what is wrong with it.

    Only headers are read; whether files are whole is checked with the rest of the dataset.
    """
    if len(paths) >= _WORTH_SAYING:
        _logger.info("Reading the sizes of %d image files, once", len(paths))
    sizes = []
    with (
        slow_work("reading sizes of images", len(paths), "files") as advance,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
    ):
        for size in pool.map(_read_size, paths, chunksize=64):
            sizes.append(size)
            advance(1)
    return sizes


def _read_size(path: Path) -> tuple[int, int] | DamagedRecord:
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return DamagedRecord(f"no file {path}", "check data.root and the folder of the images")
    except Image.DecompressionBombError:
        return DamagedRecord(f"{path} has too many pixels", "cut it into tiles")
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        detail = str(error).split(" <")[0]
        return DamagedRecord(
            f"{path} is not a readable image ({detail})",
            "restore the file, or remove it from the annotations",
        )
