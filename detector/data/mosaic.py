"""Mosaic: four images as one (Bochkovskiy et al., YOLOv4, 2020, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from detector.data.mixing import ImageMix, check_size, cut_to, joined, moved
from detector.data.sample import Sample


class Mosaic(ImageMix):
    """Puts pieces of four images around a random point.

    Each image is scaled to s times the size at which it fits the whole picture, s uniform in
    ``[min_scale, max_scale]``, or larger where it would not fill its quarter; a random piece of it
    fills the quarter. At s = .5 whole images stand around the middle. Objects end where their
    quarter ends: masks and boxes are cut there.

    Args:
        size: ``[height, width]`` of the picture, exchanged where the sample's own image is higher
            than wide and this is not, or the other way round, so that batches of landscape images
            remain such; or the side of a square. ``None``: the size of the sample's own image.
        min_scale, max_scale: of s.
        min_share: how near the point may come to a side, as a share of it.
        p: how often to apply it.

    Raises:
        ValueError: a size that is none, scales that are not positive or the wrong way round, or a
            share outside ``[0, .5]``.
    """

    num_partners = 3

    def __init__(
        self,
        size: Sequence[int] | int | None = None,
        min_scale: float = 0.5,
        max_scale: float = 1.5,
        min_share: float = 0.25,
        p: float = 1.0,
    ):
        super().__init__(p)
        self.size = check_size(self, size)
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.min_share = min_share
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f"Mosaic: min_scale={min_scale} and max_scale={max_scale}; they must be positive, "
                "min_scale not above max_scale"
            )
        if not 0 <= min_share <= 0.5:
            raise ValueError(f"Mosaic: min_share={min_share}; it must lie between 0 and 0.5")

    def __call__(
        self, sample: Sample, partners: Sequence[Sample], rng: np.random.Generator
    ) -> Sample:
        """The mosaic with ``sample`` in the quarter at the top left."""
        # Every quarter has pixels, so that no image vanishes.
        height, width = (max(side, 2) for side in self._size(sample))
        shares = rng.uniform(self.min_share, 1 - self.min_share, size=2)
        middle_y, middle_x = (
            min(max(round(float(share) * side), 1), side - 1)
            for share, side in zip(shares, (height, width), strict=True)
        )
        image = np.empty((height, width, 3), np.uint8)
        parts = []
        for number, part in enumerate((sample, *partners)):
            top, bottom = (middle_y, height) if number >= 2 else (0, middle_y)
            left, right = (middle_x, width) if number % 2 else (0, middle_x)
            pixels, factors, shift = self._piece(
                part.image, bottom - top, right - left, (height, width), rng
            )
            image[top:bottom, left:right] = pixels
            part = moved(part, factors, (left + shift[0], top + shift[1]))
            parts.append(cut_to(part, left, top, right, bottom))
        return joined(image, parts)

    def _size(self, sample: Sample) -> tuple[int, int]:
        height, width = sample.image.shape[:2]
        if self.size is None:
            return height, width
        return self.size if (self.size[0] > self.size[1]) == (height > width) else self.size[::-1]

    def _piece(
        self,
        image: np.ndarray,
        rows: int,
        columns: int,
        whole: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
        """A random piece of an image, ``(rows, columns, 3)``, and what moves points there."""
        height, width = image.shape[:2]
        fit = min(whole[0] / height, whole[1] / width)
        scale = fit * rng.uniform(self.min_scale, self.max_scale)
        scale = max(scale, rows / height, columns / width)
        # Whole pixels of the image are cut out, and only what is seen is scaled.
        cut_height = min(height, max(1, round(rows / scale)))
        cut_width = min(width, max(1, round(columns / scale)))
        y = int(rng.integers(height - cut_height + 1))
        x = int(rng.integers(width - cut_width + 1))
        factors = columns / cut_width, rows / cut_height
        pixels = cv2.resize(
            image[y : y + cut_height, x : x + cut_width],
            (columns, rows),
            interpolation=cv2.INTER_AREA if factors[0] < 1 else cv2.INTER_LINEAR,
        )
        return pixels, factors, (-x * factors[0], -y * factors[1])
