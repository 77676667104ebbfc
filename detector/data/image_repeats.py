"""How often each image is seen in an epoch, so that rare classes are seen more often."""

from __future__ import annotations

import numpy as np

from detector.data.index import AnnotationIndex

SAMPLERS = ("default", "class_balanced", "repeat_factor")


def image_repeats(index: AnnotationIndex, sampler: str, threshold: float) -> np.ndarray | None:
    """Mean number of times that an epoch holds each image.

    * ``default``: every image once.
    * ``repeat_factor``: Gupta et al., LVIS, 2019, appendix B.2. With ``f_c`` the fraction of the
      images that hold class c, ``r_c = max(1, sqrt(threshold / f_c))``, and an image is repeated
      ``max r_c`` times over its classes; without objects, once. Epochs become longer.
    * ``class_balanced``: as if a class were drawn first, all alike, and then one of its images: an
      image with the classes C is seen ``N' / K' * sum(1 / n_c for c in C)`` times, where ``n_c`` of
      the ``N'`` images with objects hold class c and ``K'`` classes have objects; without objects,
      once. Epochs stay as long.

    Crowd regions do not count.

    Args:
        index: the dataset.
        sampler: one of :data:`SAMPLERS`.
        threshold: of ``repeat_factor``; the share of images below which a class is rare.

    Returns:
        ``(N,)`` float64, or ``None`` for ``default``.

    Raises:
        ValueError: another word, or a threshold that is not positive.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"data.sampler={sampler} is not known: write {', '.join(SAMPLERS)}")
    if sampler == "default":
        return None
    image, label = _classes_of_images(index)
    num_holding = np.bincount(label, minlength=index.num_classes)
    if sampler == "repeat_factor":
        if not threshold > 0:
            raise ValueError(f"data.repeat_threshold={threshold} must be above 0, such as 0.001")
        shares = num_holding / len(index)
        factors = np.maximum(1.0, np.sqrt(threshold / np.maximum(shares, 1e-300)))
        repeats = np.ones(len(index))
        np.maximum.at(repeats, image, factors[label])
        return repeats
    num_with_objects = len(np.unique(image))
    num_classes = int((num_holding > 0).sum())
    per_class = num_with_objects / num_classes / np.maximum(num_holding, 1)
    repeats = np.bincount(image, weights=per_class[label], minlength=len(index))
    repeats[np.bincount(image, minlength=len(index)) == 0] = 1.0
    return repeats


def draw_repeats(repeats: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images of one epoch in random order, each with the expected number of its repeats.

    Systematic sampling: along the running sum of the repeats of the shuffled images stand equally
    spaced marks with a random start; an image comes as often as marks fall on it, so its number is
    its mean rounded down or up, and the epoch's length is always the same, which schedules and
    exact resuming need.

    Args:
        repeats: ``(N,)`` mean numbers.
        rng: all randomness comes from it.

    Returns:
        :func:`epoch_length` positions, int64.
    """
    length = epoch_length(repeats)
    order = rng.permutation(len(repeats))
    ends = np.cumsum(repeats[order])
    marks = (np.arange(length) + rng.random()) * (ends[-1] / length)
    chosen = order[np.minimum(np.searchsorted(ends, marks, side="right"), len(order) - 1)]
    return rng.permutation(chosen)


def epoch_length(repeats: np.ndarray) -> int:
    """Images of an epoch, repeated ones counted."""
    return max(1, round(float(repeats.sum())))


def _classes_of_images(index: AnnotationIndex) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of an image and a class that it holds: two arrays of positions and labels."""
    image = np.repeat(np.arange(len(index)), np.diff(index.annotation_offsets))
    pairs = np.unique(image[~index.crowd] * index.num_classes + index.labels[~index.crowd])
    return pairs // index.num_classes, pairs % index.num_classes
