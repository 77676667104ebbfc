"""Pictures beside and below each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (250, 250, 250)
INK = (40, 40, 40)


def panel(
    truth: np.ndarray,
    prediction: np.ndarray,
    titles: Sequence[str] = ("ground truth", "prediction"),
) -> np.ndarray:
    """Two pictures ``(h, w, 3)`` uint8 of one image side by side, each with its title."""
    return grid([truth, prediction], num_columns=2, titles=titles)


def grid(
    pictures: Sequence[np.ndarray],
    num_columns: int,
    titles: Sequence[str] | None = None,
    cell_height: int | None = None,
) -> np.ndarray:
    """Pictures in rows of ``num_columns``.

    Args:
        pictures: ``(h, w, 3)`` uint8 RGB of any sizes.
        num_columns: pictures in a row.
        titles: a line above each picture.
        cell_height: height in pixels that every picture is scaled to; without, they stay as
            they are.

    Returns:
        ``(h', w', 3)`` uint8 RGB.
    """
    assert pictures and num_columns > 0, "a grid has pictures and columns"
    images = [Image.fromarray(picture) for picture in pictures]
    if cell_height is not None:
        images = [
            image.resize((max(1, round(image.width * cell_height / image.height)), cell_height))
            for image in images
        ]
    rows = [images[i : i + num_columns] for i in range(0, len(images), num_columns)]
    gap = max(4, round(max(image.width for image in images) / 100))
    font_size = max(12, round(max(image.width for image in images) / 40))
    caption = 0 if titles is None else round(1.6 * font_size)
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(len(rows[0]))]
    heights = [max(image.height for image in row) + caption for row in rows]
    size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(heights) + 1))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(font_size)
    top = gap
    for r, row in enumerate(rows):
        left = gap
        for c, image in enumerate(row):
            if titles is not None:
                draw.text((left + 2, top), titles[r * num_columns + c], INK, font)
            sheet.paste(image, (left, top + caption))
            left += widths[c] + gap
        top += heights[r] + gap
    return np.asarray(sheet)
