"""Scenes of the synthetic skeletons: figures among other things, in front of one another.

What is annotated is what is drawn: masks are the pixels that a figure has at least half of, joints
lie where the limbs meet, and a joint is hidden where something was painted over it later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.data.shape_painting import background, contrasting_colour, coverage, develop, paint
from detector.data.shape_scenes import CLASS_NAMES, class_outline, run_lengths
from detector.data.skeleton_figures import COLOURS, JOINTS, Figure, build_figure, capsule, draw_pose

_EMPTY_IMAGES = 0.03
_FIGURES = (0.34, 0.33, 0.21, 0.12)  # how often one, two, three, four
_TRUNCATED = 0.12  # of the figures: they may reach out of the image
_LEAST_VISIBLE = 0.75  # of a figure's pixels inside the image
_LEAST_JOINTS = 9  # of a figure's, that can be seen
_MOST_SHARED = 0.4  # of the smaller of two figures' boxes; in a heap, whose limb is whose?
_OCCLUDERS = 0.3  # of the images: something else lies in front


@dataclass
class Placed:
    """A figure in a picture.

    Attributes:
        figure: its joints and parts.
        alpha: ``(H, W)`` float64, how much of each pixel still shows it.
        area: pixels that it had inside the image before anything lay in front of it.
        hidden: ``(J,)`` bool, whether a joint was painted over.
    """

    figure: Figure
    alpha: np.ndarray
    area: float
    hidden: np.ndarray

    def behind(self, alpha: np.ndarray) -> Placed:
        """The same figure with something of coverage ``alpha`` in front of it."""
        hidden = self.hidden | (_values_at(alpha, self.figure.joints) > 0.5)
        return Placed(self.figure, self.alpha * (1 - alpha), self.area, hidden)

    @property
    def recognisable(self) -> bool:
        """Whether enough of it is to be seen."""
        num_visible = (self.visibility == 2).sum()
        return self.alpha.sum() >= _LEAST_VISIBLE * self.area and num_visible >= _LEAST_JOINTS

    @property
    def visibility(self) -> np.ndarray:
        """COCO's, ``(J,)`` int: 0 outside the image, 1 hidden, 2 visible."""
        inside = _inside(self.figure.joints, len(self.alpha))
        return np.where(inside, np.where(self.hidden, 1, 2), 0)


@dataclass
class SkeletonScene:
    """One image and what it shows.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        figures: back to front.
    """

    image: np.ndarray
    figures: list[Placed]

    def annotations(self) -> list[dict]:
        """COCO annotations without ids. Coordinates of keypoints are indices of pixels."""
        records = []
        for placed in self.figures:
            mask = placed.alpha >= 0.5
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = int(columns[0]), int(rows[0])
            visibility = placed.visibility
            keypoints = np.where(
                visibility[:, None] > 0, np.round(placed.figure.joints - 0.5, 2), 0.0
            )
            records.append(
                {
                    "category_id": 1,
                    "segmentation": {"counts": run_lengths(mask), "size": list(mask.shape)},
                    "area": int(mask.sum()),
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                    "iscrowd": 0,
                    "keypoints": [
                        value
                        for (px, py), v in zip(keypoints.tolist(), visibility.tolist(), strict=True)
                        for value in (px, py, v)
                    ],
                    "num_keypoints": int((visibility > 0).sum()),
                }
            )
        return records


def make_skeleton_scene(rng: np.random.Generator, image_size: int = 128) -> SkeletonScene:
    """Draws one scene; the same generator state gives the same scene, bit for bit."""
    picture, background_colour = background(rng, image_size)
    for _ in range(int(rng.integers(4))):
        _paint_distractor(rng, picture, background_colour, _distractor(rng, image_size))
    num_figures = 0
    if rng.random() >= _EMPTY_IMAGES:
        num_figures = 1 + int(rng.choice(len(_FIGURES), p=_FIGURES))

    figures: list[Placed] = []
    for _ in range(num_figures):
        for _ in range(30):
            figure = _random_figure(rng, num_figures, image_size)
            if any(_shared(figure, placed.figure) > _MOST_SHARED for placed in figures):
                continue
            new, alphas = _place(figure, image_size)
            behind = [placed.behind(new.alpha) for placed in figures]
            if new.recognisable and all(placed.recognisable for placed in behind):
                figures = [*behind, new]
                _paint_figure(rng, picture, background_colour, figure, alphas)
                break

    if rng.random() < _OCCLUDERS:
        alpha = _distractor(rng, image_size)
        behind = [placed.behind(alpha) for placed in figures]
        if all(placed.recognisable for placed in behind):
            figures = behind
            _paint_distractor(rng, picture, background_colour, alpha)
    return SkeletonScene(develop(rng, picture), figures)


