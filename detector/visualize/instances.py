"""Instances over their image: masks with bright contours, boxes, keypoints, name plates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from detector.visualize.colors import class_color
from detector.visualize.keypoints import draw_keypoints
from detector.visualize.labels import draw_plate, place_plates, plate_size
from detector.visualize.regions import (
    Region,
    dilate,
    erode,
    regions_from_masks,
    regions_from_rings,
)

Color = tuple[int, int, int]

FILL_OPACITY = 0.38
CONTOUR_OPACITY = 0.95
SHADOW_OPACITY = 0.5
BOX_OPACITY = 0.9
BOX_OPACITY_BESIDE_MASK = 0.55
# Below this many pixels on the longer side, an image is enlarged before it is drawn on.
COMFORTABLE_SIDE = 640
# From this share of the picture under name plates on, they are thinned out.
CROWDED_SHARE = 0.1
# Masks are drawn this much finer than the picture and averaged, for smooth contours; the thick
# contours of a picture with a longer side than this look smooth as they are.
FINER = 2
SMOOTH_SIDE = 1600


def picture_zoom(height: int, width: int) -> int:
    """How many times a small image is enlarged so that text and contours have room."""
    return max(1, round(COMFORTABLE_SIDE / max(height, width)))


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    rings: Sequence[Sequence[np.ndarray]] | None = None,
    keypoints: np.ndarray | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Draw n instances.

    Line widths and text follow the size of the image; small images are enlarged by a whole factor
    first. Plates stay inside the picture and off each other. One that finds no room shrinks to the
    score in percent, or is left out, the least certain first; in a crowd, of the small instances
    of a class only one bears the name.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(n, 4)`` ``(x1, y1, x2, y2)`` in pixels of the image.
        labels: ``(n,)`` class indices, which choose the colours.
        names: n class names.
        scores: ``(n,)`` in 0..1, or ``None`` for ground truth.
        masks: ``(n, H, W)`` bool, or ``(n, M, M)`` float probabilities inside each box.
        rings: instead of ``masks``, per instance a list of ``(v, 2)`` vertices in pixels of the
            image; holes run the other way round.
        keypoints: ``(n, J, 3)`` ``(x, y, score)`` in pixels of the image, of ground truth with the
            visibility for a score.
        skeleton: pairs of keypoints that are connected.

    Returns:
        ``(H * zoom, W * zoom, 3)`` uint8 RGB, ``zoom`` as :func:`picture_zoom` says.
    """
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, "uint8 RGB"
    assert masks is None or rings is None, "masks or rings, not both"
    height, width = image.shape[:2]
    zoom = picture_zoom(height, width)
    picture = _enlarged(image, zoom).astype(np.float32)
    line = max(2, round(max(picture.shape[:2]) / 360))
    finer = FINER if max(picture.shape[:2]) <= SMOOTH_SIDE else 1
    colors = _instance_colors(labels)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)

    regions: list[Region] | None = None
    if masks is not None:
        regions = regions_from_masks(masks, boxes, height, width, zoom * finer)
    elif rings is not None:
        regions = regions_from_rings(rings, height, width, zoom * finer)
    # Large instances first, so that small ones lie on top.
    for i in np.argsort(-_areas(boxes), kind="stable"):
        if regions is not None:
            _draw_region(picture, regions[i], colors[i], line, finer)
        opacity = BOX_OPACITY if regions is None else BOX_OPACITY_BESIDE_MASK
        thickness = line if regions is None else max(1, line // 2)
        _draw_box(picture, boxes[i] * zoom, colors[i], thickness, opacity)
        if keypoints is not None:
            places = np.asarray(keypoints[i], np.float64) * (zoom, zoom, 1)
            draw_keypoints(picture, places, skeleton, colors[i], line)

    _draw_plates(picture, boxes * zoom, labels, names, scores)
    return picture.round().clip(0, 255).astype(np.uint8)


def _enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    if zoom == 1:
        return image
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _instance_colors(labels: np.ndarray) -> list[Color]:
    """The colour of each class, a little different for each of its instances."""
    seen: dict[int, int] = {}
    colors = []
    for label in np.asarray(labels).tolist():
        colors.append(class_color(label, seen.get(label, 0)))
        seen[label] = seen.get(label, 0) + 1
    return colors


def _draw_region(picture: np.ndarray, region: Region, color: Color, line: int, finer: int) -> None:
    """Fill, a contour along the inner rim, and a dark shadow around it for light images."""
    if not region.bitmap.any():
        return
    shadow_steps = max(1, line * finer // 2)
    # Room for the shadow, and a start that falls on a whole pixel of the picture.
    before_y = shadow_steps + (region.top - shadow_steps) % finer
    before_x = shadow_steps + (region.left - shadow_steps) % finer
    rows, columns = region.bitmap.shape
    after_y = shadow_steps + -(before_y + rows + shadow_steps) % finer
    after_x = shadow_steps + -(before_x + columns + shadow_steps) % finer
    inside = np.pad(region.bitmap, ((before_y, after_y), (before_x, after_x)))
    core = erode(inside, line * finer)
    shadow = dilate(inside, shadow_steps) & ~inside

    top = (region.top - before_y) // finer
    left = (region.left - before_x) // finer
    black = (0, 0, 0)
    # The part that lies inside the picture.
    bottom = min(top + inside.shape[0] // finer, picture.shape[0])
    right = min(left + inside.shape[1] // finer, picture.shape[1])
    inner = slice(max(0, -top), bottom - top), slice(max(0, -left), right - left)
    window = picture[max(0, top) : bottom, max(0, left) : right]
    contour_cover = _averaged(inside & ~core, finer)[inner]
    contour_color = _contrasting(color, window, contour_cover)
    for cover, layer_color, opacity in (
        (_averaged(shadow, finer)[inner], black, SHADOW_OPACITY),
        (_averaged(core, finer)[inner], color, FILL_OPACITY),
        (contour_cover, contour_color, CONTOUR_OPACITY),
    ):
        window += opacity * cover[..., None] * (np.float32(layer_color) - window)


def _averaged(bitmap: np.ndarray, finer: int) -> np.ndarray:
    """How much of each pixel of the picture a finer bitmap covers, float32."""
    rows, columns = bitmap.shape
    blocks = bitmap.reshape(rows // finer, finer, columns // finer, finer)
    return blocks.mean((1, 3), dtype=np.float32)


def _contrasting(color: Color, window: np.ndarray, cover: np.ndarray) -> Color:
    """The colour, made darker where the contour runs over something light."""
    lightness = (window @ np.float32([0.299, 0.587, 0.114])) / 255
    below = float((lightness * cover).sum() / max(float(cover.sum()), 1e-6))
    # Nothing is taken off over darkness, two fifths over white.
    share = 1.0 - 0.4 * min(1.0, max(0.0, (below - 0.45) / 0.3))
    red, green, blue = (round(share * channel) for channel in color)
    return red, green, blue


def _draw_box(
    picture: np.ndarray, box: np.ndarray, color: Color, thickness: int, opacity: float
) -> None:
    """A frame whose outer edge is the box, kept inside the picture, with a dark hairline around."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = box.round().astype(int).tolist()
    x1, x2 = np.clip([x1, max(x2, x1 + 1)], 0, width).tolist()
    y1, y2 = np.clip([y1, max(y2, y1 + 1)], 0, height).tolist()
    _blend_frame(picture, (x1 - 1, y1 - 1, x2 + 1, y2 + 1), (0, 0, 0), 1, 0.4 * opacity)
    _blend_frame(picture, (x1, y1, x2, y2), color, thickness, opacity)


def _blend_frame(
    picture: np.ndarray,
    corners: tuple[int, int, int, int],
    color: Color,
    thickness: int,
    opacity: float,
) -> None:
    x1, y1, x2, y2 = corners
    inner_top, inner_bottom = min(y1 + thickness, y2), max(y2 - thickness, y1 + thickness)
    inner_left, inner_right = min(x1 + thickness, x2), max(x2 - thickness, x1 + thickness)
    for top, bottom, left, right in (
        (y1, inner_top, x1, x2),
        (inner_bottom, y2, x1, x2),
        (inner_top, inner_bottom, x1, inner_left),
        (inner_top, inner_bottom, inner_right, x2),
    ):
        window = picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        window += opacity * (np.float32(color) - window)


def _draw_plates(
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None,
) -> None:
    height, width = picture.shape[:2]
    importance = _areas(boxes) if scores is None else np.asarray(scores)
    order = np.argsort(-importance, kind="stable")
    percents = ["" if scores is None else f"{100 * float(scores[i]):.0f}" for i in order]
    full = [
        f"{names[i]} {p}%" if p else str(names[i]) for i, p in zip(order, percents, strict=True)
    ]
    font_size = round(max(12, np.sqrt(height * width) / 44))
    sizes = np.array([plate_size(text, font_size) for text in full]).reshape(-1, 2)
    crowded = sizes.prod(1).sum() > CROWDED_SHARE * height * width
    if crowded:
        font_size = round(max(11, 0.8 * font_size))
    named: set[int] = set()
    texts = []
    for i, text, percent, size in zip(order, full, percents, sizes, strict=True):
        short = [percent] if percent else []
        # In a crowd small things go without their name, once it has explained the colour.
        small = _areas(boxes[i : i + 1])[0] < 4 * size.prod()
        spared = crowded and small and int(labels[i]) in named
        texts.append(short if spared else [text, *short])
        named.add(int(labels[i]))
    plates = place_plates(boxes[order], texts, font_size, height, width)
    for i, plate in zip(order, plates, strict=True):
        if plate is not None:
            draw_plate(picture, plate, class_color(int(labels[i])), font_size)
