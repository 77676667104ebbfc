"""The synthetic shapes: a small detection dataset made on the spot, as ordinary COCO files."""

from __future__ import annotations

from pathlib import Path

from detector.data.generated import GeneratedSet, Parameters, ensure_generated, write_dataset
from detector.data.shape_scenes import CLASS_NAMES, make_scene

SHAPES = GeneratedSet(
    name="shapes",
    version=2,
    annotations="instances",
    categories=[
        {"id": label + 1, "name": name, "supercategory": "shape"}
        for label, name in enumerate(CLASS_NAMES)
    ],
    make_scene=make_scene,
)


def ensure_shapes(
    root: str | Path,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
) -> Path:
    """Gives the dataset in ``root``, generating it on first use.

    Processes that start together are safe, see :func:`detector.data.generated.ensure_generated`.

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
    values = num_train, num_val, image_size, seed
    return ensure_generated(
        root, SHAPES, Parameters(*values), lambda folder: generate_shapes(folder, *values)
    )


def generate_shapes(
    root: str | Path,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
) -> None:
    """Writes the dataset into the new or empty folder ``root``; see :func:`ensure_shapes`.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: ``root`` is not empty.
    """
    write_dataset(root, SHAPES, Parameters(num_train, num_val, image_size, seed))
