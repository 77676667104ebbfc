"""ResNet trunks (He et al., 2015), built by torchvision, as detection backbones use them."""

from __future__ import annotations

from typing import Self

import torchvision
from torch import Tensor, nn

from detector.backbones.normalization import norm_layer
from detector.backbones.weights import load_backbone_weights

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class ResNet(nn.Module):
    """The stem and four residual stages; parameters keep torchvision's names.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        norm: see :func:`detector.backbones.normalization.norm_layer`.
        freeze_at: stages that stay as loaded: 0 none, 1 the stem, 2 the stem and ``layer1``
            (the papers' choice for ImageNet weights), up to 5.
        weights: file with an ImageNet state dict in torchvision's names (``.pth``, ``.pt`` or
            ``.safetensors``), or ``None`` for random weights.

    Raises:
        ValueError: unknown name, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        name: str = "resnet50",
        norm: str = "frozen_bn",
        freeze_at: int = 2,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if name not in DEPTHS:
            raise ValueError(f"backbone name={name!r} is not known; use one of {', '.join(DEPTHS)}")
        trunk = getattr(torchvision.models, name)(norm_layer=norm_layer(norm))
        self.conv1, self.bn1 = trunk.conv1, trunk.bn1
        self.relu, self.maxpool = trunk.relu, trunk.maxpool
        self.layer1, self.layer2 = trunk.layer1, trunk.layer2
        self.layer3, self.layer4 = trunk.layer3, trunk.layer4
        self.out_channels = tuple(trunk.fc.in_features // 2**down for down in (3, 2, 1, 0))
        if weights is not None:
            load_backbone_weights(self, weights)
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        stages = [
            [self.conv1, self.bn1],
            [self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(f"freeze_at={freeze_at} must be 0 (nothing) to {len(stages)} (all)")
        self._frozen = [module for stage in stages[:freeze_at] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; frozen stages stay in evaluation mode.

        Running statistics are no parameters: without this they would drift where weights are fixed.
        """
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to the outputs of layer1..layer4, strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features
