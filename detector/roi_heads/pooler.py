"""RoI features from the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.ops.multiscale_roi_align import align_rows


class RoIAlignPooler(nn.Module):
    """RoIAlign from the level that FPN's rule gives each box.

    Args:
        output_size: side of the pooled square.
        strides: of the levels to pool from, finest first; the pyramid may have more (P6 is for the
            RPN alone).
        sampling_ratio: samples per cell and axis.
        aligned: see :func:`detector.ops.multiscale_roi_align.multiscale_roi_align`.
        canonical_size: size of the box, in pixels, that is pooled from ``canonical_level``.
        canonical_level: its level by the paper's name (4 for P4).
    """

    def __init__(
        self,
        output_size: int = 7,
        strides: Sequence[int] = (4, 8, 16, 32),
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if sampling_ratio < 1:
            raise ValueError(f"sampling_ratio={sampling_ratio} must be at least 1")
        self.output_size = output_size
        self.strides = list(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """``(N, 4)`` boxes of images ``(N,)`` to ``(N, C, output_size, output_size)``."""
        return align_rows(
            features[: len(self.strides)],
            boxes,
            image_index,
            self.output_size,
            self.strides,
            self.sampling_ratio,
            self.aligned,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )
