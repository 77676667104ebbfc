"""Rings against bitmaps and pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.data import rings as rings_module
from detector.data.rings import (
    decode_counts,
    next_in_ring,
    offsets_of,
    orient_rings,
    ring_areas,
    trace_runs,
)


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def trace(masks: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Rings of each mask, by way of its compressed encoding."""
    counts, offsets, valid = decode_counts([encode(mask)["counts"] for mask in masks])
    assert valid.all()
    sizes = np.array([mask.shape for mask in masks])
    rings = trace_runs(counts, offsets, sizes[:, 0], sizes[:, 1])
    pieces = np.split(rings.vertices, rings.vertex_offsets[1:-1])
    return [
        [piece for piece, owner in zip(pieces, rings.owners, strict=False) if owner == number]
        for number in range(len(masks))
    ]


def area(ring: np.ndarray) -> float:
    return float(ring_areas(ring, np.array([0, len(ring)]))[0])


def random_masks(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 14, (count, 2))
    return [rng.random(shape) < rng.random() for shape in shapes]


def test_rings_rasterise_to_the_mask_bit_for_bit(rasterize):
    masks = [mask for mask in random_masks(300) if mask.any()]
    for mask, rings in zip(masks, trace(masks), strict=True):
        np.testing.assert_array_equal(rasterize(rings, *mask.shape), mask)
        assert sum(map(area, rings)) == mask.sum()


def test_chunks_do_not_change_the_result(monkeypatch):
    masks = random_masks(50)
    whole = trace(masks)
    monkeypatch.setattr(rings_module, "_RUNS_PER_CHUNK", 20)
    for expected, rings in zip(whole, trace(masks), strict=True):
        assert len(rings) == len(expected)
        for a, b in zip(rings, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_ring_has_corners_only_and_a_hole_turns_the_other_way():
    mask = np.zeros((6, 7), dtype=bool)
    mask[1:5, 1:6] = True
    mask[2:4, 3] = False
    outer, hole = sorted(trace([mask])[0], key=area, reverse=True)
    assert {tuple(vertex) for vertex in outer} == {(1, 1), (6, 1), (6, 5), (1, 5)}
    assert {tuple(vertex) for vertex in hole} == {(3, 2), (4, 2), (4, 4), (3, 4)}
    assert (area(outer), area(hole)) == (20, -2)


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_that_touch_at_a_corner_are_two_rings(flip):
    mask = np.eye(2, dtype=bool)
    rings = trace([mask[::-1] if flip else mask])[0]
    assert [len(ring) for ring in rings] == [4, 4]
    assert [area(ring) for ring in rings] == [1, 1]


def test_full_and_empty_masks():
    full, empty, column = trace([np.ones((3, 4)), np.zeros((3, 4)), np.ones((5, 1))])
    assert {tuple(vertex) for vertex in full[0]} == {(0, 0), (4, 0), (4, 3), (0, 3)}
    assert empty == []
    assert len(column) == 1 and area(column[0]) == 5


def test_no_masks_at_all():
    counts, offsets, valid = decode_counts([])
    rings = trace_runs(counts, offsets, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert len(valid) == len(rings.owners) == len(rings.vertices) == 0


def test_counts_agree_with_a_run_length_by_hand():
    masks = random_masks(40)
    counts, offsets, _ = decode_counts([encode(mask)["counts"] for mask in masks])
    for number, mask in enumerate(masks):
        flat = mask.flatten(order="F")
        runs, value = [], False
        position = 0
        while position < len(flat):
            end = position
            while end < len(flat) and flat[end] == value:
                end += 1
            runs.append(end - position)
            position, value = end, not value
        assert counts[offsets[number] : offsets[number + 1]].tolist() == runs


def test_strings_that_are_no_encoding_are_told_apart():
    good = encode(np.eye(5))["counts"]
    _, _, valid = decode_counts([good, b"\x01\x02", good[:-1] + b"o", b"", good, b"n" * 40])
    assert valid.tolist() == [True, False, False, True, True, False]


def test_zero_runs_inside_uncompressed_counts(rasterize):
    counts = np.array([3, 2, 0, 4, 0, 0, 3])  # 3 zeros, 6 ones, 3 zeros
    rings = trace_runs(counts, np.array([0, 7]), np.array([4]), np.array([3]))
    pieces = np.split(rings.vertices, rings.vertex_offsets[1:-1])
    expected = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool).reshape(3, 4).T
    np.testing.assert_array_equal(rasterize(pieces, 4, 3), expected)


def test_orientation_is_made_positive_and_nothing_else_changes():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], dtype=float)
    triangle = np.array([[10, 0], [10, 3], [14, 0]], dtype=float)
    vertices, offsets = np.concatenate([square, triangle]), np.array([0, 4, 7])
    assert ring_areas(vertices, offsets).tolist() == [16, -6]
    oriented = orient_rings(vertices, offsets)
    np.testing.assert_array_equal(oriented, np.concatenate([square, triangle[::-1]]))
    assert ring_areas(oriented, offsets).tolist() == [16, 6]


def test_overlapping_parts_of_opposite_orientation_unite(rasterize):
    one = np.array([[1, 1], [6, 1], [6, 6], [1, 6]], dtype=float)
    other = (one + 3)[::-1]
    oriented = orient_rings(np.concatenate([one, other]), np.array([0, 4, 8]))
    mask = rasterize([oriented[:4], oriented[4:]], 10, 10)
    parts = coco_mask.frPyObjects([one.ravel().tolist(), other.ravel().tolist()], 10, 10)
    expected = coco_mask.decode(coco_mask.merge(parts))
    np.testing.assert_array_equal(mask, expected)


def test_successors_stay_in_their_ring():
    assert next_in_ring(np.array([0, 3, 3, 5])).tolist() == [1, 2, 0, 4, 3]
    assert offsets_of(np.array([2, 0, 1])).tolist() == [0, 2, 2, 3]
