"""ResizeShortestEdge: sizes, drawing, and the papers' rule."""

import numpy as np
import pytest

from detector.data.transforms import ResizeShortestEdge, shortest_edge_size


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (300, 1000, (400, 1333)),  # the longest edge binds
        (1000, 300, (1333, 400)),
        (800, 1333, (800, 1333)),
        (1, 5000, (1, 1333)),
    ],
)
def test_sizes_of_the_800_1333_rule(height, width, expected):
    assert shortest_edge_size(height, width, 800, 1333) == expected


def drawn_sizes(transform: ResizeShortestEdge, count: int = 60) -> set[int]:
    transform.set_random_seed(0)
    image = np.zeros((10, 20, 3), np.uint8)
    return {transform(image=image)["image"].shape[0] for _ in range(count)}


def test_choice_draws_listed_sizes_and_range_those_between():
    assert drawn_sizes(ResizeShortestEdge([8, 12, 16], 100)) == {8, 12, 16}
    assert drawn_sizes(ResizeShortestEdge([8, 16], 100, sampling="range")) == set(range(8, 17))
    assert drawn_sizes(ResizeShortestEdge(9, 100)) == {9}


def test_an_image_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert ResizeShortestEdge(30, 40)(image=image)["image"] is image


def test_shrinking_averages():
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = ResizeShortestEdge(10, 100)(image=stripes)["image"]
    assert np.abs(shrunk.astype(int) - 127.5).max() <= 0.5


@pytest.mark.parametrize(("shortest", "longest"), [(0, 10), ([], 10), ([20, 30], 10)])
def test_impossible_sizes(shortest, longest):
    with pytest.raises(ValueError, match="shortest"):
        ResizeShortestEdge(shortest, longest)
