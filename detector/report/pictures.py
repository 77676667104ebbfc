"""Pictures inside a page, as data."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from detector.report.html import Html, tag

# Pixels of a picture's longer side: sharp in a column of a page, a few dozen kilobytes.
SIDE = 520
QUALITY = 80
DIMMED = 0.42


def shrink(image: np.ndarray, side: int = SIDE) -> tuple[np.ndarray, float]:
    """An image ``(H, W, 3)`` uint8 of at most ``side`` pixels, and its scale."""
    scale = min(1.0, side / max(image.shape[:2]))
    if scale == 1.0:
        return image, 1.0
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def embed(picture: np.ndarray, alt: str) -> Html:
    """An ``img`` that holds the picture ``(H, W, 3)`` uint8 as WebP."""
    picture, _ = shrink(picture)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", quality=QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    height, width = picture.shape[:2]
    return tag(
        "img",
        src=f"data:image/webp;base64,{data}",
        alt=alt,
        width=width,
        height=height,
        loading="lazy",
    )


def figure(picture: np.ndarray | None, caption: Any, alt: str) -> Html:
    """A picture under its caption; without one, a box that says that there is none."""
    return tag("figure", tag("figcaption", caption), picture_or_absent(picture, alt))


def picture_or_absent(picture: np.ndarray | None, alt: str) -> Html:
    """The picture, or where there is none a box with its name."""
    if picture is None:
        return tag("div", f"{alt}: no such image", class_="absent")
    return embed(picture, alt)


def spotlight(picture: np.ndarray, boxes: np.ndarray, zoom: float) -> np.ndarray:
    """Darkens what lies farther from boxes than a name, and frames what is left.

    Args:
        picture: ``(H, W, 3)`` uint8.
        boxes: ``(n, 4)`` ``(x1, y1, x2, y2)`` in pixels of the image; of none, all stays as it is.
        zoom: pixels of the picture for one of the image.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not len(boxes):
        return picture
    height, width = picture.shape[:2]
    line = max(2, round(max(height, width) / 300))
    light = np.zeros((height, width), np.uint8)
    for x1, y1, x2, y2 in (boxes * zoom).round().astype(int).tolist():
        # Room for names around the box, and to see a box without area at all.
        room = max(5 * line, max(height, width) // 25)
        x1, y1, x2, y2 = x1 - room, y1 - room, x2 + room, y2 + room
        light[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 1
    result = np.where(light[..., None] > 0, picture, (picture * DIMMED).astype(np.uint8))
    # One frame around boxes that overlap.
    outlines, _ = cv2.findContours(light, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(result, outlines, -1, (255, 255, 255), line)
