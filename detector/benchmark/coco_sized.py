"""A generated annotation file of the size of COCO's train2017."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

NUM_IMAGES = 118_287
NUM_ANNOTATIONS = 860_001
NUM_CATEGORIES = 80
# Outlines are drawn from this many, written out once; a file takes seconds instead of minutes.
_NUM_OUTLINES = 4096
_CROWD_SHARE = 0.012
_SIZES = ((640, 480), (480, 640))
# A file may have 65 000 names on common file systems.
_MAX_LINKS = 30_000
_CONTRAST = 11.0  # of the finest details of a photograph, in steps of 256


def write_coco_sized(
    path: Path,
    num_images: int = NUM_IMAGES,
    num_annotations: int = NUM_ANNOTATIONS,
    seed: int = 0,
    suffix: str = ".png",
) -> None:
    """Writes COCO instance annotations with polygons, and run lengths for the crowd regions.

    As in COCO an annotation takes some 500 bytes, about 26 vertices with two decimals in 1.1 parts.
    The same arguments give the same bytes. ``suffix`` ends the names of the images.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size_of_image = rng.integers(0, 2, num_images)
    image_of = rng.integers(0, num_images, num_annotations)  # in no order, as in COCO
    category_of = rng.integers(1, NUM_CATEGORIES + 1, num_annotations)
    is_crowd = rng.random(num_annotations) < _CROWD_SHARE
    outlines = [_outline(rng) for _ in range(_NUM_OUTLINES)]
    crowds = [[_crowd(rng, size) for _ in range(64)] for size in _SIZES]
    chosen = rng.integers(0, _NUM_OUTLINES, num_annotations)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info":{},"licenses":[],"images":[')
        for image in range(num_images):
            width, height = _SIZES[size_of_image[image]]
            file.write(
                f'{"," if image else ""}{{"license":1,"file_name":"{image + 1:012d}{suffix}",'
                f'"height":{height},"width":{width},"date_captured":"2013-11-14 17:02:52",'
                f'"id":{image + 1}}}'
            )
        file.write('],"annotations":[')
        for number in range(num_annotations):
            image = image_of[number]
            if is_crowd[number]:
                shape = crowds[size_of_image[image]][chosen[number] % 64]
            else:
                shape = outlines[chosen[number]]
            file.write(
                f'{"," if number else ""}{{{shape},"iscrowd":{int(is_crowd[number])},'
                f'"image_id":{image + 1},"category_id":{category_of[number]},"id":{number + 1}}}'
            )
        categories = [
            {"supercategory": "thing", "id": number, "name": f"class {number}"}
            for number in range(1, NUM_CATEGORIES + 1)
        ]
        file.write(f'],"categories":{json.dumps(categories)}}}')


def write_its_images(folder: Path, num_images: int = NUM_IMAGES, seed: int = 0) -> None:
    """Gives every image of :func:`write_coco_sized` a file; few files with many names."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size_of_image = rng.integers(0, 2, num_images)
    folder.mkdir(parents=True)
    for which, size in enumerate(_SIZES):
        images = np.flatnonzero(size_of_image == which)
        for start in range(0, len(images), _MAX_LINKS):
            names = [folder / f"{image + 1:012d}.png" for image in images[start:][:_MAX_LINKS]]
            Image.new("RGB", size).save(names[0])
            for name in names[1:]:
                name.hardlink_to(names[0])


def write_photos(folder: Path, num_images: int, seed: int = 0) -> None:
    """Gives every image of :func:`write_coco_sized` a JPEG file that decodes like a photograph.

    Light and dark at all scales, the more the coarser, as in nature: some 150 kB, as in COCO.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size_of_image = rng.integers(0, 2, num_images)
    folder.mkdir(parents=True)
    for image, which in enumerate(size_of_image):
        width, height = _SIZES[which]
        pixels = np.full((height, width, 3), 128.0, dtype=np.float32)
        for scale in (1, 2, 4, 8, 16, 32, 64, 128):
            shape = (-(-height // scale) + 1, -(-width // scale) + 1, 3)
            noise = rng.normal(0, _CONTRAST * scale**0.4, shape).astype(np.float32)
            # Colour changes less than light does.
            noise = 0.7 * noise.mean(axis=2, keepdims=True) * 3**0.5 + 0.3 * noise
            pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{image + 1:012d}.jpg", quality=92)


def _outline(rng: np.random.Generator) -> str:
    """Segmentation, area and bbox of a blob that fits both sizes of images, as JSON."""
    radius = rng.uniform(4, 110)
    centre = rng.uniform(radius * 1.5 + 2, 478 - radius * 1.5, 2)
    parts = []
    for part in range(1 if rng.random() < 0.9 else 2):
        num_vertices = int(np.clip(rng.lognormal(3.0, 0.6), 4, 300))
        angles = np.linspace(0, 2 * np.pi, num_vertices, endpoint=False)
        radii = radius * rng.uniform(0.6, 1.4, num_vertices) * (1, 0.3)[part]
        points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        parts.append(points.round(2))
    every = np.concatenate(parts)
    x, y = every.min(axis=0)
    width, height = (every.max(axis=0) - (x, y)).round(2).tolist()
    text = json.dumps([part.ravel().tolist() for part in parts], separators=(",", ":"))
    area = width * height * 0.6
    return f'"segmentation":{text},"area":{area:.4f},"bbox":[{x},{y},{width},{height}]'


def _crowd(rng: np.random.Generator, size: tuple[int, int]) -> str:
    """The same of a crowd region of some columns, as uncompressed run lengths."""
    width, height = size
    columns = int(rng.integers(20, 120))
    start, run = int(rng.integers(0, 100)), int(rng.integers(20, 200))
    counts = [height * 3 + start]
    for _ in range(columns - 1):
        counts += [run, height - run]
    counts += [run, width * height - sum(counts) - run]
    text = json.dumps({"counts": counts, "size": [height, width]}, separators=(",", ":"))
    return f'"segmentation":{text},"area":{run * columns},"bbox":[3,{start},{columns},{run}]'
