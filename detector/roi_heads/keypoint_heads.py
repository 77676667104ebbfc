"""The keypoint head: from RoI features to one heatmap for each keypoint (He et al., 2017,
section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detector.backbones.normalization import conv_norm


class KeypointHead(nn.Module):
    """Eight convolutions, a deconvolution that predicts, and bilinear upsampling.

    The deconvolution gives heatmaps of twice the side of the features, and interpolation doubles
    them again: 14, 28, 56.

    Args:
        in_channels: C of the features.
        num_keypoints: J.
        num_convs: 3x3 convolutions.
        width: their channels.
        norm: normalisation of the convolutions, ``none`` in the paper.

    Raises:
        ValueError: an unknown norm, or a number that is not at least 1.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_keypoints: int = 17,
        num_convs: int = 8,
        width: int = 512,
        norm: str = "none",
    ) -> None:
        super().__init__()
        if not isinstance(num_keypoints, int) or num_keypoints < 1:
            raise ValueError(
                f"num_keypoints={num_keypoints} must be at least 1; training takes it from the data"
            )
        if num_convs < 1:
            raise ValueError(f"keypoint_branch.head.num_convs={num_convs} must be at least 1")
        self.num_keypoints = num_keypoints
        self.convs = nn.Sequential(
            *(
                conv_norm(in_channels if i == 0 else width, width, 3, norm, activation=True)
                for i in range(num_convs)
            )
        )
        self.deconv = nn.ConvTranspose2d(width, num_keypoints, 4, stride=2, padding=1)
        self.keypoint_rows = {"deconv": 1}  # of each layer with rows for keypoints, how many each
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C, S/4, S/4)`` to logits ``(N, J, S, S)`` float32."""
        heatmaps = self.deconv(self.convs(pooled)).float()
        return F.interpolate(heatmaps, scale_factor=2, mode="bilinear", align_corners=False)
