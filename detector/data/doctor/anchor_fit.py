"""Which objects the configured anchors can match, and which anchors match none.

Of an anchor's copies in all cells the one nearest to an object's centre overlaps it most, across
and down independently, so the best IoU is found without laying out the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from detector.data.dataset import DetectionDataset
from detector.data.doctor.findings import Finding, Record
from detector.data.doctor.statistics import ASPECT_EDGES, SIZE_EDGES
from detector.data.sample import Sample

# Images looked at: enough for shares of a percent.
MOST_IMAGES = 4000
# From this share of objects out of reach on it is a finding; from the second on a warning.
WORTH_SAYING, MUCH = 0.01, 0.05
CHUNK = 20_000
TRIED_OBJECTS = 3000


@dataclass(frozen=True)
class AnchorTable:
    """The anchors of a model.

    Attributes:
        base: ``(L, A, 4)`` of each level, relative to its first cell's corner.
        strides: L pixels per cell.
        offset: where in its cell an anchor is centred.
        sizes: the configured ones by level, or one list for all.
        aspect_ratios: the configured ones, heights divided by widths.
        positive_iou, negative_iou: from the one on an anchor is foreground, below the other
            background.
        border: pixels by which a trained anchor may cross the image's border, ``None`` any.
    """

    base: np.ndarray
    strides: tuple[int, ...]
    offset: float
    sizes: list[list[float]]
    aspect_ratios: list[float]
    positive_iou: float
    negative_iou: float
    border: float | None


@dataclass(frozen=True)
class AnchorFit:
    """How n objects, as augmentation leaves them, meet the anchors.

    Attributes:
        num_images: looked at.
        boxes: ``(n, 4)`` in pixels of the network's input.
        labels: ``(n,)``.
        best: ``(n,)`` the highest IoU that any anchor has with each object.
        grid: by size and aspect, ``(sizes, aspects)``: the mean of ``best``, NaN without objects.
        grid_counts: likewise, how many.
        anchors: one row for each anchor: size, aspect ratio, stride, for how many objects it is
            the best one, with how many it has a positive IoU.
    """

    num_images: int
    boxes: np.ndarray
    labels: np.ndarray
    best: np.ndarray
    grid: np.ndarray
    grid_counts: np.ndarray
    anchors: list[tuple[float, float, int, int, int]]


class _Blanks:
    """The samples of a dataset without their pixels, which do not matter here."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, image: int) -> Sample:
        # Zeros take no memory until they are written.
        index = self.dataset.index
        blank = np.zeros((int(index.heights[image]), int(index.widths[image]), 3), np.uint8)
        return self.dataset.sample_of(image, blank)


