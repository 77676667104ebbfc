"""What tells whether two images are the same, or nearly: digests, difference hashes, thumbnails.

The hash is that of Krawetz, Kind of Like That, 2013: whether each cell of an image of 8 rows and 9
columns is brighter than its right neighbour. Pairs with nearly the same hash are then compared by
the correlation of small thumbnails, since the hash of a smooth image is mostly noise.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from detector.data.images import decode_image
from detector.data.index import AnnotationIndex

SIDE = 32  # of a thumbnail
# Nearly the same: at most so many of 64 bits differ, and thumbnails correlate this much.
NEAR_BITS = 3
NEAR_CORRELATION = 0.98
# Of files that are called alike, less will do.
NAMESAKE_BITS = 10
NAMESAKE_CORRELATION = 0.93
# Standard deviation of grey values, of 255, below which an image is flat: blank pages look alike.
FLAT = 4.0
# So many images with equal bits in a band are alike for another reason, such as a black border.
CROWDED_BAND = 200


@dataclass(frozen=True)
class Fingerprints:
    """Of N images.

    Attributes:
        digests: N digests of the files' bytes, empty where a file cannot be read.
        hashes: ``(N,)`` uint64.
        thumbnails: ``(N, SIDE * SIDE)`` uint8.
        is_flat: ``(N,)`` bool, has too little contrast to be compared by looks.
    """

    digests: list[bytes]
    hashes: np.ndarray
    thumbnails: np.ndarray
    is_flat: np.ndarray


def fingerprint(
    index: AnnotationIndex, progress: Callable[[Iterable, int], Iterable] | None = None
) -> Fingerprints:
    """Reads every image file of an index once; ``progress`` passes results on and counts them."""
    count = len(index)
    paths = index.paths()
    fewest = np.minimum(index.widths, index.heights)

    def look(image: int) -> tuple[bytes, int, np.ndarray, bool]:
        return _look(paths[image], int(fewest[image]))

    digests = []
    hashes = np.zeros(count, np.uint64)
    thumbnails = np.zeros((count, SIDE * SIDE), np.uint8)
    is_flat = np.ones(count, bool)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results: Iterable = pool.map(look, range(count), chunksize=16)
        results = results if progress is None else progress(results, count)
        for image, (digest, code, thumbnail, flat) in enumerate(results):
            digests.append(digest)
            hashes[image], thumbnails[image], is_flat[image] = code, thumbnail, flat
    return Fingerprints(digests, hashes, thumbnails, is_flat)


def near_pairs(prints: Fingerprints) -> list[tuple[int, int]]:
    """Pairs of images that look the same and have not the same bytes.

    Codes that differ in at most three bits agree in one of four bands of 16, so only images that
    share a band are compared.
    """
    found = set()
    shown = np.flatnonzero(~prints.is_flat)
    for band in range(4):
        groups: dict[int, list[int]] = defaultdict(list)
        bits = (prints.hashes[shown] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        for image, key in zip(shown.tolist(), bits.tolist(), strict=True):
            groups[key].append(image)
        for images in groups.values():
            if len(images) > CROWDED_BAND:
                continue
            for one, other in combinations(images, 2):
                if prints.digests[one] != prints.digests[other] and look_alike(prints, one, other):
                    found.add((one, other))
    return sorted(found)


def look_alike(
    prints: Fingerprints,
    one: int,
    other: int,
    bits: int = NEAR_BITS,
    correlation: float = NEAR_CORRELATION,
) -> bool:
    """Whether at most ``bits`` of the hash differ and the thumbnails correlate."""
    if prints.is_flat[one] or prints.is_flat[other]:
        return False
    if (int(prints.hashes[one]) ^ int(prints.hashes[other])).bit_count() > bits:
        return False
    first, second = prints.thumbnails[[one, other]].astype(np.float64)
    return float(np.corrcoef(first, second)[0, 1]) >= correlation


def _look(path: str, shorter_side: int) -> tuple[bytes, int, np.ndarray, bool]:
    nothing = b"", 0, np.zeros(SIDE * SIDE, np.uint8), True
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:  # it is among the damaged records
        return nothing
    digest = hashlib.blake2b(data, digest_size=16).digest()
    gray = _decode_gray(data, path, shorter_side)
    if gray is None:
        return digest, *nothing[1:]
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    code = int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "little")
    thumbnail = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return digest, code, thumbnail.ravel(), bool(thumbnail.std() < FLAT)


def _decode_gray(data: bytes, path: str, shorter_side: int) -> np.ndarray | None:
    """An image in gray, ``(h, w)`` uint8, no larger than it need be; ``None``: damaged."""
    reduced = cv2.IMREAD_GRAYSCALE
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    ):
        if shorter_side >= 4 * SIDE * factor // 2:
            reduced = flag
            break
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), reduced)
    if gray is not None:
        return gray
    try:
        return cv2.cvtColor(decode_image(data, path), cv2.COLOR_RGB2GRAY)
    except ValueError:  # it is among the damaged records
        return None
