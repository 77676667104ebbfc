"""Scenes of the synthetic shapes: what lies where, what hides what, and its annotations.

Shapes are placed back to front from exact outlines. What is annotated is each outline less the
outlines in front of it, so polygons and pixels agree to a fraction of a pixel. Classes differ by
outline alone: colour, texture, size, proportions and angle say nothing about them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.data.polygon_clipping import (
    DegenerateClip,
    Region,
    difference,
    intersection,
    region_area,
    ring_area,
    without_holes,
)
from detector.data.shape_painting import background, contrasting_colour, coverage, develop, paint

CLASS_NAMES = ("circle", "triangle", "square", "star", "cross")

_EMPTY_IMAGES = 0.04
_CROWD_IMAGES = 0.06
_LARGE_SHAPES = 0.12  # of the first shapes: it lies behind all others
_LEAST_VISIBLE = 0.6  # of a shape's own area; less, and its class could not be told
_LEAST_PIXELS = 45.0
_LEAST_PART = 3.0  # square pixels; a smaller visible fragment is not annotated


@dataclass
class Shape:
    """One drawn shape.

    Attributes:
        label: index into ``CLASS_NAMES``.
        outline: ``(n, 2)`` float64 ring of the whole shape, in pixels.
        visible: the part of it inside the image and not covered by shapes drawn later.
    """

    label: int
    outline: np.ndarray
    visible: Region


@dataclass
class Scene:
    """One image and what it shows.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        shapes: back to front.
        crowd_label: class of the cluster of tiny shapes, if there is one.
        crowd_mask: ``(H, W)`` bool, the cluster's visible pixels.
    """

    image: np.ndarray
    shapes: list[Shape]
    crowd_label: int | None = None
    crowd_mask: np.ndarray | None = None

    def annotations(self) -> list[dict]:
        """COCO annotations without ids: polygons of the shapes, then the crowd as RLE."""
        records = []
        for shape in self.shapes:
            rings = [np.round(ring, 2) for ring in without_holes(shape.visible)]
            rings = [ring for ring in rings if ring_area(ring) >= _LEAST_PART]
            vertices = np.concatenate(rings)
            (x1, y1), (x2, y2) = vertices.min(0), vertices.max(0)
            records.append(
                {
                    "category_id": shape.label + 1,
                    "segmentation": [ring.ravel().tolist() for ring in rings],
                    "area": round(region_area(rings), 2),
                    "bbox": [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "iscrowd": 0,
                }
            )
        if self.crowd_mask is not None:
            rows, columns = np.nonzero(self.crowd_mask)
            x, y = int(columns.min()), int(rows.min())
            records.append(
                {
                    "category_id": self.crowd_label + 1,
                    "segmentation": {
                        "counts": run_lengths(self.crowd_mask),
                        "size": list(self.crowd_mask.shape),
                    },
                    "area": int(self.crowd_mask.sum()),
                    "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                    "iscrowd": 1,
                }
            )
        return records


def make_scene(rng: np.random.Generator, image_size: int = 128) -> Scene:
    """Draw one scene; the same generator state gives the same scene, bit for bit."""
    picture, background_colour = background(rng, image_size)
    colours = [background_colour]
    crowd_label, crowd_alpha = None, None
    num_shapes = 0 if rng.random() < _EMPTY_IMAGES else int(rng.integers(1, 7))

    if num_shapes and rng.random() < _CROWD_IMAGES:
        crowd_label = int(rng.integers(len(CLASS_NAMES)))
        crowd_alpha = np.zeros((image_size, image_size))
        for outline in _cluster(rng, crowd_label, image_size):
            alpha = coverage([outline], image_size)
            paint(rng, picture, alpha, contrasting_colour(rng, colours))
            crowd_alpha = np.maximum(crowd_alpha, alpha)
        num_shapes = min(num_shapes, 4)

    shapes: list[Shape] = []
    for _ in range(num_shapes):
        label = int(rng.integers(len(CLASS_NAMES)))
        placed = _place(rng, label, shapes, crowd_alpha, image_size)
        if placed is None:
            continue
        outline, regions_behind = placed
        for shape, visible in zip(shapes, regions_behind, strict=True):
            shape.visible = visible
        shapes.append(Shape(label, outline, _inside_image(outline, image_size)))
        alpha = coverage([outline], image_size)
        colour = contrasting_colour(rng, colours)
        colours.append(colour)
        paint(rng, picture, alpha, colour)
        if crowd_alpha is not None:
            crowd_alpha = crowd_alpha * (1 - alpha)

    crowd_mask = None if crowd_alpha is None else crowd_alpha >= 0.5
    return Scene(develop(rng, picture), shapes, crowd_label, crowd_mask)


def class_outline(rng: np.random.Generator, label: int, side: float) -> np.ndarray:
    """A class's outline about the origin, rotated and stretched, of area ``side ** 2``."""
    name = CLASS_NAMES[label]
    if name == "circle":
        points = _polar(np.ones(int(np.clip(5 * side**0.5, 16, 36))))
    elif name == "triangle":
        points = _polar(np.ones(3))
    elif name == "square":
        points = _polar(np.ones(4))
    elif name == "star":
        points = _polar(np.tile((1.0, rng.uniform(0.45, 0.52)), 5))
    else:
        arm = rng.uniform(0.32, 0.4)
        quarter = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
        turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
        points = np.concatenate([quarter @ np.reshape(turn, (2, 2)).T for turn in turns])
    points = points * (1.0, rng.uniform(0.85, 1.0))
    points *= side / abs(ring_area(points)) ** 0.5
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    points = points @ turn
    return points if ring_area(points) > 0 else points[::-1]


