"""Object keypoint similarity: what COCO compares keypoints by, in place of IoU.

https://cocodataset.org/#keypoints-eval: the mean over an object's labelled keypoints of
exp(-d^2 / (2 s^2 k^2)), where d is the distance, s^2 the object's area, and k twice the sigma of
the keypoint: how exactly people agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

# Of every image and class; COCO evaluates people.
MAX_DETECTIONS = 20
NUMBERS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")

_PAIRED = {
    "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107,
    "knee": 0.087, "ankle": 0.089,
}  # fmt: skip
COCO_SIGMAS = {"nose": 0.026} | {
    f"{side}_{part}": sigma for part, sigma in _PAIRED.items() for side in ("left", "right")
}


def oks_sigmas(index: AnnotationIndex) -> list[float]:
    """J sigmas: those of the dataset, or COCO's for keypoints of COCO's names.

    Raises:
        ValueError: the dataset gives none, and has keypoints that COCO does not know.
    """
    if index.keypoint_sigmas is not None:
        return list(index.keypoint_sigmas)
    unknown = [name for name in index.keypoint_names if name not in COCO_SIGMAS]
    if unknown:
        raise ValueError(
            f"{index.source_file}: keypoints are evaluated relative to how exactly people agree on "
            f"each, which is not known of {', '.join(unknown[:5])}. Add to the category "
            f'"keypoint_sigmas": [...], {index.num_keypoints} numbers, such as 0.05 where COCO has '
            "0.025 for eyes and 0.107 for hips"
        )
    return [COCO_SIGMAS[name] for name in index.keypoint_names]


def ten_numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's ten numbers of keypoints, as ``COCOeval.summarize`` gives them.

    Args:
        precision: ``(T, R, K, 3, 1)`` of ``COCOeval.eval``: OKS thresholds .50:.05:.95, recalls,
            classes, areas (all, medium, large), 20 detections.
        recall: ``(T, K, 3, 1)`` likewise.

    Returns:
        By the names :data:`NUMBERS`; -1 where undefined.
    """
    found = {}
    for kind, values in (("AP", precision), ("AR", recall)):
        everywhere, medium, large = (values[..., area, 0] for area in range(3))
        found |= {
            kind: _mean_defined(everywhere),
            f"{kind}50": _mean_defined(everywhere[0]),
            f"{kind}75": _mean_defined(everywhere[5]),
            f"{kind}m": _mean_defined(medium),
            f"{kind}l": _mean_defined(large),
        }
    return found


def keypoint_fields(annotation: dict[str, Any], num_keypoints: int) -> dict[str, Any]:
    """What pycocotools reads of an annotation's keypoints; of none, J that are not labelled.

    An object without labelled keypoints is neither to be found nor wrong.
    """
    keypoints: Sequence[float] = annotation.get("keypoints") or [0] * (3 * num_keypoints)
    labelled = sum(visibility > 0 for visibility in keypoints[2::3])
    return {"keypoints": keypoints, "num_keypoints": labelled}


def keypoint_areas(keypoints: np.ndarray) -> np.ndarray:
    """Of the rectangle around a detection's keypoints, by which COCO calls it medium or large.

    Args:
        keypoints: ``(n, 3 J)`` as COCO's results have them.

    Returns:
        ``(n,)``.
    """
    return np.ptp(keypoints[:, 0::3], axis=1) * np.ptp(keypoints[:, 1::3], axis=1)


def _mean_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
