"""The mask branch (He et al., 2017, section 3)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm
from detector.ops.polygons import rasterize_polygons
from detector.ops.slots import put_slots, slots_to_compute, take_slots
from detector.roi_heads.pooler import RoIPooler, check_grid
from detector.structures import Detections, SampledRoIs, Targets


class FCNMaskHead(nn.Module):
    """Convolutions, a 2x2 deconvolution and one mask for each class (figure 4, right).

    Args:
        in_channels: C of the features.
        num_classes: K.
        num_convs: 3x3 convolutions, 4 in the paper.
        width: their channels.
        norm: normalisation of the convolutions, ``none`` in the paper.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_classes: int = 80,
        num_convs: int = 4,
        width: int = 256,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                conv_norm(in_channels if i == 0 else width, width, 3, norm, activation=True)
                for i in range(num_convs)
            )
        )
        self.deconv = nn.ConvTranspose2d(width if num_convs else in_channels, width, 2, stride=2)
        self.logits = nn.Conv2d(width, num_classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, M/2, M/2)`` to logits ``(N, K, M, M)``."""
        return self.logits(F.relu(self.deconv(self.convs(pooled)))).float()


class MaskBranch(nn.Module):
    """Pooler, head and loss; masks are predicted for the class that the box branch chose.

    Args:
        pooler: gives RoI features of half the mask's side.
        head: gives one mask for each class.
        mask_weight: multiplier of the loss.
    """

    def __init__(self, pooler: RoIPooler, head: nn.Module, mask_weight: float = 1.0) -> None:
        super().__init__()
        check_grid("mask_branch.pooler", pooler)
        self.pooler = pooler
        self.head = head
        self.mask_weight = mask_weight

    def _logits(
        self, features: list[Tensor], boxes: Tensor, labels: Tensor, image_index: Tensor
    ) -> Tensor:
        masks = self.head(self.pooler(features, boxes, image_index))
        own = labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        return masks.gather(1, own)[:, 0]

    def losses(
        self, features: list[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """``loss_mask``: binary cross-entropy of the own class's mask over foreground RoIs.

        Raises:
            ValueError: the targets have no polygons.
        """
        if targets.polygons is None:
            raise ValueError(
                "a mask branch needs segmentations and the targets have boxes only; "
                "train a model without it (model=faster_rcnn_fpn)"
            )
        # Foreground stands first: slots after num_foreground can only be background.
        slots = slice(0, rois.num_foreground)
        foreground = rois.foreground[:, slots]
        rows = slots_to_compute(foreground)
        image_index = rows // foreground.shape[1]
        boxes = take_slots(rois.boxes[:, slots], rows)
        weight = take_slots(foreground, rows)
        # Background slots carry the label K, which has no mask; their weight is zero.
        labels = take_slots(rois.labels[:, slots].masked_fill(~foreground, 0), rows)

        logits = self._logits(features, boxes, labels, image_index)
        with torch.no_grad():
            goal = rasterize_polygons(
                targets.polygons,
                boxes,
                image_index,
                take_slots(rois.matched_gt[:, slots], rows),
                logits.shape[-1],
            )
        loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none").mean((1, 2))
        count = foreground.sum().clamp(min=1)
        return {"loss_mask": self.mask_weight * (loss * weight).sum() / count}

    def detect(self, features: list[Tensor], detections: Detections) -> Detections:
        """The detections with ``masks`` ``(B, D, M, M)`` filled in."""
        rows = slots_to_compute(detections.valid)
        image_index = rows // detections.valid.shape[1]
        logits = self._logits(
            features,
            take_slots(detections.boxes, rows),
            take_slots(detections.labels, rows),
            image_index,
        )
        masks = put_slots(logits.sigmoid(), rows, like=detections.valid)
        masks = masks * detections.valid[..., None, None]
        return dataclasses.replace(detections, masks=masks)