def fit_anchors(
    dataset: DetectionDataset,
    table: AnchorTable,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> AnchorFit:
    """Compares the objects of a split, augmented as in its first epoch, with the anchors."""
    index = dataset.index
    images = np.unique(np.linspace(0, len(index) - 1, min(len(index), MOST_IMAGES)).astype(int))
    steps: Iterable = images.tolist()
    steps = steps if progress is None else progress(steps, len(images))
    boxes, labels, sizes = [], [], []
    blanks = _Blanks(dataset)
    for image in steps:
        rng = np.random.Generator(np.random.PCG64([dataset.seed, 0, image]))
        sample = dataset.augmentation(blanks.read(image), rng, blanks)
        boxes.append(sample.boxes)
        labels.append(sample.labels)
        sizes.append(np.tile(sample.image.shape[:2], (len(sample), 1)))
    boxes = np.concatenate(boxes).astype(np.float64)
    sizes = np.concatenate(sizes).reshape(-1, 2)
    overlaps = best_ious(boxes, sizes, table)
    best = overlaps.max(1, initial=0.0)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    size_bin = np.searchsorted(SIZE_EDGES, np.sqrt(width * height), side="right")
    aspect_bin = np.searchsorted(ASPECT_EDGES, height / width, side="right")
    shape = len(SIZE_EDGES) + 1, len(ASPECT_EDGES) + 1
    counts, sums = np.zeros(shape, np.int64), np.zeros(shape)
    np.add.at(counts, (size_bin, aspect_bin), 1)
    np.add.at(sums, (size_bin, aspect_bin), best)
    with np.errstate(invalid="ignore"):
        grid = sums / np.where(counts, counts, np.nan)
    return AnchorFit(
        len(images), boxes, np.concatenate(labels), best, grid, counts, _rows(table, overlaps)
    )


def best_ious(boxes: np.ndarray, sizes: np.ndarray, table: AnchorTable) -> np.ndarray:
    """The highest IoU of each object with each anchor in any cell, ``(n, L * A)`` float32.

    Args:
        boxes: ``(n, 4)`` float64 ``(x1, y1, x2, y2)``.
        sizes: ``(n, 2)`` ``(height, width)`` of each one's image, which the cells cover.
        table: the anchors.
    """
    levels, per_level = table.base.shape[:2]
    result = np.zeros((len(boxes), levels * per_level), np.float32)
    for start in range(0, len(boxes), CHUNK):
        part = slice(start, start + CHUNK)
        for level, stride in enumerate(table.strides):
            place = slice(level * per_level, (level + 1) * per_level)
            result[part, place] = _level_ious(boxes[part], sizes[part], table, level, stride)
    return result


def _level_ious(
    boxes: np.ndarray, sizes: np.ndarray, table: AnchorTable, level: int, stride: int
) -> np.ndarray:
    base = table.base[level]
    common = np.ones((len(boxes), len(base)))
    for axis in (0, 1):  # x, y
        low, high = base[:, axis], base[:, axis + 2]
        side = sizes[:, 1 - axis, None]
        first, last = np.zeros((1, 1)), np.ceil(side / stride) - 1
        if table.border is not None and math.isfinite(table.border):
            first = np.ceil((-table.border - low)[None] / stride - table.offset)
            first = np.maximum(first, 0)
            fitting = np.floor((side + table.border - high[None]) / stride - table.offset)
            last = np.minimum(last, fitting)
        centre = (boxes[:, axis] + boxes[:, axis + 2])[:, None] / 2
        cell = np.round((centre - (low + high)[None] / 2) / stride - table.offset)
        cell = np.minimum(np.maximum(cell, first), last)
        moved = (cell + table.offset) * stride
        inner_low = np.maximum(boxes[:, axis, None], low[None] + moved)
        inner_high = np.minimum(boxes[:, axis + 2, None], high[None] + moved)
        common *= (inner_high - inner_low).clip(0) * (last >= first)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    return common / (areas + (base[:, 2:] - base[:, :2]).prod(1)[None] - common)


def check_anchors(
    split: str, fit: AnchorFit, table: AnchorTable, class_names: Sequence[str]
) -> list[Finding]:
    """Objects out of the anchors' reach, and anchors without objects."""
    return [*_out_of_reach(split, fit, table, class_names), *_unused(split, fit, table)]


def scaled(table: AnchorTable, factor: float, ratios: Sequence[float]) -> AnchorTable:
    """Anchors of other sizes and aspect ratios, around the cells' corners or middles."""
    sizes = [[max(4, round(size * factor)) for size in level] for level in table.sizes]
    levels = sizes if len(sizes) == len(table.strides) else sizes * len(table.strides)
    base = np.array(
        [
            [
                (-w / 2, -h / 2, w / 2, h / 2)
                for size in level
                for ratio in ratios
                for w, h in [(size / math.sqrt(ratio), size * math.sqrt(ratio))]
            ]
            for level in levels
        ]
    )
    return AnchorTable(
        base, table.strides, table.offset, sizes, list(ratios),
        table.positive_iou, table.negative_iou, table.border,
    )  # fmt: skip


def _rows(table: AnchorTable, overlaps: np.ndarray) -> list[tuple[float, float, int, int, int]]:
    levels, per_level = table.base.shape[:2]
    best = np.bincount(overlaps.argmax(1), minlength=levels * per_level) if len(overlaps) else []
    rows = []
    for place in range(levels * per_level):
        level, anchor = divmod(place, per_level)
        x1, y1, x2, y2 = table.base[level, anchor]
        positive = int((overlaps[:, place] >= table.positive_iou).sum())
        rows.append(
            (
                float(math.sqrt((x2 - x1) * (y2 - y1))),
                float((y2 - y1) / (x2 - x1)),
                table.strides[level],
                int(best[place]) if len(overlaps) else 0,
                positive,
            )
        )
    return rows


def _out_of_reach(
    split: str, fit: AnchorFit, table: AnchorTable, class_names: Sequence[str]
) -> list[Finding]:
    beyond = fit.best < table.negative_iou
    if not len(beyond) or beyond.mean() < WORTH_SAYING:
        return []
    records = []
    for label in np.unique(fit.labels[beyond]):
        own = fit.labels == label
        lost = fit.boxes[own & beyond]
        width, height = np.median(lost[:, 2:] - lost[:, :2], axis=0)
        records.append(
            Record(
                f'{split}: "{class_names[label]}"',
                f"{len(lost)} of {own.sum()} objects have no anchor with an IoU of "
                f"{table.negative_iou:g}; in the middle they are {width:.0f} x {height:.0f} pixels "
                "at the network's input",
            )
        )
    return [
        Finding(
            "object_out_of_reach",
            "warning" if beyond.mean() >= MUCH else "note",
            f"{beyond.mean():.1%} of the objects are out of the anchors' reach",
            f"No anchor overlaps them by {table.negative_iou:g}: each is taught by its one best "
            "anchor only, whose box it must change most, and much of them is never proposed.",
            _suggestion(fit, table, float(beyond.mean())),
            records,
        )
    ]


def _suggestion(fit: AnchorFit, table: AnchorTable, share: float) -> str:
    """Sizes and aspect ratios that reach more, the least different that reach nearly all."""
    step = max(1, len(fit.boxes) // TRIED_OBJECTS)
    boxes = fit.boxes[::step]
    sizes = np.full((len(boxes), 2), 1 << 20)  # cells wherever an object is
    ratio_sets = [table.aspect_ratios]
    for wider in ([1 / 3, 0.5, 1.0, 2.0, 3.0], [0.2, 0.5, 1.0, 2.0, 5.0]):
        if len(table.aspect_ratios) < len(wider):
            ratio_sets.append(wider)
    tried = []
    for order, ratios in enumerate(ratio_sets):
        for exponent in (0, -1, 1, -2, 2, -3, -4, -5, -6):
            other = scaled(table, 2 ** (exponent / 2), ratios)
            best = best_ious(boxes, sizes, other).max(1)
            lost = float((best < table.negative_iou).mean())
            # Within half a percent the simpler one is taken.
            tried.append((round(max(lost, 0.005) / 0.005), order, abs(exponent), lost, other))
    *_, lost, other = min(tried, key=lambda entry: entry[:3])
    if lost > 0.7 * share:
        return "Enlarge the images (augment.train), or cut them into tiles."
    words = []
    if other.sizes != table.sizes:
        words.append(f"model.rpn.anchors.sizes={_listed(other.sizes)}")
    if other.aspect_ratios != table.aspect_ratios:
        count = len(other.aspect_ratios) * len(other.sizes[0])
        words.append(f"model.rpn.anchors.aspect_ratios={_listed(other.aspect_ratios)}")
        words.append(f"model.rpn.head.num_anchors={count}")
    return f"{' '.join(words)} leaves {lost:.1%} out of reach; or enlarge the images."


def _unused(split: str, fit: AnchorFit, table: AnchorTable) -> list[Finding]:
    idle = [row for row in fit.anchors if not row[3] and not row[4]]
    if not idle or not len(fit.boxes):
        return []
    return [
        Finding(
            "anchor_never_matches",
            "note",
            f"{len(idle)} of {len(fit.anchors)} anchors match no object",
            f"They are no object's best anchor and have no IoU of {table.positive_iou:g} with any: "
            "they learn background only and cost time.",
            "No harm in a few. Where whole sizes are idle, scale model.rpn.anchors.sizes to the "
            "objects.",
            [
                Record(
                    f"{split}: {size:.0f} pixels, height/width {ratio:.2g}",
                    f"at stride {stride}: matches none of {len(fit.boxes)} objects",
                )
                for size, ratio, stride, _, _ in idle
            ],
        )
    ]


def _listed(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(_listed(each) for each in value)}]"
    return f"{value:.3g}"
