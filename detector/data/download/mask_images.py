"""Datasets whose annotations are images of masks, as COCO files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

VAL_SHARE = 0.2

# Of an image: its file below the root, its (height, width), and its objects' masks (H, W) bool.
ImageMasks = tuple[str, tuple[int, int], list[np.ndarray]]


def penn_fudan_records(root: Path) -> Iterator[ImageMasks]:
    """Penn-Fudan: ``PedMasks/NAME_mask.png`` holds 1 for the first pedestrian, 2 for the second."""
    for file in sorted((root / "PNGImages").glob("*.png")):
        numbers = np.asarray(Image.open(root / "PedMasks" / f"{file.stem}_mask.png"))
        masks = [numbers == number for number in range(1, int(numbers.max()) + 1)]
        yield f"PNGImages/{file.name}", numbers.shape[:2], masks


def nuclei_records(root: Path) -> Iterator[ImageMasks]:
    """The Data Science Bowl: ``stage1_train/ID/masks/`` holds an image for each nucleus."""
    for file in sorted((root / "stage1_train").glob("*/images/*.png")):
        masks = [
            np.asarray(Image.open(mask).convert("L")) > 127
            for mask in sorted((file.parents[1] / "masks").glob("*.png"))
        ]
        with Image.open(file) as image:
            size = image.size[::-1]
        yield file.relative_to(root).as_posix(), size, masks


def write_splits(root: Path, class_name: str, images: Iterable[ImageMasks]) -> None:
    """Writes ``annotations/train.json`` and ``val.json``; a fifth of the images is for val.

    Which is told by a digest of its name, so that it never changes.

    Raises:
        ValueError: there are no images.
    """
    splits: dict[str, dict[str, list]] = {
        split: {"images": [], "annotations": [], "categories": [{"id": 1, "name": class_name}]}
        for split in ("train", "val")
    }
    number = 0
    for number, (name, (height, width), masks) in enumerate(images, start=1):
        digest = hashlib.sha256(name.encode()).digest()[0] / 256
        data = splits["val" if digest < VAL_SHARE else "train"]
        data["images"].append(
            {"id": number, "file_name": name, "width": int(width), "height": int(height)}
        )
        for mask in masks:
            if not mask.any():
                continue
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": int(coco_mask.area(rle)),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "iscrowd": 0,
                }
            )
    if not number:
        raise ValueError(f"{root}: no images in what was unpacked; the dataset's layout is another")
    (root / "annotations").mkdir(exist_ok=True)
    for split, data in splits.items():
        (root / "annotations" / f"{split}.json").write_text(json.dumps(data))
