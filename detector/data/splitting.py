"""Divides a dataset into images to train on and images to validate on."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np

from detector.data.index import AnnotationIndex


def split_images(
    index: AnnotationIndex,
    fraction: float,
    seed: int,
    stratify: bool = True,
    group: str | None = None,
) -> np.ndarray:
    """Which images are for validation, ``(N,)`` bool.

    Groups of images (one by one, without ``group``) are taken in a random order. With
    stratification those with the rarest classes come first, and each goes to the side that lacks
    more of its classes, after Sechidis et al., On the Stratification of Multi-Label Data, 2011;
    images without objects count as a class of their own.

    Args:
        index: the dataset.
        fraction: of the images that are for validation, between 0 and 1.
        seed: of the random order; the same images come out for the same seed.
        stratify: whether both sides shall have their share of every class.
        group: regular expression for the images' names without folders and suffix; images with the
            same first group, or the same match where it has none, stay together. Images in which
            it finds nothing stand alone.

    Raises:
        ValueError: the fraction or the expression makes no sense, or all is one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}; it must lie between 0 and 1")
    group_of_image = _groups(index, group)
    num_groups = int(group_of_image.max()) + 1
    if num_groups < 2:
        raise ValueError(
            f"{index.source_file}: all its images form one group, which cannot be divided; change "
            "group"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(num_groups)
    sizes = np.bincount(group_of_image, minlength=num_groups)
    counts = sizes[:, None].astype(np.float64)
    if stratify:
        counts = np.concatenate([_class_counts(index, group_of_image, num_groups), counts], axis=1)
        # The rarest class of each group decides its turn; the last column, of images, is no class.
        totals = counts[:, :-1].sum(axis=0)
        rarest = np.where(counts[:, :-1] > 0, totals, np.inf).min(axis=1)
        order = order[np.argsort(rarest[order], kind="stable")]
    chosen = _distribute(counts, order, fraction)
    # The first two groups go to different sides, since the side that has nothing lacks most.
    assert chosen.any() and not chosen.all()
    return chosen[group_of_image]


def _distribute(counts: np.ndarray, order: np.ndarray, fraction: float) -> np.ndarray:
    """Gives each group, in order, to the side that lacks most; ``(groups,)`` bool.

    Args:
        counts: ``(groups, classes + 1)``, the last column of images.
        order: of the groups.
        fraction: that is chosen.
    """
    wanted = counts.sum(axis=0) * fraction
    missing = np.stack([counts.sum(axis=0) - wanted, wanted])  # by those left and those chosen
    shares = np.array([1 - fraction, fraction])[:, None]
    totals = np.maximum(counts.sum(axis=0), 1e-9)
    chosen = np.zeros(len(counts), dtype=bool)
    for group in order.tolist():
        # Rare classes weigh as much as frequent ones.
        need = (missing / shares / totals) @ (counts[group] / totals)
        chosen[group] = need[1] > need[0]
        missing[int(chosen[group])] -= counts[group]
    return chosen


def _groups(index: AnnotationIndex, pattern: str | None) -> np.ndarray:
    """The number of each image's group, ``(N,)`` int64."""
    if pattern is None:
        return np.arange(len(index))
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"group={pattern} is no regular expression ({error}); correct it"
        ) from None
    numbers: dict[object, int] = {}
    groups, num_found = [], 0
    for image in range(len(index)):
        found = expression.search(PurePosixPath(index.file_name(image)).stem)
        num_found += found is not None
        key = image if found is None else found[1 if expression.groups else 0]
        groups.append(numbers.setdefault(key, len(numbers)))
    if num_found == 0:
        raise ValueError(
            f"group={pattern} is in no image's name, such as {index.file_name(0)}; correct it"
        )
    return np.array(groups)


def _class_counts(
    index: AnnotationIndex, group_of_image: np.ndarray, num_groups: int
) -> np.ndarray:
    """Objects of each class in each group, and images without any, ``(groups, K + 1)``."""
    per_image = np.diff(index.annotation_offsets)
    group = np.repeat(group_of_image, per_image)
    width = index.num_classes + 1
    cells = np.concatenate([group * width + index.labels, group_of_image * width + width - 1])
    weights = np.concatenate([np.ones(len(group)), per_image == 0])
    return np.bincount(cells, weights, minlength=num_groups * width).reshape(num_groups, width)
