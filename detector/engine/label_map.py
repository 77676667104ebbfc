"""Detections in a dataset's labels, of a model that knows more classes than the dataset has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.structures import Detections

# Of a class that the dataset does not have.
ABSENT = -1


def label_map(class_names: Sequence[str], dataset_names: Sequence[str]) -> list[int] | None:
    """For each label of a model the dataset's label of the same name, or :data:`ABSENT`.

    torchvision's models have 90 classes, of which COCO uses 80.

    Args:
        class_names: of the model.
        dataset_names: of the dataset.

    Returns:
        ``None`` unless the model has all of the dataset's classes, each once, and others besides.
    """
    known = list(class_names)
    if len(known) <= len(dataset_names) or any(known.count(name) != 1 for name in dataset_names):
        return None
    place = {name: number for number, name in enumerate(dataset_names)}
    return [place.get(name, ABSENT) for name in known]


class Relabelled(nn.Module):
    """A detector whose detections have other labels; those of absent classes are dropped.

    Args:
        model: the detector.
        labels: of :func:`label_map`.
    """

    def __init__(self, model: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("labels", torch.tensor(labels), persistent=False)

    def detect(self, images: Tensor, image_sizes: Tensor, *rest: Any) -> Detections:
        """As the model's own; what is dropped leaves empty slots between the others."""
        found = self.model.detect(images, image_sizes, *rest)
        labels = self.labels[found.labels]
        valid = found.valid & (labels != ABSENT)
        labels = labels.masked_fill(~valid, 0)
        return dataclasses.replace(found, labels=labels, valid=valid)
