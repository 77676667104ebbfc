"""The fully connected layers of VGG16 and ZF as the box head (Fast R-CNN, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.weights import load_part_weights

# torchvision's places in the classifier, or Caffe's names, and ours.
PRETRAINED = {"classifier.0.": "fc6.", "classifier.3.": "fc7.", "fc6.": "fc6.", "fc7.": "fc7."}


class VGGHead(nn.Module):
    """fc6 and fc7, each with ReLU and dropout.

    Args:
        in_channels: C of the features: 512 of VGG16, 256 of ZF.
        pooled_size: side of the pooled square, 7 with VGG16 and 6 with ZF, or the sides of a
            spatial pyramid's grids.
        width: outputs of each layer.
        dropout: probability that an output is dropped in training.
        weights: file of ImageNet weights, the trunk's own: torchvision's ``vgg16`` (its
            ``classifier.0`` and ``classifier.3``), or one that has ``fc6`` and ``fc7``. ``None``
            for random weights.

    Raises:
        ValueError: an impossible ``dropout``, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    def __init__(
        self,
        in_channels: int = 512,
        pooled_size: int | Sequence[int] = 7,
        width: int = 4096,
        dropout: float = 0.5,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        sides = (pooled_size,) if isinstance(pooled_size, int) else pooled_size
        self.num_bins = sum(side**2 for side in sides)
        self.fc6 = nn.Linear(in_channels * self.num_bins, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout
        self.out_channels = width
        for layer in (self.fc6, self.fc7):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        if weights is not None:
            load_part_weights(self, weights, PRETRAINED)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S, S)``, or what a pyramid gives, ``(N, C * bins)``, to ``(N, width)``."""
        x = pooled.flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x
