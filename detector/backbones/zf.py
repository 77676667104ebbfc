"""The network of Zeiler and Fergus (2013), in the form that SPPnet and Faster R-CNN used."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.freezing import FreezableTrunk
from detector.backbones.vgg import HEAD
from detector.backbones.weights import load_backbone_weights


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a window of the same channel, as this network has it.

    ``x * (1 + alpha * mean)**-beta``, where ``mean`` is that of the squares in the window; cells
    beyond the border count as zeros. (``nn.LocalResponseNorm`` sums over neighbouring channels.)

    Args:
        size: side of the window, odd.
        alpha: factor of the mean.
        beta: exponent.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        assert size % 2 == 1, size
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        # The squares of what pixels of 0..255 lead to are too large for float16.
        squares = x.float().square()
        mean = F.avg_pool2d(squares, self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * mean).pow(-self.beta).to(x.dtype)


class ZF(FreezableTrunk):
    """conv1 to conv5, the smaller of the two networks of the Faster R-CNN paper.

    Its fully connected layers are the RoI head: :class:`detector.roi_heads.vgg.VGGHead` with
    ``in_channels=256`` and ``pooled_size=6``.

    Args:
        weights: file with the names of the Caffe model (``conv1.weight``, ``conv1.bias``, ...;
            ``fc6`` to ``fc8`` are left to the head), or ``None`` for random weights.
        freeze_at: convolutions that stay as loaded: 0 none (as the paper), 5 all.

    Raises:
        ValueError: an impossible ``freeze_at``, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    strides = (16,)
    out_channels = (256,)

    def __init__(self, weights: str | None = None, freeze_at: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=7, stride=2, padding=3)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.norm = WithinChannelNorm()
        convs = [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        if weights is not None:
            load_backbone_weights(self, weights, ignore=HEAD)
        self.freeze([[conv] for conv in convs], freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to conv5, a list of one map ``(B, 256, H / 16, W / 16)``.

        Sides are rounded up. Caffe's poolings round them so that a row or column beyond the image
        may come on top; it is left out, and all else is the same.
        """
        x = images
        for conv in (self.conv1, self.conv2):
            x = F.max_pool2d(self.norm(F.relu(conv(x))), kernel_size=3, stride=2, padding=1)
        for conv in (self.conv3, self.conv4, self.conv5):
            x = F.relu(conv(x))
        return [x]
