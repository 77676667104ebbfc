"""The synthetic skeletons: a small keypoint dataset made on the spot, as ordinary COCO files."""

from __future__ import annotations

from detector.data.generated import GeneratedSet
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

# Gives the skeletons in a folder, drawn on first use: ``ensure_skeletons(root, num_train, ...)``.
ensure_skeletons = SKELETONS.ensure
