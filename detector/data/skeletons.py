"""The synthetic skeletons: a small keypoint dataset made on the spot, as ordinary COCO files."""

from __future__ import annotations

from pathlib import Path

from detector.data.generated import GeneratedSet, Parameters, ensure_generated, write_dataset
from detector.data.skeleton_figures import JOINTS, SIGMAS, SKELETON
from detector.data.skeleton_scenes import make_skeleton_scene

SKELETONS = GeneratedSet(
    name="skeletons",
    version=1,
    annotations="person_keypoints",
    categories=[
        {
            "id": 1,
            "name": "figure",
            "supercategory": "figure",
            "keypoints": list(JOINTS),
            "skeleton": [[first + 1, second + 1] for first, second in SKELETON],
            "keypoint_sigmas": list(SIGMAS),
        }
    ],
    make_scene=make_skeleton_scene,
)


def ensure_skeletons(
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
            ``annotations/person_keypoints_{train,val}.json``.
        num_train: number of training images.
        num_val: number of validation images.
        image_size: side of the square images in pixels, at least 128.
        seed: another seed gives other images.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: ``root`` holds something else, or skeletons made with other parameters.
    """
    parameters = Parameters(num_train, num_val, image_size, seed)
    return ensure_generated(
        root, SKELETONS, parameters, lambda folder: write_dataset(folder, SKELETONS, parameters)
    )