def _random_figure(rng: np.random.Generator, num_figures: int, image_size: int) -> Figure:
    largest = (0.85, 0.72, 0.62, 0.55)[num_figures - 1]
    height = image_size * np.exp(rng.uniform(np.log(0.36), np.log(largest)))
    joints = height * draw_pose(rng)
    low, high = joints.min(axis=0), joints.max(axis=0)
    margin = -0.3 * height if rng.random() < _TRUNCATED else 0.09 * height
    free = np.maximum(image_size - 2 * margin - (high - low), 0)
    joints = joints - low + margin + rng.uniform(size=2) * free
    return build_figure(rng, joints, height)


def _place(figure: Figure, image_size: int) -> tuple[Placed, list[np.ndarray]]:
    """A figure in front of everything, and the coverage of each of its parts."""
    alphas = [coverage(part.region, image_size) for part in figure.parts]
    hidden = np.zeros(len(JOINTS), dtype=bool)
    for part, alpha in zip(figure.parts, alphas, strict=True):
        hidden |= _values_at(alpha, figure.joints) > 0.5
        hidden[list(part.joints)] = False  # they lie on it, in front of what came before
    alpha = np.max(alphas, axis=0)
    return Placed(figure, alpha, float(alpha.sum()), hidden), alphas


def _shared(one: Figure, other: Figure) -> float:
    """The area that the boxes around two figures' joints share, of the smaller box."""
    low = np.maximum(one.joints.min(axis=0), other.joints.min(axis=0))
    high = np.minimum(one.joints.max(axis=0), other.joints.max(axis=0))
    areas = [np.prod(np.ptp(figure.joints, axis=0)) for figure in (one, other)]
    return float(np.prod(np.maximum(high - low, 0)) / min(areas))


def _paint_figure(
    rng: np.random.Generator,
    picture: np.ndarray,
    background_colour: np.ndarray,
    figure: Figure,
    alphas: list[np.ndarray],
) -> None:
    colours = [background_colour]
    for _ in COLOURS:
        colours.append(contrasting_colour(rng, colours))
    for part, alpha in zip(figure.parts, alphas, strict=True):
        if alpha.any():
            paint(rng, picture, alpha, colours[1 + part.colour])


def _distractor(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Coverage ``(H, W)`` of a bar like a limb, or of one of the synthetic shapes."""
    centre = rng.uniform(0.05, 0.95, 2) * image_size
    if rng.random() < 0.4:
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.1, 0.3) * image_size
        half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
        outline = capsule(centre - half, centre + half, rng.uniform(1.5, 4))
    else:
        label = int(rng.integers(len(CLASS_NAMES)))
        outline = class_outline(rng, label, rng.uniform(0.06, 0.2) * image_size) + centre
    return coverage([outline], image_size)


def _paint_distractor(
    rng: np.random.Generator, picture: np.ndarray, background_colour: np.ndarray, alpha: np.ndarray
) -> None:
    paint(rng, picture, alpha, contrasting_colour(rng, [background_colour]))


def _inside(points: np.ndarray, image_size: int) -> np.ndarray:
    return ((points >= 0) & (points < image_size)).all(axis=1)


def _values_at(alpha: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values ``(J,)`` of the pixels that points ``(J, 2)`` lie in, 0 outside the image."""
    columns, rows = np.clip(points.astype(np.int64), 0, len(alpha) - 1).T
    return np.where(_inside(points, len(alpha)), alpha[rows, columns], 0.0)
