"""R-CNN's way to features of a RoI: its pixels, warped to a square, through the whole trunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.roi_heads.pooler import RoIPooler, check_grid


class WarpedTrunk(nn.Module):
    """Warps each box of the image to a square and runs a trunk on it (Girshick et al., 2014).

    It stands where a pooler stands, and what it pools from is the image. Whatever its shape, a box
    becomes a square ("anisotropic" warping, appendix A of the paper's report), with some of what
    surrounds it. Where that lies beyond the image it is zero, the mean pixel.

    Args:
        crops: makes the squares: ``strides=[1]``, ``output_size`` the trunk's input.
        output_size: S of the result; the trunk's map is max-pooled to it, as by VGG16's pool5.
        context: pixels of the square on each side that show the surroundings; 16 in the paper.
        crops_at_once: at inference, crops that go through the trunk together.

    Attributes:
        trunk: the network, given by :meth:`run`; it has one map and ``out_channels``.
        num_bins, gives_grid, strides: as a pooler's.

    Raises:
        ValueError: numbers that do not fit each other, or crops that are no squares.
    """

    gives_grid = True

    def __init__(
        self,
        crops: RoIPooler,
        output_size: int = 7,
        context: float = 16.0,
        crops_at_once: int = 32,
    ) -> None:
        super().__init__()
        check_grid("box_branch.pooler.crops", crops)
        if not 0 <= 2 * context < crops.output_size:
            raise ValueError(
                f"box_branch.pooler.context={context} must be 0 or more and leave some of the "
                f"{crops.output_size} pixels of box_branch.pooler.crops.output_size"
            )
        if output_size < 1 or crops_at_once < 1:
            raise ValueError(
                f"box_branch.pooler: output_size={output_size} and crops_at_once={crops_at_once} "
                "must be at least 1"
            )
        self.crops = crops
        self.output_size = output_size
        self.context = context
        self.crops_at_once = crops_at_once
        self.num_bins = output_size**2
        self.strides = crops.strides

    def run(self, trunk: nn.Module) -> None:
        """Sets the trunk.

        Raises:
            ValueError: it gives several maps, as a pyramid does.
        """
        if len(trunk.strides) != 1:
            raise ValueError(
                f"R-CNN needs a backbone of one feature map, this one has {len(trunk.strides)}; "
                "choose backbone=vgg16, zf, resnet50_c5 or resnet50_c4"
            )
        self.trunk = trunk
        self.out_channels = trunk.out_channels

    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """``(N, 4)`` boxes of images ``(N,)`` to ``(N, out_channels, S, S)``.

        Args:
            features: the normalised images, a list of one ``(B, 3, H, W)``.
            boxes: in pixels.
            image_index: of each box.
        """
        boxes = with_context(boxes, self.context, self.crops.output_size)
        # Training needs all activations at once in any case.
        count = max(len(boxes), 1) if self.training else self.crops_at_once
        pooled = [
            self._pool(self.crops(features, some, index))
            for some, index in zip(boxes.split(count), image_index.split(count), strict=True)
        ]
        return torch.cat(pooled)

    def _pool(self, crops: Tensor) -> Tensor:
        [feature] = self.trunk(crops)
        return F.adaptive_max_pool2d(feature, self.output_size)


def with_context(boxes: Tensor, context: float, crop_size: int) -> Tensor:
    """Boxes ``(N, 4)`` grown about their centres so that a crop of ``crop_size`` pixels shows
    ``context`` pixels beside the box on each side."""
    factor = context / (crop_size - 2 * context)
    margin = (boxes[:, 2:] - boxes[:, :2]) * factor
    return torch.cat((boxes[:, :2] - margin, boxes[:, 2:] + margin), 1)


class Pixels(nn.Module):
    """The backbone of R-CNN: images as they are, a map of stride 1."""

    strides = (1,)
    out_channels = 3

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to a list of the same."""
        return [images]
