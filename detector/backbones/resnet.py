"""ResNet and ResNeXt trunks (He et al., 2015; Xie et al., 2016), built by torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from detector.backbones.freezing import FreezableTrunk, check_increasing
from detector.backbones.normalization import norm_layer
from detector.backbones.weights import load_backbone_weights

NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)


class ResNet(FreezableTrunk):
    """The stem and up to four residual stages; parameters keep torchvision's names.

    Stages have the numbers of the papers: 1 is the stem, 2 to 5 are res2..res5 with the maps
    C2..C5, which torchvision calls ``layer1`` to ``layer4``.

    Args:
        name: one of :data:`NAMES`.
        norm: see :func:`detector.backbones.normalization.norm_layer`.
        freeze_at: stages that stay as loaded: 0 none, 1 the stem, 2 the stem and res2 (the papers'
            choice for ImageNet weights), up to the last.
        weights: file with an ImageNet state dict in torchvision's names (``.pth``, ``.pt`` or
            ``.safetensors``), or ``None`` for random weights.
        outputs: stages whose maps it gives. The module ends with the last of them: what lies
            behind would never get a gradient.
        res5_dilation: 2 gives C5 the stride of C4 (DC5): res5 does not stride, and all its 3x3
            convolutions are dilated, the first one too, as in R-FCN and Detectron2 (torchvision's
            ``replace_stride_with_dilation`` leaves that one as it is).
        stride_in_1x1: the blocks that halve the map do so in their first 1x1 convolution, as in the
            paper's own networks and Detectron2's, instead of in the 3x3 one, as in torchvision's.
            Weights are trained for the one or the other.
        norm_eps: added to the norms' variances; ``None`` is PyTorch's 1e-5.

    Raises:
        ValueError: unknown name or impossible stages, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    def __init__(
        self,
        name: str = "resnet50",
        norm: str = "frozen_bn",
        freeze_at: int = 2,
        weights: str | None = None,
        outputs: Sequence[int] = (2, 3, 4, 5),
        res5_dilation: int = 1,
        stride_in_1x1: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"backbone name={name!r} is not known; use one of {', '.join(NAMES)}")
        self.outputs = check_increasing("outputs", outputs, range(2, 6))
        last = self.outputs[-1]
        if res5_dilation not in (1, 2):
            raise ValueError(f"res5_dilation={res5_dilation} must be 1 or 2 (DC5)")
        if res5_dilation == 2 and last < 5:
            raise ValueError(f"res5_dilation=2, but the trunk ends with res{last}; use 1")
        trunk = getattr(torchvision.models, name)(norm_layer=norm_layer(norm, norm_eps))
        self.conv1, self.bn1 = trunk.conv1, trunk.bn1
        self.relu, self.maxpool = trunk.relu, trunk.maxpool
        for stage in range(2, last + 1):
            layer = _layer(stage)
            self.add_module(layer, getattr(trunk, layer))
        self.stride_in_1x1 = stride_in_1x1
        if stride_in_1x1:
            move_stride(name, self)
        if res5_dilation == 2:
            _dilate(self.layer4)
        self.strides = tuple(
            2**stage // (res5_dilation if stage == 5 else 1) for stage in self.outputs
        )
        self.out_channels = tuple(trunk.fc.in_features // 2 ** (5 - n) for n in self.outputs)
        if weights is not None:
            absent = [f"{_layer(stage)}." for stage in range(last + 1, 6)]
            load_backbone_weights(self, weights, ignore=absent)
        residual = [[getattr(self, _layer(stage))] for stage in range(2, last + 1)]
        self.freeze([[self.conv1, self.bn1], *residual], freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to the maps of ``outputs``, each ``(B, C, H / stride, W / stride)``.

        Sides are rounded up.
        """
        x = self.maxpool(self.stem(images))
        features = []
        for stage in range(2, self.outputs[-1] + 1):
            x = getattr(self, _layer(stage))(x)
            if stage in self.outputs:
                features.append(x)
        return features

    def stem(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, 64, H / 2, W / 2)``."""
        return self.relu(self.bn1(self.conv1(images)))


def _layer(stage: int) -> str:
    """torchvision's name of a residual stage."""
    return f"layer{stage - 1}"


def move_stride(name: str, stages: nn.Module) -> None:
    """Moves the stride of the blocks in ``stages`` from their 3x3 to their first 1x1 convolution.

    Raises:
        ValueError: blocks of ``name`` have no 1x1 convolution in their main path.
    """
    for block in stages.modules():
        if isinstance(block, BasicBlock):
            raise ValueError(
                f"stride_in_1x1=true, but the blocks of {name} are two 3x3 convolutions; use false"
            )
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _dilate(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)
