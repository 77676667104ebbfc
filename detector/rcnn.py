"""The detectors of the papers: the figure of each, in code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.backbones.freezing import Freezable
from detector.backbones.normalization import PixelNormalizer
from detector.roi_heads.box import BoxBranch
from detector.roi_heads.keypoint import KeypointBranch
from detector.roi_heads.mask import MaskBranch
from detector.roi_heads.region_features import RegionFeatures, region_features
from detector.roi_heads.sampler import RoISampler
from detector.roi_heads.warped_trunk import Pixels, WarpedTrunk
from detector.rpn.rpn import RPN
from detector.structures import Detections, Proposals, SampledRoIs, Targets


class ProposalNetwork(Freezable):
    """The Region Proposal Network alone (Faster R-CNN, section 3): objects, whatever their class.

    Args:
        normalizer: uint8 pixels to the backbone's input.
        backbone: gives feature maps, finest first, and has their ``strides``.
        rpn: proposes regions.

    Raises:
        ValueError: the anchors expect other feature maps than the backbone gives.
    """

    has_masks = False
    has_keypoints = False
    has_classes = False
    needs_proposals = False
    num_classes = 1

    def __init__(self, normalizer: PixelNormalizer, backbone: nn.Module, rpn: RPN) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.rpn = rpn
        _check_anchors(rpn, tuple(backbone.strides))

    def forward(self, images: Tensor, image_sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a batch, see :meth:`FasterRCNN.forward`; labels are not looked at."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self.rpn.losses_alone(features, image_sizes, targets)

    def detect(self, images: Tensor, image_sizes: Tensor) -> Detections:
        """The proposals, best first, all labelled 0; scores are probabilities of an object."""
        proposals = self.propose(images, image_sizes)
        return Detections(
            boxes=proposals.boxes,
            scores=proposals.scores.sigmoid().masked_fill(~proposals.valid, 0.0),
            labels=torch.zeros_like(proposals.valid, dtype=torch.int64),
            valid=proposals.valid,
        )

    def propose(self, images: Tensor, image_sizes: Tensor) -> Proposals:
        """What the RPN proposes at inference."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self.rpn.propose(features, image_sizes)