def _polar(radii: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def _inside_image(outline: np.ndarray, image_size: int) -> Region:
    frame = np.array([(0, 0), (image_size, 0), (image_size, image_size), (0, image_size)], float)
    return intersection([outline], frame)


def _place(
    rng: np.random.Generator,
    label: int,
    shapes: list[Shape],
    crowd_alpha: np.ndarray | None,
    image_size: int,
) -> tuple[np.ndarray, list[Region]] | None:
    """Find a place in front of ``shapes`` that leaves everything recognisable.

    Returns:
        The outline and what stays visible of every earlier shape; ``None`` if no try fitted.
    """
    for _ in range(20):
        if rng.random() < _LARGE_SHAPES and not shapes:
            side = rng.uniform(0.84, 0.94) * image_size
            centre = rng.uniform(0.4, 0.6, 2) * image_size
        else:
            side = np.exp(rng.uniform(np.log(16.0), np.log(0.52 * image_size)))
            centre = rng.uniform(0, image_size, 2)
        outline = class_outline(rng, label, side) + centre
        try:
            visible = region_area(_inside_image(outline, image_size))
            if visible < max(0.6 * side**2, _LEAST_PIXELS):
                continue
            behind = [difference(shape.visible, outline) for shape in shapes]
        except DegenerateClip:
            continue
        if crowd_alpha is not None:
            hidden = (crowd_alpha * coverage([outline], image_size)).sum()
            if hidden > 0.3 * crowd_alpha.sum():
                continue
        if all(_recognisable(s, region) for s, region in zip(shapes, behind, strict=True)):
            return outline, behind
    return None


def _recognisable(shape: Shape, visible: Region) -> bool:
    area = region_area(visible)
    return area >= max(_LEAST_VISIBLE * ring_area(shape.outline), _LEAST_PIXELS)


def _cluster(rng: np.random.Generator, label: int, image_size: int) -> list[np.ndarray]:
    """Outlines of a dense heap of tiny shapes, too many to tell apart."""
    spread = rng.uniform(11, 17)
    centre = rng.uniform(2 * spread, image_size - 2 * spread, 2)
    outlines = []
    for _ in range(int(rng.integers(18, 40))):
        distance = spread * 1.4 * rng.random() ** 0.5
        angle = rng.uniform(0, 2 * np.pi)
        place = centre + distance * np.array((np.cos(angle), np.sin(angle)))
        outlines.append(class_outline(rng, label, rng.uniform(5, 8)) + place)
    return outlines


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
