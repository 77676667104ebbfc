"""The convolutions of VGG16 (Simonyan and Zisserman, 2014, configuration D)."""

from __future__ import annotations

from torch import Tensor, nn

from detector.backbones.freezing import FreezableTrunk
from detector.backbones.weights import load_backbone_weights

# The head's layers by their names in the Caffe model; torchvision calls them ``classifier``.
HEAD = ("fc6.", "fc7.", "fc8.")
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(FreezableTrunk):
    """conv1_1 to conv5_3 with their ReLUs; parameters keep torchvision's names.

    The last pooling is left to RoI pooling, so the map has stride 16. The fully connected layers
    are the RoI head, :class:`detector.roi_heads.vgg.VGGHead`.

    Args:
        weights: file with an ImageNet state dict in torchvision's names, or ``None`` for random
            weights; its classifier is left to the head.
        freeze_at: blocks of convolutions that stay as loaded: 0 none, 2 conv1 and conv2 (Fast
            R-CNN, section 4.5), 5 all.

    Raises:
        ValueError: an impossible ``freeze_at``, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    strides = (16,)
    out_channels = (512,)

    def __init__(self, weights: str | None = None, freeze_at: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        blocks: list[list[nn.Module]] = []
        in_channels = 3
        for widths in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            block = []
            for width in widths:
                conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(conv.bias)
                block.append(conv)
                layers += [conv, nn.ReLU(inplace=True)]
                in_channels = width
            blocks.append(block)
        self.features = nn.Sequential(*layers)
        if weights is not None:
            load_backbone_weights(self, weights, ignore=HEAD)
        self.freeze(blocks, freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to conv5_3, a list of one map ``(B, 512, H / 16, W / 16)``.

        Sides are halved four times and rounded down each time.
        """
        return [self.features(images)]
