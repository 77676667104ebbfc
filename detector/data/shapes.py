"""The synthetic shapes: a small detection dataset made on the spot, as ordinary COCO files.

Every image is a pure function of ``(seed, split, index, image_size)``. Shapes are drawn back to
front from exact outlines with exact pixel coverage, and what is annotated is each outline less the
outlines in front of it, so polygons and pixels agree to a fraction of a pixel. Classes differ by
outline alone: colour, texture, size, proportions and angle say nothing about them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.polygon_clipping import (
    DegenerateClip,
    Region,
    difference,
    intersection,
    region_area,
    ring_area,
    without_holes,
)

CLASS_NAMES = ("circle", "triangle", "square", "star", "cross", "heart")
SPLITS = ("train", "val")

_FORMAT = 1  # raised when the same parameters would give other pictures
_RECORD = "shapes.json"
_JPEG_QUALITY = 92

_EMPTY_IMAGES = 0.04
_CROWD_IMAGES = 0.06
_LARGE_SHAPES = 0.12  # of the first shapes: it lies behind all others
_LEAST_VISIBLE = 0.35  # of a shape's own area; less, and its class could not be told
_LEAST_PIXELS = 45.0
_LEAST_PART = 3.0  # square pixels; a smaller visible fragment is not annotated
_LEAST_CONTRAST = 70.0  # RGB distance between a shape and what it lies on


def ensure_shapes(
    root: str | Path,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
) -> Path:
    """Give the dataset in ``root``, generating it on first use.

    The folder appears at once and whole, so processes that start together are safe: each generates,
    the first to finish wins.

    Args:
        root: the dataset's folder: ``train/``, ``val/`` and
            ``annotations/instances_{train,val}.json``.
        num_train: number of training images.
        num_val: number of validation images.
        image_size: side of the square images in pixels, at least 128.
        seed: another seed gives other images.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: ``root`` holds something else, or shapes made with other parameters.
    """
    root = Path(root)
    wanted = _parameters(num_train, num_val, image_size, seed)
    if not _is_empty(root):
        _check_record(root, wanted)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        generate_shapes(partial / "shapes", num_train, num_val, image_size, seed)
        try:
            if root.exists():  # an empty folder: not every system renames onto one
                root.rmdir()
            (partial / "shapes").rename(root)
        except OSError:
            if _is_empty(root):
                raise
            _check_record(root, wanted)  # another process was first
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def generate_shapes(
    root: str | Path,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
) -> None:
    """Write the dataset into the new or empty folder ``root``; see ``ensure_shapes``.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: ``root`` is not empty.
    """
    root = Path(root)
    parameters = _parameters(num_train, num_val, image_size, seed)
    if not _is_empty(root):
        raise FileExistsError(f"{root} is not empty; choose another folder or delete it")
    (root / "annotations").mkdir(parents=True)
    for split, count in zip(SPLITS, (num_train, num_val), strict=True):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            scene = make_scene(rng, image_size)
            file_name = f"{index:06d}.jpg"
            # Chroma at full resolution: subsampling would smear colour over the outlines.
            Image.fromarray(scene.image).save(
                root / split / file_name, quality=_JPEG_QUALITY, subsampling=0
            )
            images.append(
                {"id": index + 1, "file_name": file_name, "width": image_size, "height": image_size}
            )
            for record in scene.annotations():
                record = {"id": len(annotations) + 1, "image_id": index + 1, **record}
                annotations.append(record)
        document = {
            "info": {"description": f"synthetic shapes, {split}", "version": str(_FORMAT)},
            "licenses": [],
            "categories": [
                {"id": label + 1, "name": name, "supercategory": "shape"}
                for label, name in enumerate(CLASS_NAMES)
            ],
            "images": images,
            "annotations": annotations,
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
    (root / _RECORD).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")


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
                        "counts": _run_lengths(self.crowd_mask),
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
    image, background_colour = _background(rng, image_size)
    colours = [background_colour]
    crowd_label, crowd_alpha = None, None
    num_shapes = 0 if rng.random() < _EMPTY_IMAGES else int(rng.integers(1, 9))

    if num_shapes and rng.random() < _CROWD_IMAGES:
        crowd_label = int(rng.integers(len(CLASS_NAMES)))
        crowd_alpha = np.zeros((image_size, image_size))
        for outline in _cluster(rng, crowd_label, image_size):
            alpha = coverage([outline], image_size)
            image = _paint(rng, image, alpha, _contrasting_colour(rng, colours))
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
        colour = _contrasting_colour(rng, colours)
        colours.append(colour)
        image = _paint(rng, image, alpha, colour)
        if crowd_alpha is not None:
            crowd_alpha = crowd_alpha * (1 - alpha)

    crowd_mask = None if crowd_alpha is None else crowd_alpha >= 0.5
    return Scene(_finish(rng, image), shapes, crowd_label, crowd_mask)


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


def _parameters(num_train: int, num_val: int, image_size: int, seed: int) -> dict[str, int]:
    for name, value, least in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("image_size", image_size, 128),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"shapes: {name}={value} must be at least {least}")
    return {
        "format": _FORMAT,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "seed": seed,
    }


def _is_empty(root: Path) -> bool:
    return not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None)


def _check_record(root: Path, wanted: dict[str, int]) -> None:
    remedy = "delete the folder to generate it again, or give another one (data.root=...)"
    try:
        found = json.loads((root / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{root} is not a folder of generated shapes ({_RECORD}: {error}); {remedy}"
        ) from error
    if found != wanted:
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        differences = ", ".join(f"{key}={found.get(key)} not {wanted[key]}" for key in keys)
        raise ValueError(f"{root} holds shapes made with {differences}; {remedy}")


def _outline(rng: np.random.Generator, label: int, side: float) -> np.ndarray:
    """A class's outline about the origin, rotated and stretched, of area ``side ** 2``."""
    name = CLASS_NAMES[label]
    if name == "circle":
        points = _polar(np.ones(int(np.clip(5 * side**0.5, 16, 36))))
    elif name == "triangle":
        points = _polar(np.ones(3))
    elif name == "square":
        points = _polar(np.ones(4))
    elif name == "star":
        points = _polar(np.tile((1.0, rng.uniform(0.4, 0.48)), 5))
    elif name == "cross":
        arm = rng.uniform(0.27, 0.36)
        quarter = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
        turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
        points = np.concatenate([quarter @ np.reshape(turn, (2, 2)).T for turn in turns])
    else:
        t = 2 * np.pi * np.arange(32) / 32
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([16 * np.sin(t) ** 3, -y], axis=1)
    points = points * (1.0, rng.uniform(0.78, 1.0))
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
            side = np.exp(rng.uniform(np.log(12.0), np.log(0.52 * image_size)))
            centre = rng.uniform(0, image_size, 2)
        outline = _outline(rng, label, side) + centre
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
        outlines.append(_outline(rng, label, rng.uniform(5, 8)) + place)
    return outlines


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def _noise(rng: np.random.Generator, image_size: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth random field in about ``[-1, 1]``, ``(H, W)``, with ``cells`` grid points per side."""
    grid = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(grid.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float64)


def _texture(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """A random pattern in about ``[-1, 1]``, ``(H, W)``: clouds, streaks, stripes, checks, dots."""
    kind = int(rng.integers(5))
    if kind == 0:
        octaves = [(0.55, 4), (0.35, 9), (0.25, 20), (0.15, 45)]
        return sum(weight * _noise(rng, image_size, (cells, cells)) for weight, cells in octaves)
    if kind == 1:
        cells = (6, 60) if rng.random() < 0.5 else (60, 6)
        return 0.8 * _noise(rng, image_size, cells) + 0.4 * _noise(rng, image_size, (5, 5))
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:image_size, :image_size]
    bend = rng.uniform(0, 4) * _noise(rng, image_size, (4, 4))
    period = rng.uniform(6, 22)
    along = 2 * np.pi * ((x * np.cos(angle) + y * np.sin(angle)) + bend) / period
    across = 2 * np.pi * ((y * np.cos(angle) - x * np.sin(angle)) + bend) / period
    if kind == 2:
        return np.sin(along)
    if kind == 3:
        return np.tanh(4 * np.sin(along) * np.sin(across))
    return np.clip(2.5 * np.cos(along) * np.cos(across) - 1.2, -0.6, 1)


def _shade(
    rng: np.random.Generator, image_size: int, colour: np.ndarray, strength: float
) -> np.ndarray:
    """``colour`` with a texture and a soft gradient of light, ``(H, W, 3)`` float64."""
    tint = rng.uniform(-1, 1, 3) * 0.5 + rng.choice((-1.0, 1.0))
    pattern = strength * _texture(rng, image_size)
    light = rng.uniform(4, 16) * _noise(rng, image_size, (2, 2))
    return colour + pattern[..., None] * tint + light[..., None]


def _background(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    colour = rng.uniform(30, 225, 3)
    colour = colour.mean() + (colour - colour.mean()) * rng.uniform(0.3, 1.0)
    image = _shade(rng, image_size, colour, rng.uniform(6, 30))
    return image + 10 * _noise(rng, image_size, (30, 30))[..., None], colour


def _contrasting_colour(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
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


def _paint(
    rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, colour: np.ndarray
) -> np.ndarray:
    fill = _shade(rng, len(image), colour, rng.uniform(3, 20))
    return image + alpha[..., None] * (fill - image)


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light and sensor noise, then 8 bits."""
    image = image * (1 + rng.uniform(0, 0.25) * _noise(rng, len(image), (2, 2)))[..., None]
    image = image + rng.normal(0, rng.uniform(2, 11), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
