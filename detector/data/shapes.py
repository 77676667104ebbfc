"""The synthetic shapes: a small detection dataset made on the spot, as ordinary COCO files.

Every image is a pure function of ``(seed, split, index, image_size)``.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.shape_scenes import CLASS_NAMES, make_scene

SPLITS = ("train", "val")

_log = logging.getLogger(__name__)

_FORMAT = 2  # raised when the same parameters would give other pictures
_RECORD = "shapes.json"
_JPEG_QUALITY = 92


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
    _log.info("drawing %d synthetic images into %s", num_train + num_val, root)
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
