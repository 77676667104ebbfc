"""Name plates: where they go, so that they can be read, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detector.visualize.colors import text_color

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Plate:
    """A text at ``(left, top)`` of the picture, in pixels."""

    text: str
    left: int
    top: int
    width: int
    height: int


def plate_size(text: str, font_size: int) -> tuple[int, int]:
    """Width and height of a plate in pixels; the height is the same for every text."""
    font = _font(font_size)
    ascent, descent = font.getmetrics()
    margin = _margin(font_size)
    return round(font.getlength(text)) + 2 * margin + 2, ascent + descent


def place_plates(
    boxes: np.ndarray,
    texts: Sequence[Sequence[str]],
    font_size: int,
    height: int,
    width: int,
) -> list[Plate | None]:
    """Give each instance a plate at its box, where it is inside the picture and covers no other.

    Instances come in order of importance. For each, its texts are tried from the first (longest)
    to the last at places around and inside its box, the customary one above its top left corner
    first. When even the last text would cover another plate, the instance goes without.

    Args:
        boxes: ``(n, 4)`` in pixels of the picture.
        texts: for each instance, texts of falling length.
        font_size: in pixels.
        height: of the picture.
        width: of the picture.
    """
    taken = np.zeros((0, 4))
    plates: list[Plate | None] = []
    for i, box in enumerate(boxes):
        others = np.delete(boxes, i, axis=0)
        chosen = None
        for text in texts[i]:
            size = plate_size(text, font_size)
            if size[0] > width or size[1] > height:
                continue
            spots = _spots(box, size, height, width)
            free = _overlaps(spots, taken).sum(1) == 0
            if free.any():
                left, top = spots[np.argmin(_costs(spots, box, others) + ~free * 1e9)][:2]
                chosen = Plate(text, int(left), int(top), *size)
                break
        plates.append(chosen)
        if chosen is not None:
            spot = [chosen.left, chosen.top, chosen.left + size[0], chosen.top + size[1]]
            taken = np.concatenate([taken, [spot]])
    return plates


def draw_plate(picture: np.ndarray, plate: Plate, color: Color, font_size: int) -> None:
    """Draw a plate into ``picture`` (H, W, 3) float32, its corners rounded."""
    window = picture[plate.top : plate.top + plate.height, plate.left : plate.left + plate.width]
    cover = _rounded_cover(plate.height, plate.width, radius=0.22 * plate.height)[..., None]
    window += 0.92 * cover * (np.float32(color) - window)
    text = Image.new("L", (plate.width, plate.height))
    position = (_margin(font_size) + 1, 0)
    ImageDraw.Draw(text).text(position, plate.text, fill=255, font=_font(font_size))
    ink = (np.asarray(text, np.float32) / 255)[..., None]
    window += ink * (np.float32(text_color(color)) - window)


def _spots(box: np.ndarray, size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Places ``(S, 4)`` for a plate of ``size`` around and in ``box``, pushed into the picture."""
    plate_width, plate_height = size
    x1, y1, x2, y2 = box
    along = np.linspace(0.0, 1.0, 5)
    across = x1 + along * (x2 - x1 - plate_width)
    down = y1 + along * (y2 - y1 - plate_height)
    lefts, tops = [], []
    for top in (y1 - plate_height, y1, y2, y2 - plate_height, (y1 + y2 - plate_height) / 2):
        lefts.append(across)
        tops.append(np.full(5, top))
    for left in (x2, x1 - plate_width):
        lefts.append(np.full(5, left))
        tops.append(down)
    left = np.concatenate(lefts).round().clip(0, width - plate_width)
    top = np.concatenate(tops).round().clip(0, height - plate_height)
    return np.stack([left, top, left + plate_width, top + plate_height], axis=1)


def _costs(spots: np.ndarray, box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much each spot hides of instances, in plate areas; earlier spots win among equals."""
    plate_area = (spots[0, 2] - spots[0, 0]) * (spots[0, 3] - spots[0, 1])
    box_area = max((box[2] - box[0]) * (box[3] - box[1]), 1.0)
    hidden = _overlaps(spots, box[None])[:, 0]
    areas = np.maximum((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]), 1.0)
    # What counts is the share of an instance that disappears, so small ones are spared most.
    shares = (_overlaps(spots, others) / areas).sum(1)
    gap = np.hypot(
        np.maximum(0, np.maximum(box[0] - spots[:, 2], spots[:, 0] - box[2])),
        np.maximum(0, np.maximum(box[1] - spots[:, 3], spots[:, 1] - box[3])),
    )
    order = np.arange(len(spots)) / len(spots)
    return 2.0 * hidden / box_area + shares + 0.1 * hidden / plate_area + 0.1 * gap + 0.3 * order


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas ``(F, S)`` common to each pair of boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(0).prod(2)


def _rounded_cover(height: int, width: int, radius: float) -> np.ndarray:
    """How much of each pixel a rectangle with rounded corners covers, (height, width) float32."""
    y = np.abs(np.arange(height) + 0.5 - height / 2) - (height / 2 - radius)
    x = np.abs(np.arange(width) + 0.5 - width / 2) - (width / 2 - radius)
    distance = np.hypot(y.clip(0)[:, None], x.clip(0)[None]) - radius
    return (0.5 - distance).clip(0, 1).astype(np.float32)


def _margin(font_size: int) -> int:
    return max(2, round(0.25 * font_size))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface that travels inside Pillow, so that every machine draws alike."""
    return ImageFont.load_default(size)
