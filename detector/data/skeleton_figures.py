"""Figures of the synthetic skeletons: their joints, their poses and the parts they are drawn of.

All figures face the viewer, so what is left of a figure is right in the picture unless it stands on
its head. Colours say nothing about sides: only so is the mirror image of a figure a figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from detector.data.polygon_clipping import Region, ring_area

_PAIRED = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
JOINTS = ("head", *(f"{side}_{name}" for name in _PAIRED for side in ("left", "right")))
# Pairs of joints, from 0.
SKELETON = tuple(
    (JOINTS.index(one), JOINTS.index(other))
    for one, other in (
        ("head", "left_shoulder"), ("head", "right_shoulder"),
        ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"),
        ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
        ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"),
        ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"),
        ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
        ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
    )
)  # fmt: skip
# COCO's for joints of these names (https://cocodataset.org/#keypoints-eval); of a head's centre it
# has none, which is placed a little less exactly than its ears.
SIGMAS = (0.05, *(s for s in (0.079, 0.072, 0.062, 0.107, 0.087, 0.089) for _ in range(2)))

# Of a figure whose height is about one, y pointing down, the middle of the hips at the origin.
_SHOULDERS, _HIPS, _TORSO = 0.12, 0.075, 0.31
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.17, 0.17, 0.22, 0.22
_NECK, _HEAD = 0.14, 0.085  # from the shoulders to the head's centre; its radius
_LIMB = 0.036  # half the width of arms and legs
_CORNERS_OF_ARC = 6


@dataclass(frozen=True)
class Part:
    """A piece of a figure that is painted at once.

    Attributes:
        region: rings of one orientation, in pixels; they unite.
        colour: which of the figure's colours, see :data:`COLOURS`.
        joints: those that lie on it.
    """

    region: Region
    colour: int
    joints: tuple[int, ...]


# What has a colour of its own; the arm and the leg of a side share one.
COLOURS = ("left", "right", "torso", "head")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        joints: ``(J, 2)`` float64 in pixels, in the order of :data:`JOINTS`.
        parts: back to front.
    """

    joints: np.ndarray
    parts: tuple[Part, ...]


def draw_pose(rng: np.random.Generator) -> np.ndarray:
    """Joints ``(J, 2)`` of a random pose of a figure of height one about its hips."""
    joints = {"head": np.array([rng.uniform(-0.03, 0.03), -_TORSO - _NECK])}
    width = rng.uniform(0.9, 1.1)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        shoulder = np.array([sign * width * _SHOULDERS, -_TORSO])
        hip = np.array([sign * width * _HIPS, 0.0])
        # Angles are from straight down, outwards.
        arm = rng.uniform(8, 150)
        forearm = arm + rng.uniform(-110, 70)
        thigh = rng.uniform(-4, 50)
        shin = thigh + rng.uniform(-60, 12)
        elbow = shoulder + _limb(rng, sign, arm, _UPPER_ARM)
        knee = hip + _limb(rng, sign, thigh, _THIGH)
        joints |= {
            f"{side}_shoulder": shoulder,
            f"{side}_elbow": elbow,
            f"{side}_wrist": elbow + _limb(rng, sign, forearm, _FOREARM),
            f"{side}_hip": hip,
            f"{side}_knee": knee,
            f"{side}_ankle": knee + _limb(rng, sign, shin, _SHIN),
        }
    lean = np.radians(np.clip(rng.normal(0, 16), -40, 40))
    turn = np.array([(np.cos(lean), np.sin(lean)), (-np.sin(lean), np.cos(lean))])
    return np.stack([joints[name] for name in JOINTS]) @ turn


def _limb(rng: np.random.Generator, sign: float, angle: float, length: float) -> np.ndarray:
    """From one end of a limb to the other; a little foreshortened."""
    angle, length = np.radians(angle), length * rng.uniform(0.85, 1.0)
    return length * np.array([sign * np.sin(angle), np.cos(angle)])


def build_figure(rng: np.random.Generator, joints: np.ndarray, height: float) -> Figure:
    """The parts of a figure of ``height`` pixels with joints ``(J, 2)`` in pixels.

    Each arm lies in front of the torso or behind it.
    """
    place = dict(zip(JOINTS, joints, strict=True))
    limb = _LIMB * height

    def limbs(side: str, *names: str) -> Part:
        ends = [f"{side}_{name}" for name in names]
        region = [capsule(place[one], place[other], limb) for one, other in pairwise(ends)]
        return Part(region, COLOURS.index(side), tuple(map(JOINTS.index, ends)))

    sides = ["left", "right"] if rng.random() < 0.5 else ["right", "left"]
    legs = [limbs(side, "hip", "knee", "ankle") for side in sides]
    arms = [limbs(side, "shoulder", "elbow", "wrist") for side in sides]
    num_behind = int(rng.integers(3))
    trunk = ("left_shoulder", "right_shoulder", "right_hip", "left_hip")
    corners = np.stack([place[name] for name in trunk])
    middle = (place["left_shoulder"] + place["right_shoulder"]) / 2
    torso = Part(
        [_one_way_round(corners), capsule(middle, place["head"], limb)],
        COLOURS.index("torso"),
        tuple(map(JOINTS.index, trunk)),
    )
    head = Part(
        [capsule(place["head"], place["head"], _HEAD * height)],
        COLOURS.index("head"),
        (JOINTS.index("head"),),
    )
    return Figure(joints, (*legs, *arms[:num_behind], torso, head, *arms[num_behind:]))


def capsule(start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Ring of the points within ``radius`` of a line, its round ends made of corners."""
    run = end - start
    along = np.arctan2(run[1], run[0])
    arc = np.linspace(-np.pi / 2, np.pi / 2, _CORNERS_OF_ARC)
    angles = np.concatenate([along + arc, along + np.pi + arc])
    centres = np.repeat(np.stack([end, start]), _CORNERS_OF_ARC, axis=0)
    ring = centres + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _one_way_round(ring)


def _one_way_round(ring: np.ndarray) -> np.ndarray:
    return ring if ring_area(ring) > 0 else ring[::-1]
