"""Samples as training sees them: augmented images with their targets, beside the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.sample import Sample
from detector.ops.polygons import rasterize_polygons
from detector.report.html import Html, document, section, tag
from detector.report.pictures import embed
from detector.structures import Batch
from detector.visualize import class_color, draw_instances

# Shown beside the image that a padded batch begins with; black is padding.
MASK_PIXELS = 84  # a side of a mask target on the page
MOST_MASKS = 12


@dataclass(frozen=True)
class Look:
    """One sample as the model gets it.

    Attributes:
        title: its epoch, sizes and number of objects.
        picture: ``(h, w, 3)`` uint8, the padded image with boxes, masks and keypoints.
        masks: ``(n, M, M)`` bool mask targets of the objects inside their boxes, or ``None``.
        labels: ``(n,)``.
    """

    title: str
    picture: np.ndarray
    masks: np.ndarray | None
    labels: np.ndarray


def look_at(
    dataset: DetectionDataset, image: int, epoch: int, collate: Collate, mask_size: int
) -> Look:
    """The sample of an image in an epoch, through the same augmentation and collation.

    Args:
        dataset: a split.
        image: position in it.
        epoch: of the training, from 0.
        collate: pads it and makes its targets.
        mask_size: M, of the mask targets.
    """
    sample = dataset[epoch, image]
    batch = collate([sample])
    pixels = np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy())
    height, width = sample.image.shape[:2]
    padded_height, padded_width = pixels.shape[:2]
    title = (
        f"epoch {epoch}: {width} x {height}, padded to {padded_width} x {padded_height}, "
        f"{len(sample)} object{'' if len(sample) == 1 else 's'}"
    )
    masks = mask_targets(batch, mask_size) if collate.with_masks else None
    return Look(title, _draw(dataset, sample, pixels), masks, sample.labels)


def mask_targets(batch: Batch, mask_size: int) -> np.ndarray:
    """The masks of a batch's one image inside their boxes, ``(n, M, M)`` bool."""
    targets = batch.targets
    places = targets.valid[0].nonzero()[:, 0]
    boxes = targets.boxes[0, places]
    images = torch.zeros_like(places)
    return rasterize_polygons(targets.polygons, boxes, images, places, mask_size).bool().numpy()


def browse_page(groups: list[tuple[str, np.ndarray | None, list[Look]]], names: list[str]) -> str:
    """The page as one HTML text.

    Args:
        groups: for each image its name, the file with its annotations, and looks at it.
        names: of the classes.
    """
    parts = []
    for name, original, looks in groups:
        cells = []
        if original is not None:
            caption = tag("figcaption", "the file")
            cells.append(tag("figure", caption, embed(original, f"{name}, the file")))
        cells += [_figure(name, look, names) for look in looks]
        parts += [tag("h3", name), tag("div", cells, class_="pictures")]
    return document(
        "What the model sees",
        section(
            "Samples",
            parts,
            lead="Each file with its annotations, then as training gets it: augmented, padded "
            "(black, right and below), with boxes, polygons and keypoints moved along. Below are "
            "the mask targets, each inside its box.",
        ),
    )


def _figure(name: str, look: Look, names: list[str]) -> Html:
    masks = None
    if look.masks is not None and len(look.masks):
        shown = zip(look.masks[:MOST_MASKS], look.labels[:MOST_MASKS], strict=True)
        masks = tag(
            "div", [_mask(mask, int(label), names) for mask, label in shown], class_="masks"
        )
    caption = tag("figcaption", look.title)
    return tag("figure", caption, embed(look.picture, f"{name}, {look.title}"), masks)


def _mask(mask: np.ndarray, label: int, names: list[str]) -> Html:
    color = np.array(class_color(label))
    # Whole cells, so that the target is seen as it is.
    zoom = max(1, MASK_PIXELS // len(mask))
    picture = np.where(mask[..., None], color, (color * 0.15)).astype(np.uint8)
    picture = picture.repeat(zoom, 0).repeat(zoom, 1)
    name = names[label]
    return tag("div", embed(picture, f"mask target of {name}"), tag("span", name))


def _draw(dataset: DetectionDataset, sample: Sample, pixels: np.ndarray) -> np.ndarray:
    index = dataset.index
    has_rings = len(sample.vertices) > 0
    return draw_instances(
        pixels,
        sample.boxes,
        sample.labels,
        [index.category_names[label] for label in sample.labels],
        rings=[sample.rings(place) for place in range(len(sample))] if has_rings else None,
        keypoints=sample.keypoints,
        skeleton=index.skeleton,
    )
