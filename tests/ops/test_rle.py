"""The encoder against pycocotools, from borders of arbitrary bitmaps."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.ops.rle import encode_borders


def borders_of(bitmap: np.ndarray) -> np.ndarray:
    column_order = bitmap.T.reshape(-1)
    return np.flatnonzero(np.diff(column_order, prepend=False))


def encode(bitmaps: list[np.ndarray]) -> list[dict]:
    borders = [borders_of(bitmap) for bitmap in bitmaps]
    ends = np.cumsum([len(b) for b in borders], dtype=np.int64)
    return encode_borders(np.concatenate(borders).astype(np.int64), ends, *bitmaps[0].shape)


def pycocotools_counts(bitmap: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"].decode()


def random_bitmaps(height: int, width: int, seed: int) -> list[np.ndarray]:
    """Runs of all lengths, from single pixels to half the image, beginning with either value."""
    generator = np.random.default_rng(seed)
    bitmaps = []
    for typical in np.geomspace(1, max(1, height * width / 2), 12):
        lengths = generator.geometric(1 / typical, size=2 + int(height * width / typical))
        values = (np.arange(len(lengths)) + generator.integers(2)) % 2 == 1
        pixels = np.repeat(values, lengths)[: height * width]
        pixels = np.pad(pixels, (0, height * width - len(pixels)))
        bitmaps.append(pixels.reshape(width, height).T)
    return bitmaps


@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (5, 1), (13, 17), (240, 333)])
def test_equals_pycocotools(height, width):
    full, empty = np.ones((height, width), bool), np.zeros((height, width), bool)
    bitmaps = [full, *random_bitmaps(height, width, seed=height), empty, full, full, empty, empty]
    encodings = encode(bitmaps)
    assert [rle["counts"] for rle in encodings] == [pycocotools_counts(b) for b in bitmaps]
    for rle, bitmap in zip(encodings, bitmaps, strict=True):
        assert rle["size"] == [height, width]
        assert (coco_mask.decode(rle) == bitmap).all()


def test_lengths_of_every_number_of_characters():
    """Differences of both signs around each power of 32 that takes a character more."""
    height, width = 4096, 4096
    for length in [15, 16, 17, 511, 512, 513, 16383, 16384, 16385, 524287, 524288, 524289]:
        for lengths in [(length, 1, 3, length), (1, length, 3, 1, 2), (3, length, 3, length + 9)]:
            borders = np.cumsum(lengths)
            encoding = encode_borders(borders, np.array([len(borders)]), height, width)[0]
            counts = [*lengths, height * width - sum(lengths)]
            uncompressed = {"size": [height, width], "counts": counts}
            expected = coco_mask.frPyObjects(uncompressed, height, width)
            assert encoding["counts"] == expected["counts"].decode()


def test_a_border_that_stands_twice_is_none():
    pairs = np.array([4, 4, 7, 9, 9, 9, 12, 12, 0, 0, 2, 12])
    encodings = encode_borders(pairs, np.array([8, 8, 12]), 3, 4)
    once = [np.zeros(12, bool) for _ in range(3)]
    once[0][7:9], once[2][2:] = True, True
    expected = [pycocotools_counts(pixels.reshape(4, 3).T) for pixels in once]
    assert [rle["counts"] for rle in encodings] == expected


def test_no_masks():
    assert encode_borders(np.zeros(0, np.int64), np.zeros(0, np.int64), 5, 6) == []
