"""Simple Copy-Paste: objects of one image pasted onto another (Ghiasi et al., CVPR 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from detector.data import regions
from detector.data.bitmaps import cover
from detector.data.mixing import GREY, ImageMix, check_size, cut_to, joined, with_objects
from detector.data.sample import Sample, select_rings


class SimpleCopyPaste(ImageMix):
    """Pastes a random number of the partner's objects where they are, and hides what they cover.

    Both images have been jittered and mirrored by the transforms before, which is all the variety
    that the paper asks for (section 3). Masks of objects behind lose what is covered, and their
    boxes shrink to the rest; of those whose box moved by more than ``max_box_shift``, masks of
    ``min_area`` and less are dropped: both numbers are those of the authors' code. Keypoints under
    a pasted object are hidden (COCO's visibility 1). Crowd regions are never in samples, so they
    are neither pasted nor cut.

    Args:
        size: ``[height, width]``, or a square's side, of the picture that both images lie in, top
            left, as the paper's 1024: a small image gets objects beside it too. ``None``: the
            sample's own size, beyond which nothing is pasted.
        blur: standard deviation in pixels of a Gaussian that blends the objects' outlines; 0 copies
            pixels as they are, which the paper found to be as good.
        max_box_shift: pixels.
        min_area: square pixels.
        fill: RGB beside the image; about what models subtract.
        p: how often to apply it.

    Raises:
        ValueError: a number that is negative, or a size that is none.
    """

    num_partners = 1
    needs_masks = True

    def __init__(
        self,
        size: Sequence[int] | int | None = None,
        blur: float = 0.0,
        max_box_shift: float = 10.0,
        min_area: float = 300.0,
        fill: Sequence[int] = GREY,
        p: float = 1.0,
    ):
        super().__init__(p)
        self.size = check_size(self, size)
        self.blur = blur
        self.max_box_shift = max_box_shift
        self.min_area = min_area
        self.fill = tuple(fill)
        for name in ("blur", "max_box_shift", "min_area"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"SimpleCopyPaste: {name}={getattr(self, name)}; it must be 0 or more"
                )

    def __call__(
        self, sample: Sample, partners: Sequence[Sample], rng: np.random.Generator
    ) -> Sample:
        """``sample`` with some objects of its one partner, which come last."""
        (partner,) = partners
        behind = self._on_canvas(sample)
        height, width = behind.image.shape[:2]
        count = int(rng.integers(len(partner) + 1))
        chosen = np.sort(rng.choice(len(partner), count, replace=False))
        rows, columns = partner.image.shape[:2]
        pasted = cut_to(_chosen(partner, chosen), 0, 0, min(columns, width), min(rows, height))
        # Wound around once, so that the winding numbers of several are those of their union.
        masks = [regions.union(pasted.rings(place)) for place in range(len(pasted))]
        there = np.array([bool(mask) for mask in masks], bool)
        pasted = with_objects(pasted, pasted.boxes, masks, pasted.keypoints, there)
        if len(pasted) == 0:
            return behind
        covered = cover(pasted.vertices, pasted.vertex_offsets, height, width)
        image = self._blend(behind.image, partner.image, covered)
        return joined(image, [self._occluded(behind, pasted, covered), pasted])

    def _on_canvas(self, sample: Sample) -> Sample:
        """The sample on a picture of this size, its objects cut where its image ends."""
        height, width = self.size or sample.image.shape[:2]
        rows, columns = (
            min(a, b) for a, b in zip(sample.image.shape, (height, width), strict=False)
        )
        image = sample.image[:rows, :columns]
        below, right = height - rows, width - columns
        if below or right:
            image = cv2.copyMakeBorder(
                image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=self.fill
            )
        return dataclasses.replace(cut_to(sample, 0, 0, columns, rows), image=image)

    def _blend(self, image: np.ndarray, source: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """``image`` with the covered pixels of ``source``, both from the top left corner."""
        rows, columns = np.minimum(image.shape[:2], source.shape[:2])
        result = image.copy()
        target, source, covered = (part[:rows, :columns] for part in (result, source, covered))
        if self.blur == 0:
            cv2.copyTo(source, covered.view(np.uint8), target)  # as np.copyto, ten times as fast
            return result
        share = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), self.blur)[..., None]
        target[:] = np.rint(target + share * (source - target.astype(np.float32)))
        return result

    def _occluded(self, behind: Sample, pasted: Sample, covered: np.ndarray) -> Sample:
        """What the pasted objects leave visible of the objects behind them."""
        fronts = [pasted.rings(place) for place in range(len(pasted))]
        paths = [regions.to_paths(rings) for rings in fronts]
        fences = np.array([regions.extent(rings) for rings in fronts])
        boxes = behind.boxes.copy()
        keep = np.ones(len(behind), bool)
        masks = []
        for place in range(len(behind)):
            rings = behind.rings(place)
            fence = regions.extent(rings)
            near = (fences[:, :2] < fence[2:]) & (fences[:, 2:] > fence[:2])
            over = [path for other in np.flatnonzero(near.all(axis=1)) for path in paths[other]]
            if over and regions.intersection(rings, over):
                rings = regions.difference(rings, over)
                boxes[place] = regions.extent(rings) if rings else 0
                shift = np.abs(boxes[place] - behind.boxes[place]).max()
                keep[place] = shift <= self.max_box_shift or regions.area(rings) > self.min_area
            masks.append(rings)
        return with_objects(behind, boxes, masks, _hidden(behind.keypoints, covered), keep)


def _chosen(sample: Sample, keep: np.ndarray) -> Sample:
    """The objects at positions ``keep``, ``(k,)``."""
    ring_offsets, vertex_offsets, vertices = select_rings(
        sample.ring_offsets, sample.vertex_offsets, sample.vertices, keep
    )
    return dataclasses.replace(
        sample,
        boxes=sample.boxes[keep],
        labels=sample.labels[keep],
        ring_offsets=ring_offsets,
        vertex_offsets=vertex_offsets,
        vertices=vertices,
        keypoints=None if sample.keypoints is None else sample.keypoints[keep],
    )


def _hidden(keypoints: np.ndarray | None, covered: np.ndarray) -> np.ndarray | None:
    """Keypoints ``(n, J, 3)``, those in covered pixels no longer visible."""
    if keypoints is None:
        return None
    limit = np.array(covered.shape[::-1]) - 1
    columns, rows = np.moveaxis(np.clip(keypoints[..., :2].astype(np.int64), 0, limit), 2, 0)
    visibility = keypoints[..., 2]
    visibility = np.where(covered[rows, columns], np.minimum(visibility, 1), visibility)
    return np.concatenate([keypoints[..., :2], visibility[..., None]], axis=2)