class FastRCNN(Freezable):
    """Fast R-CNN (Girshick, 2015): classes and boxes for proposals that come with the images.

    Args:
        num_classes: K.
        normalizer: uint8 pixels to the backbone's input.
        backbone: gives feature maps, finest first, and has their ``strides``.
        roi_sampler: chooses the proposals to train on.
        box_branch: classifies and refines them.

    Raises:
        ValueError: the pooler expects other feature maps than the backbone gives.
    """

    has_masks = False
    has_keypoints = False
    has_classes = True
    needs_proposals = True

    def __init__(
        self,
        num_classes: int,
        normalizer: PixelNormalizer,
        backbone: nn.Module,
        roi_sampler: RoISampler,
        box_branch: BoxBranch,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalizer = normalizer
        self.backbone = backbone
        self.roi_sampler = roi_sampler
        self.box_branch = box_branch
        _check_pooler("box_branch", box_branch, backbone)

    def forward(
        self, images: Tensor, image_sizes: Tensor, targets: Targets, proposals: Proposals
    ) -> dict[str, Tensor]:
        """The losses of a batch (equation 1 of the paper).

        Args:
            images: ``(B, 3, H, W)`` uint8.
            image_sizes: ``(B, 2)`` int64, ``(height, width)`` of the filled part.
            targets: ground truth.
            proposals: in pixels of ``images``.
        """
        features = self.backbone(self.normalizer(images, image_sizes))
        rois = self.roi_sampler(proposals, targets)
        return self.box_branch.losses(features, rois, targets, image_sizes)

    def detect(self, images: Tensor, image_sizes: Tensor, proposals: Proposals) -> Detections:
        """Detections of a batch; call within ``torch.no_grad`` and after ``eval()``."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self.box_branch.detect(features, proposals, image_sizes)

    def extract_features(
        self,
        images: Tensor,
        image_sizes: Tensor,
        boxes: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor] | None = None,
    ) -> RegionFeatures:
        """What the second stage computes for given boxes, without any proposals.

        Call after ``eval()``, and within ``torch.no_grad`` unless gradients are wanted.

        Args:
            images: ``(B, 3, H, W)`` uint8.
            image_sizes: ``(B, 2)`` int64.
            boxes: in pixels of ``images``: B tensors ``(L, 4)``, or ``(N, 5)`` with the index of
                the image first.
            labels: the class of each box, B tensors ``(L,)`` or ``(N,)``; ``None`` for the class
                with the best score.
        """
        features = self.backbone(self.normalizer(images, image_sizes))
        return region_features(
            features,
            self.backbone.strides,
            boxes,
            labels,
            self.box_branch,
            self.mask_branch if self.has_masks else None,
            self.keypoint_branch if self.has_keypoints else None,
        )


class RCNN(FastRCNN):
    """R-CNN (Girshick et al., 2014): each proposal warped from the image, through the whole trunk.

    Everything else is Fast R-CNN's, so that the two can be compared: one training with softmax and
    box regression, where the paper trains a classifier, SVMs and regressors one after the other.

    Args:
        backbone: runs on each warped proposal; it is a part of ``box_branch.pooler``.
        box_branch: its pooler is a :class:`detector.roi_heads.warped_trunk.WarpedTrunk`.
        **fast_rcnn: the other parts of :class:`FastRCNN`.

    Raises:
        ValueError: another pooler, or a backbone of several maps.
    """

    def __init__(self, backbone: nn.Module, box_branch: BoxBranch, **fast_rcnn) -> None:
        if not isinstance(box_branch.pooler, WarpedTrunk):
            raise ValueError(
                f"R-CNN warps images: box_branch.pooler must be a WarpedTrunk, as in "
                f"model=rcnn_vgg16, not a {type(box_branch.pooler).__name__}"
            )
        box_branch.pooler.run(backbone)
        super().__init__(backbone=Pixels(), box_branch=box_branch, **fast_rcnn)


class FasterRCNN(Freezable):
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
    has_keypoints = False
    has_classes = True
    needs_proposals = False

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
        _check_anchors(rpn, strides)
        _check_pooler("box_branch", box_branch, backbone)

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
        losses.update(self.roi_losses(features, rois, targets, image_sizes))
        return losses

    def detect(self, images: Tensor, image_sizes: Tensor) -> Detections:
        """Detections of a batch; call within ``torch.no_grad`` and after ``eval()``."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self._detect(features, image_sizes)

    def propose(self, images: Tensor, image_sizes: Tensor) -> Proposals:
        """What the first stage proposes at inference."""
        features = self.backbone(self.normalizer(images, image_sizes))
        return self.rpn.propose(features, image_sizes)

    # The first stage has no part in it.
    extract_features = FastRCNN.extract_features

    def _detect(self, features: list[Tensor], image_sizes: Tensor) -> Detections:
        proposals = self.rpn.propose(features, image_sizes)
        return self.box_branch.detect(features, proposals, image_sizes)

    def roi_losses(
        self, features: list[Tensor], rois: SampledRoIs, targets: Targets, image_sizes: Tensor
    ) -> dict[str, Tensor]:
        """The second stage's losses."""
        return self.box_branch.losses(features, rois, targets, image_sizes)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al., 2017): Faster R-CNN with a mask branch beside the box branch.

    Args:
        mask_branch: predicts a mask inside each box. Without a pooler it shares the box branch's,
            with whatever layers that has (res5 after C4).
        **faster_rcnn: the parts of :class:`FasterRCNN`.
    """

    has_masks = True

    def __init__(self, mask_branch: MaskBranch, **faster_rcnn) -> None:
        super().__init__(**faster_rcnn)
        self.mask_branch = mask_branch
        if mask_branch.pooler is None:
            mask_branch.check(self.box_branch.pooler)
        else:
            _check_pooler("mask_branch", mask_branch, self.backbone)

    def _detect(self, features: list[Tensor], image_sizes: Tensor) -> Detections:
        detections = super()._detect(features, image_sizes)
        # Other boxes than the box branch pooled, so what it computed is of no use.
        return self.mask_branch.detect(features, detections, shared=self.box_branch.pooler)

    def roi_losses(
        self, features: list[Tensor], rois: SampledRoIs, targets: Targets, image_sizes: Tensor
    ) -> dict[str, Tensor]:
        pooled = self.box_branch.pool(features, rois.boxes, rois.valid)
        losses = self.box_branch.losses(features, rois, targets, image_sizes, pooled)
        losses.update(self.mask_branch.losses(features, rois, targets, shared=pooled))
        return losses


class KeypointRCNN(FasterRCNN):
    """Mask R-CNN's keypoint branch (He et al., 2017, section 5) beside Faster R-CNN's box branch.

    Args:
        keypoint_branch: finds the keypoints of each object.
        **parts: of :class:`FasterRCNN`.
    """

    has_keypoints = True

    def __init__(self, keypoint_branch: KeypointBranch, **parts) -> None:
        super().__init__(**parts)
        self.num_keypoints = keypoint_branch.head.num_keypoints
        self.keypoint_branch = keypoint_branch
        _check_pooler("keypoint_branch", keypoint_branch, self.backbone)

    def _detect(self, features: list[Tensor], image_sizes: Tensor) -> Detections:
        detections = super()._detect(features, image_sizes)
        return self.keypoint_branch.detect(features, detections)

    def roi_losses(
        self, features: list[Tensor], rois: SampledRoIs, targets: Targets, image_sizes: Tensor
    ) -> dict[str, Tensor]:
        losses = super().roi_losses(features, rois, targets, image_sizes)
        losses.update(self.keypoint_branch.losses(features, rois, targets))
        return losses


class MaskKeypointRCNN(KeypointRCNN, MaskRCNN):
    """Mask R-CNN with both of its branches, as in the paper's table 5.

    Args:
        keypoint_branch: see :class:`KeypointRCNN`.
        mask_branch: see :class:`MaskRCNN`.
        **parts: of :class:`FasterRCNN`.
    """


def _check_anchors(rpn: RPN, strides: tuple[int, ...]) -> None:
    if rpn.anchors.strides != strides:
        raise ValueError(
            f"rpn.anchors.strides={list(rpn.anchors.strides)}, but the backbone's feature maps "
            f"have strides {list(strides)}; set them alike"
        )


def _check_pooler(name: str, branch: nn.Module, backbone: nn.Module) -> None:
    # A wrong stride would raise nothing and read the wrong places.
    pooler = branch.pooler
    expected = tuple(backbone.strides)[: len(pooler.strides)]
    if tuple(pooler.strides) != expected:
        raise ValueError(
            f"{name}.pooler.strides={pooler.strides}, but the backbone's finest feature "
            f"maps have strides {list(expected)}; set them alike"
        )
    in_channels = getattr(pooler, "in_channels", backbone.out_channels)
    if in_channels != backbone.out_channels:
        raise ValueError(
            f"{name}.pooler.name={pooler.name} takes {in_channels} channels, but the backbone "
            f"gives {backbone.out_channels}; set the name of the backbone"
        )
