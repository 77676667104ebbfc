"""Keypoints over their image: limbs in the instance's colour, joints in colours of their own."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from detector.visualize.colors import class_color

Color = tuple[int, int, int]

# Below this score a place is hardly more than a guess among the cells of a heatmap. Ground truth
# has visibilities 1 and 2, and 0 for what is not labelled.
LEAST_SCORE = 0.02
OPACITY = 0.95
SHADOW_OPACITY = 0.5
# OpenCV's fixed-point coordinates have this many bits after the point.
SHIFT = 4


def draw_keypoints(
    picture: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Sequence[tuple[int, int]],
    color: Color,
    line: int,
) -> None:
    """Draws the keypoints of one instance.

    A limb is drawn where both its ends are, and a joint has the colour that its number gives it, so
    that left and right can be told apart.

    Args:
        picture: ``(H, W, 3)`` float32, drawn on.
        keypoints: ``(J, 3)`` ``(x, y, score)`` in pixels of the picture.
        skeleton: pairs of keypoints.
        color: of the limbs.
        line: width of limbs in pixels.
    """
    there = (keypoints[:, 2] >= LEAST_SCORE) & np.isfinite(keypoints).all(1)
    if not there.any():
        return
    # Covers are as large as the window that they fill: an image may have many instances.
    margin = 2 * line + 2
    low = np.floor(keypoints[there, :2].min(0) - margin).clip(0).astype(int)
    high = np.ceil(keypoints[there, :2].max(0) + margin).clip(0, picture.shape[1::-1]).astype(int)
    if (low >= high).any():
        return
    picture = picture[low[1] : high[1], low[0] : high[0]]
    # A pixel's centre is a whole number to OpenCV.
    points = ((keypoints[:, :2] - low - 0.5) * 2**SHIFT).round()
    points = np.where(there[:, None], points, 0).astype(int).tolist()
    limbs = [(points[a], points[b]) for a, b in skeleton if there[a] and there[b]]
    joints = [(j, points[j]) for j in np.flatnonzero(there).tolist()]

    shadow = _empty(picture)
    for start, end in limbs:
        _line(shadow, start, end, line + 2)
    for _, point in joints:
        _dot(shadow, point, line + 2)
    _blend(picture, shadow, (0, 0, 0), SHADOW_OPACITY)
    cover = _empty(picture)
    for start, end in limbs:
        _line(cover, start, end, line)
    _blend(picture, cover, color, OPACITY)
    for j, point in joints:
        cover = _empty(picture)
        _dot(cover, point, line + 1)
        _blend(picture, cover, class_color(j), OPACITY)


def _empty(picture: np.ndarray) -> np.ndarray:
    return np.zeros(picture.shape[:2], np.uint8)


def _line(cover: np.ndarray, start: list[int], end: list[int], width: int) -> None:
    cv2.line(cover, start, end, 255, width, cv2.LINE_AA, SHIFT)


def _dot(cover: np.ndarray, point: list[int], radius: float) -> None:
    cv2.circle(cover, point, round(radius * 2**SHIFT), 255, -1, cv2.LINE_AA, SHIFT)


def _blend(picture: np.ndarray, cover: np.ndarray, color: Color, opacity: float) -> None:
    """Lays the colour over the picture where ``cover``, 0..255, is."""
    x, y, width, height = cv2.boundingRect(cover)
    window = picture[y : y + height, x : x + width]
    share = cover[y : y + height, x : x + width, None] * np.float32(opacity / 255)
    window += share * (np.float32(color) - window)
