"""The detectors of the papers: the figure of each, in code."""

from __future__ import annotations

from torch import Tensor, nn

from detector.backbones.normalization import PixelNormalizer
from detector.roi_heads.box import BoxBranch
from detector.roi_heads.mask import MaskBranch
from detector.roi_heads.sampler import RoISampler
from detector.rpn.rpn import RPN
from detector.structures import Detections, Targets


class FasterRCNN(nn.Module):
    """Faster R-CNN (Ren et al., 2015), trained jointly.

    Args:
        num_classes: K.
        normalizer: uint8 pixels to the backbone's input.
        backbone: gives feature maps, finest first, and has their ``strides``.
        rpn: proposes regions.
        roi_sampler: chooses which of them to train on.
        box_branch: classifies and refines them.

    Raises:
        ValueError: anchors or poolers expect other feature maps than the backbone gives.
    """

    has_masks = False

    def __init__(
        self,
        num_classes: int,
        normalizer: PixelNormalizer,
        backbone: nn.Module,
        rpn: RPN,
        roi_sampler: RoISampler,
        box_branch: BoxBranch,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalizer = normalizer
        self.backbone = backbone
        self.rpn = rpn
        self.roi_sampler = roi_sampler
        self.box_branch = box_branch
        strides = tuple(backbone.strides)
        if rpn.anchors.strides != strides:
            raise ValueError(
                f"rpn.anchors.strides={list(rpn.anchors.strides)}, but the backbone's feature maps "
                f"have strides {list(strides)}; set them alike"
            )
        _check_pooler("box_branch", box_branch, strides)

    def forward(self, images: Tensor, image_sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a batch, in training and evaluation mode alike.

        Args:
            images: ``(B, 3, H, W)`` uint8.
            image_sizes: ``(B, 2)`` int64, ``(height, width)`` of the filled part.
            targets: ground truth.

        Returns:
            0-d tensors by name; training minimises their sum.
        """
        features = self.backbone(self.normalizer(images, image_sizes))
        proposals, losses = self.rpn(features, image_sizes, targets)
        rois = self.roi_sampler(proposals, targets)
        for branch in self.branches():
            losses.update(branch.losses(features, rois, targets))
        return losses

    def detect(self, images: Tensor, image_sizes: Tensor) -> Detections:
        """Detections of a batch; call within ``torch.no_grad`` and after ``eval()``."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self._detect(features, image_sizes)

    def _detect(self, features: list[Tensor], image_sizes: Tensor) -> Detections:
        proposals = self.rpn.propose(features, image_sizes)
        return self.box_branch.detect(features, proposals, image_sizes)

    def branches(self) -> list[nn.Module]:
        """The second stage's branches, each with ``losses(features, rois, targets)``."""
        return [self.box_branch]


class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al., 2017): Faster R-CNN with a mask branch beside the box branch.

    Args:
        mask_branch: predicts a mask inside each box.
        **faster_rcnn: the parts of :class:`FasterRCNN`.
    """

    has_masks = True

    def __init__(self, mask_branch: MaskBranch, **faster_rcnn) -> None:
        super().__init__(**faster_rcnn)
        self.mask_branch = mask_branch
        _check_pooler("mask_branch", mask_branch, tuple(self.backbone.strides))

    def _detect(self, features: list[Tensor], image_sizes: Tensor) -> Detections:
        return self.mask_branch.detect(features, super()._detect(features, image_sizes))

    def branches(self) -> list[nn.Module]:
        return [self.box_branch, self.mask_branch]


def _check_pooler(name: str, branch: nn.Module, strides: tuple[int, ...]) -> None:
    # A wrong stride would raise nothing and read the wrong places.
    expected = strides[: len(branch.pooler.strides)]
    if tuple(branch.pooler.strides) != expected:
        raise ValueError(
            f"{name}.pooler.strides={branch.pooler.strides}, but the backbone's finest feature "
            f"maps have strides {list(expected)}; set them alike"
        )
