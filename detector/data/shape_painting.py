"""Pixels of the synthetic shapes: exact coverage, textures, light and noise.

Pictures under work are ``(H, W, 3)`` float64 with 0 black and 255 white; only ``develop`` rounds.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from detector.data.polygon_clipping import Region

_LEAST_CONTRAST = 110.0  # RGB distance between a shape and what it lies on


def coverage(region: Region, image_size: int, rows_per_pixel: int = 8) -> np.ndarray:
    """How much of each pixel a region fills, ``(H, W)`` float64 in ``[0, 1]``.

    Exact along x, sampled on ``rows_per_pixel`` lines along y: every edge that crosses such a line
    adds what lies to its right, and the two sides of the region cancel behind it.
    """
    result = np.zeros((image_size, image_size + 2))
    lines = (np.arange(image_size * rows_per_pixel) + 0.5) / rows_per_pixel
    for ring in region:
        start, end = ring, np.roll(ring, -1, axis=0)
        down = (start[:, 1] <= lines[:, None]) & (lines[:, None] < end[:, 1])
        up = (end[:, 1] <= lines[:, None]) & (lines[:, None] < start[:, 1])
        line, edge = np.nonzero(down | up)
        run = end[edge] - start[edge]
        x = start[edge, 0] + (lines[line] - start[edge, 1]) * run[:, 0] / run[:, 1]
        x = np.clip(x, 0, image_size)
        sign = np.where(up[line, edge], 1.0, -1.0) / rows_per_pixel
        column = np.floor(x).astype(np.int64)
        fraction = x - column
        row = line // rows_per_pixel
        np.add.at(result, (row, column), sign * (1 - fraction))
        np.add.at(result, (row, column + 1), sign * fraction)
    return np.clip(np.cumsum(result, axis=1)[:, :image_size], 0.0, 1.0)


def background(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured picture ``(H, W, 3)`` without objects, and its mean colour ``(3,)``."""
    size = (image_size, image_size)
    colour = rng.uniform(30, 225, 3)
    colour = colour.mean() + (colour - colour.mean()) * rng.uniform(0.3, 1.0)
    picture = _fill(rng, size, colour, rng.uniform(6, 30))
    return picture + 10 * _noise(rng, size, (30, 30))[..., None], colour


def contrasting_colour(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """A random colour away from ``others``; the most distant of the tries where room is short."""
    best, best_distance = None, -1.0
    for _ in range(12):
        colour = rng.uniform(15, 240, 3)
        distance = min(float(np.linalg.norm(colour - other)) for other in others)
        if distance > best_distance:
            best, best_distance = colour, distance
        if best_distance >= _LEAST_CONTRAST:
            break
    return best


def paint(
    rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray, colour: np.ndarray
) -> None:
    """Lay a textured ``colour`` over ``picture`` in place, as much as ``alpha`` ``(H, W)`` says."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    patch = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    alpha = alpha[patch][..., None]
    fill = _fill(rng, alpha.shape[:2], colour, rng.uniform(2, 12))
    picture[patch] += alpha * (fill - picture[patch])


def develop(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Uneven light and sensor noise, then ``(H, W, 3)`` uint8."""
    picture = (
        picture * (1 + rng.uniform(0, 0.25) * _noise(rng, picture.shape[:2], (2, 2)))[..., None]
    )
    picture += rng.uniform(2, 8) * rng.standard_normal(picture.shape, np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Smooth random field in about ``[-1, 1]``, ``(H, W)``, out of ``cells`` random values."""
    grid = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC), np.float64)


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random pattern in about ``[-1, 1]``, ``(H, W)``: clouds, streaks, stripes, checks, dots."""
    kind = int(rng.integers(5))
    if kind == 0:
        octaves = [(0.55, 4), (0.35, 9), (0.25, 20), (0.15, 45)]
        return sum(weight * _noise(rng, size, (cells, cells)) for weight, cells in octaves)
    if kind == 1:
        cells = (6, 60) if rng.random() < 0.5 else (60, 6)
        return 0.8 * _noise(rng, size, cells) + 0.4 * _noise(rng, size, (5, 5))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 22)
    bend = rng.uniform(0, 4) * _noise(rng, size, (4, 4))
    y, x = np.ogrid[: size[0], : size[1]]
    along = 2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle) + bend)
    if kind == 2:
        return np.sin(along)
    across = 2 * np.pi / period * (y * np.cos(angle) - x * np.sin(angle) + bend)
    if kind == 3:
        return np.tanh(4 * np.sin(along) * np.sin(across))
    return np.clip(2.5 * np.cos(along) * np.cos(across) - 1.2, -0.6, 1)


def _fill(
    rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray, strength: float
) -> np.ndarray:
    """``colour`` with a texture and a soft gradient of light, ``(H, W, 3)``."""
    tint = rng.uniform(-1, 1, 3) * 0.5 + rng.choice((-1.0, 1.0))
    light = rng.uniform(4, 16) * _noise(rng, size, (2, 2))
    return colour + (strength * _texture(rng, size))[..., None] * tint + light[..., None]
