"""The tool that shows samples as training sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from detector.data.collate import Collate
from detector.engine import assembly
from detector.engine.atomic_file import atomic_write
from detector.engine.progress import track
from detector.report.browse_page import browse_page, look_at
from detector.report.drawing import draw_objects, read_small


def browse(cfg: DictConfig, console: Console) -> None:
    """Writes pictures of augmented samples, and ``browse.html`` with all, to ``cfg.output``.

    Raises:
        ValueError, FileNotFoundError: a setting or a dataset that cannot be used.
    """
    split = "train" if cfg.split is None else cfg.split
    if split not in ("train", "val"):
        raise ValueError(f"split={cfg.split} is not known: write train or val")
    for key in ("num_images", "looks", "mask_size"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]} must be a whole number of at least 1")
    output = Path(str(cfg.output))
    dataset = assembly.build_dataset(cfg.data, split)
    index = dataset.index
    console.print(assembly.describe_dataset(dataset), soft_wrap=True)
    with_objects = np.flatnonzero(np.diff(index.annotation_offsets))
    chosen = np.unique(np.linspace(0, len(with_objects) - 1, cfg.num_images).round().astype(int))
    images = with_objects[chosen].tolist()
    collate = Collate(
        assembly.plain(cfg.data.buckets),
        with_masks=index.has_masks,
        with_keypoints=index.has_keypoints,
    )
    groups = []
    for image in track(images, len(images), "looking", "images", console):
        name = index.file_name(image)
        looks = [
            look_at(dataset, image, epoch, collate, cfg.mask_size) for epoch in range(cfg.looks)
        ]
        for epoch, look in enumerate(looks):
            # With its folders in the name, since files in two of them may be called alike.
            stem = "_".join(Path(name).with_suffix("").parts).strip("/")
            file = output / f"{stem}_epoch{epoch}.jpg"
            with atomic_write(file) as stream:
                Image.fromarray(look.picture).save(stream, "JPEG", quality=90)
        small = read_small(index, image)
        original = None if small is None else draw_objects(index, image, small)
        groups.append((name, original, looks))
    with atomic_write(output / "browse.html") as file:
        file.write(browse_page(groups, list(index.category_names)).encode())
    count = len(images) * cfg.looks
    console.print(f"written to {output}/browse.html and {count} pictures", soft_wrap=True)
