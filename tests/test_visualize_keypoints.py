"""Keypoints in pictures: dots where they are, limbs between them, nothing where they are not."""

import numpy as np
import pytest

from detector.visualize import class_color, draw_instances
from detector.visualize.instances import picture_zoom
from detector.visualize.keypoints import LEAST_SCORE, draw_keypoints

BLUE = (20, 60, 250)


def drawn(points, skeleton=(), shape=(60, 80), line=2):
    picture = np.full((*shape, 3), 90, np.float32)
    draw_keypoints(picture, np.array(points, float), skeleton, BLUE, line)
    return picture


def changed(picture):
    return (picture != 90).any(2)


def test_a_joint_is_a_dot_of_its_own_colour_at_its_place():
    picture = drawn([[20.5, 30.5, 1], [61.5, 12.5, 0.4]])
    for (x, y), joint in (((20, 30), 0), ((61, 12), 1)):
        expected = 90 + 0.95 * (np.array(class_color(joint)) - 90)
        # Over the shadow, which a twentieth of shows through.
        assert np.abs(picture[y, x] - expected).max() <= 4
        rows, columns = np.nonzero(changed(picture)[:, max(0, x - 8) : x + 9])
        assert abs(rows.mean() - y) < 0.5 and abs(columns.mean() - 8) < 0.5
        assert np.ptp(rows) <= 10
    assert class_color(0) != class_color(1)


def test_limbs_are_lines_in_the_colour_of_the_instance():
    picture = drawn([[10.5, 30.5, 1], [70.5, 30.5, 1], [40.5, 50.5, 1]], [(0, 1)])
    middle = picture[30, 20:60]
    assert np.abs(middle - (90 + 0.95 * (np.array(BLUE) - 90))).max() <= 6
    assert not changed(picture)[38:42].any(), "nothing connects the third"


@pytest.mark.parametrize("row", [[40.5, 20.5, 0], [40.5, 20.5, LEAST_SCORE / 2], [np.nan, 3, 1]])
def test_unlabelled_and_uncertain_keypoints_are_not_drawn_nor_their_limbs(row):
    alone = drawn([[10.5, 30.5, 1]])
    assert np.array_equal(drawn([[10.5, 30.5, 1], row], [(0, 1)]), alone)
    assert not changed(drawn([row])).any()


@pytest.mark.parametrize(
    "points",
    [
        [[-30, -20, 1], [100, 90, 1]],
        [[79.9, 0.1, 1], [80, 60, 1]],
        [[-300, -200, 1], [-290, -250, 1]],
        [[40, 1e7, 1], [40, 20, 1]],
    ],
)
def test_places_at_and_beyond_the_border(points):
    """What is inside is drawn, and nothing else happens."""
    picture = drawn(points, [(0, 1)])
    assert np.isfinite(picture).all() and picture.shape == (60, 80, 3)
    if points[0][0] == -30:
        assert changed(picture)[30, 20:60].any(), "the limb crosses the picture"


def test_instances_with_keypoints_beside_their_boxes():
    image = np.full((40, 50, 3), 90, np.uint8)
    zoom = picture_zoom(40, 50)
    boxes, labels = np.array([[5.0, 5, 30, 35], [35, 5, 45, 20]]), np.array([0, 0])
    keypoints = np.zeros((2, 2, 3))
    keypoints[0] = [[10.5, 15.5, 2], [20.5, 25.5, 1]]
    with_points = draw_instances(
        image, boxes, labels, ["a", "a"], keypoints=keypoints, skeleton=[(0, 1)]
    )
    without = draw_instances(image, boxes, labels, ["a", "a"])
    rows, columns = np.nonzero((with_points != without).any(2))
    assert rows.min() / zoom > 12 and rows.max() / zoom < 29
    assert columns.min() / zoom > 7 and columns.max() / zoom < 24
