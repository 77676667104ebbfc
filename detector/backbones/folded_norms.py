"""Frozen batch norms as a part of the convolutions before them, for models that run in 16 bits.

A frozen norm is a scale and a shift for each channel. Scaling the convolution's weights, and taking
the shift for its bias, is the same up to rounding; it saves two passes over every map, forward and
backward, and under autocast the maps stay in 16 bits, which float32 scales would widen. In float32
it is not done: there the numbers are torchvision's to the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones.resnet import ResNet


def fold_norms(model: nn.Module) -> None:
    """Lets the residual stages in ``model`` fold their frozen norms, wherever they are.

    Stem, blocks and their convolutions get other classes, with nothing but another ``forward``:
    parameters, buffers and their names stay. Done twice it changes nothing more.
    """
    for module in model.modules():
        folding = _FOLDING.get(type(module))
        if folding is None or not isinstance(module.bn1, FrozenBatchNorm2d):
            continue
        module.__class__ = folding
        convs = [child for child in module.children() if type(child) is nn.Conv2d]
        if getattr(module, "downsample", None) is not None:
            convs.append(module.downsample[0])
        for conv in convs:
            conv.__class__ = NormedConv2d


class NormedConv2d(nn.Conv2d):
    """A convolution that is given the frozen norm after it."""

    def forward(self, x: Tensor, norm: FrozenBatchNorm2d) -> Tensor:
        """Both as one."""
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)


class FoldingResNet(ResNet):
    """Of which only the stem is folded here; the blocks do it themselves."""

    def stem(self, images: Tensor) -> Tensor:
        return self.relu(self.conv1(images, self.bn1))


class FoldingBottleneck(Bottleneck):
    """1x1, 3x3 and 1x1 convolution beside a shortcut (He et al., 2015, figure 5 right)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, 4 * width, H / stride, W / stride)``."""
        out = self.relu(self.conv1(x, self.bn1))
        out = self.relu(self.conv2(out, self.bn2))
        out = self.conv3(out, self.bn3)
        out += _shortcut(self, x)
        return self.relu(out)


class FoldingBasicBlock(BasicBlock):
    """Two 3x3 convolutions beside a shortcut (figure 5 left)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, width, H / stride, W / stride)``."""
        out = self.relu(self.conv1(x, self.bn1))
        out = self.conv2(out, self.bn2)
        out += _shortcut(self, x)
        return self.relu(out)


def _shortcut(block: nn.Module, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    conv, norm = block.downsample
    return conv(x, norm)


_FOLDING = {ResNet: FoldingResNet, Bottleneck: FoldingBottleneck, BasicBlock: FoldingBasicBlock}
