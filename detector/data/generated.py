"""What generated datasets share: folders that appear whole, the record of parameters, COCO files.

Every image is a pure function of ``(seed, split, index, image_size)``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

SPLITS = ("train", "val")

_log = logging.getLogger(__name__)

_LEAST = {"num_train": 1, "num_val": 1, "image_size": 128, "seed": 0}
_JPEG_QUALITY = 92


class Scene(Protocol):
    """One picture and what is to be seen in it.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
    """

    image: np.ndarray

    def annotations(self) -> list[dict[str, Any]]:
        """COCO annotations without ids."""


@dataclass(frozen=True)
class Parameters:
    """What decides about the files of a generated dataset.

    Attributes:
        num_train: number of training images.
        num_val: number of validation images.
        image_size: side of the square images in pixels.
        seed: another seed gives other images.
    """

    num_train: int
    num_val: int
    image_size: int
    seed: int


@dataclass(frozen=True)
class GeneratedSet:
    """A kind of generated dataset.

    Attributes:
        name: in the plural, as messages and the record's file are called.
        version: raised when the same parameters would give other files.
        annotations: how annotation files begin, such as ``instances``.
        categories: COCO's category records.
        make_scene: draws a scene with a generator, of an image size.
    """

    name: str
    version: int
    annotations: str
    categories: list[dict[str, Any]]
    make_scene: Callable[[np.random.Generator, int], Scene]

    def record(self, parameters: Parameters) -> dict[str, int]:
        """What the record of a dataset with these parameters says.

        Raises:
            ValueError: a parameter is out of range.
        """
        record = {"format": self.version, **dataclasses.asdict(parameters)}
        for name, least in _LEAST.items():
            if record[name] < least:
                raise ValueError(f"{self.name}: {name}={record[name]} must be at least {least}")
        return record

    @property
    def record_name(self) -> str:
        """File name of the record."""
        return f"{self.name}.json"

    def ensure(
        self,
        root: str | Path,
        num_train: int = 1000,
        num_val: int = 200,
        image_size: int = 128,
        seed: int = 0,
    ) -> Path:
        """Gives the dataset in ``root``, generating it on first use.

        The folder appears at once and whole, so processes that start together are safe: each
        generates, the first to finish wins.

        Args:
            root: the dataset's folder, see :func:`write_dataset`.
            num_train: number of training images.
            num_val: number of validation images.
            image_size: side of the square images in pixels, at least 128.
            seed: another seed gives other images.

        Returns:
            ``root`` as a path.

        Raises:
            ValueError: ``root`` holds something else, or a dataset made with other parameters.
        """
        root = Path(root)
        parameters = Parameters(num_train, num_val, image_size, seed)
        wanted = self.record(parameters)
        if not _is_empty(root):
            _check_record(root, self, wanted)
            return root
        _log.info("drawing %d images of %s into %s", num_train + num_val, self.name, root)
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            write_dataset(partial / self.name, self, parameters)
            try:
                if root.exists():  # an empty folder: not every system renames onto one
                    root.rmdir()
                (partial / self.name).rename(root)
            except OSError:
                if _is_empty(root):
                    raise
                _check_record(root, self, wanted)  # another process was first
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return root


def write_dataset(root: str | Path, kind: GeneratedSet, parameters: Parameters) -> None:
    """Draws a dataset into the new or empty folder ``root``.

    It gets JPEG images in ``train/`` and ``val/``, ``annotations/<kind.annotations>_<split>.json``
    and the record of its parameters.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: ``root`` is not empty.
    """
    root = Path(root)
    record = kind.record(parameters)
    if not _is_empty(root):
        raise FileExistsError(f"{root} is not empty; choose another folder or delete it")
    (root / "annotations").mkdir(parents=True)
    size = parameters.image_size
    for split, count in zip(SPLITS, (parameters.num_train, parameters.num_val), strict=True):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            rng = np.random.default_rng([parameters.seed, SPLITS.index(split), index])
            scene = kind.make_scene(rng, size)
            file_name = f"{index:06d}.jpg"
            # Chroma at full resolution: subsampling would smear colour over the outlines.
            Image.fromarray(scene.image).save(
                root / split / file_name, quality=_JPEG_QUALITY, subsampling=0
            )
            images.append({"id": index + 1, "file_name": file_name, "width": size, "height": size})
            for annotation in scene.annotations():
                identity = {"id": len(annotations) + 1, "image_id": index + 1}
                annotations.append(identity | annotation)
        document = {
            "info": {
                "description": f"synthetic {kind.name}, {split}",
                "version": str(kind.version),
            },
            "licenses": [],
            "categories": kind.categories,
            "images": images,
            "annotations": annotations,
        }
        path = root / "annotations" / f"{kind.annotations}_{split}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
    (root / kind.record_name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_empty(root: Path) -> bool:
    return not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None)


def _check_record(root: Path, kind: GeneratedSet, wanted: dict[str, int]) -> None:
    beside = f"or draw into another folder: data.root={_free_name(root)}"
    try:
        found = json.loads((root / kind.record_name).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no record of parameters")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{root} is not a folder of generated {kind.name} ({kind.record_name}: {error}); if "
            f"nothing in it is needed, delete the folder {root}, {beside}"
        ) from error
    keys = [key for key in wanted if found.get(key) != wanted[key]]
    if not keys:
        return
    differences = ", ".join(f"{key}={found.get(key)} not {wanted[key]}" for key in keys)
    remedy = f"delete the folder {root} to draw them anew, {beside}"
    if "format" not in keys:  # no command gives those of another version
        settings = " ".join(f"data.prepare.{key}={found.get(key)}" for key in keys)
        remedy = f"take them as they are: {settings}; or {remedy}"
    raise ValueError(f"{root} holds {kind.name} made with {differences}; {remedy}")


def _free_name(root: Path) -> Path:
    """A folder beside ``root`` that is not there."""
    names = (root.with_name(f"{root.name}-{number}") for number in itertools.count(2))
    return next(name for name in names if not name.exists())
