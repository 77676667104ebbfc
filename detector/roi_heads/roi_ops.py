"""How a RoI becomes features: the choices of the config group ``roi_op``.

Each is called as ``op(feature, boxes, image_index, output_size, stride)`` with one map
``(B, C, H, W)``, boxes ``(N, 4)`` in pixels and the image ``(N,)`` of each. Nothing is checked and
no value is asked for, so that the training step may call it; a row of no image (index -1) gives
zeros and gets no gradient. Boxes get none ever.

``num_bins(output_size)`` is how many numbers of each channel come out; ``gives_grid`` says whether
they are a square, ``(N, C, output_size, output_size)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.crop_and_resize import crop_rows
from detector.ops.roi_align import MAX_ADAPTIVE_SAMPLES, sample_rows
from detector.ops.roi_pool import pool_rois
from detector.ops.roi_warp import warp_rows
from detector.ops.rois import MODES


class RoIOp(ABC):
    """What all of them share."""

    gives_grid = True

    def num_bins(self, output_size: int) -> int:
        """Numbers of each channel that come out."""
        return output_size**2

    @abstractmethod
    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """Features of ``(N, 4)`` boxes of images ``(N,)``, from a map ``(B, C, H, W)``."""


@dataclass(frozen=True)
class RoIAlign(RoIOp):
    """Bilinear samples of each cell (Mask R-CNN, section 3): :func:`detector.ops.roi_align`.

    Args:
        sampling_ratio: samples per cell and axis; 0: as many as the cell covers of the map, which
            is Detectron2's default.
        aligned: shift by half a cell so that samples lie at pixel centres.
        mode: ``avg`` or ``max`` of the samples of a cell (the paper's table 2c).

    Raises:
        ValueError: a number or mode that does not exist.
    """

    sampling_ratio: int = 2
    aligned: bool = True
    mode: str = "avg"

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_ratio <= MAX_ADAPTIVE_SAMPLES:
            raise ValueError(
                f"roi_op.sampling_ratio={self.sampling_ratio} must be 1 to {MAX_ADAPTIVE_SAMPLES}, "
                "or 0 for as many samples as the box needs"
            )
        _check_mode(self.mode)

    @property
    def is_fixed_mean(self) -> bool:
        """Whether it is the mean of a fixed number of samples, which has a kernel of its own."""
        return self.mode == "avg" and self.sampling_ratio > 0

    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """``(N, C, output_size, output_size)``."""
        return sample_rows(
            feature,
            _cells(feature, boxes, stride),
            image_index,
            (output_size, output_size),
            self.sampling_ratio,
            self.aligned,
            self.mode,
        )


@dataclass(frozen=True)
class RoIPool(RoIOp):
    """Bins of whole cells (Fast R-CNN, section 2.1): :func:`detector.ops.roi_pool`.

    Args:
        mode: ``max``, as in the paper, or ``avg`` of the cells of a bin.
    """

    mode: str = "max"

    def __post_init__(self) -> None:
        _check_mode(self.mode)

    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """``(N, C, output_size, output_size)``."""
        cells = _cells(feature, boxes, stride)
        return pool_rois(feature, cells, image_index, output_size, output_size, self.mode)[0]


@dataclass(frozen=True)
class RoIWarp(RoIOp):
    """The quantised RoI resampled, then pooled (MNC, section 3.2): :func:`detector.ops.roi_warp`.

    Args:
        mode: ``max`` or ``avg`` of the 2 x 2 points of a cell (Mask R-CNN, table 2c).
    """

    mode: str = "max"

    def __post_init__(self) -> None:
        _check_mode(self.mode)

    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """``(N, C, output_size, output_size)``."""
        cells = _cells(feature, boxes, stride)
        return warp_rows(feature, cells, image_index, (output_size, output_size), self.mode)


@dataclass(frozen=True)
class CropAndResize(RoIOp):
    """A bilinear crop of twice the output's side, then 2 x 2 max pooling.

    In the place of RoI pooling in TensorFlow's detectors ("An Implementation of Faster RCNN with
    Study for Region Sampling", Chen and Gupta, 2017). As there, pixel x of the image is point
    x / stride of the map, half a cell beside where RoIAlign reads, and what lies beyond the centres
    of the outermost cells is 0.
    """

    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """``(N, C, output_size, output_size)``."""
        boxes = _as_rows(feature, boxes)
        # Of each axis what is 1; a map of one cell has no extent, and is read wherever the box is.
        last = [max(side - 1, 1) * stride for side in feature.shape[2:]]
        # Divided column by column by tensors: by a number, CUDA multiplies by its reciprocal.
        extent = [torch.full_like(boxes[:, 0], last[axis]) for axis in (1, 0, 1, 0)]
        normalised = boxes / torch.stack(extent, 1)
        side = 2 * output_size
        return F.max_pool2d(crop_rows(feature, normalised, image_index, (side, side)), 2)


@dataclass(frozen=True)
class SpatialPyramid(RoIOp):
    """SPPnet's pyramid of pooled grids: :func:`detector.ops.spatial_pyramid_pool`.

    It gives a vector, which fully connected layers take and convolutions do not. The pooler's
    ``output_size`` does not concern it.

    Args:
        levels: bins per axis of each grid; (1, 2, 3, 6) are the paper's 50 bins.
        mode: ``max`` or ``avg``.

    Raises:
        ValueError: no grid, or one without bins.
    """

    levels: Sequence[int] = (1, 2, 3, 6)
    mode: str = "max"

    gives_grid = False

    def __post_init__(self) -> None:
        _check_mode(self.mode)
        if not self.levels or not all(isinstance(n, int) and n > 0 for n in self.levels):
            raise ValueError(
                f"roi_op.levels={list(self.levels)} must be one or more positive integers"
            )

    def num_bins(self, output_size: int) -> int:
        """Numbers of each channel that come out."""
        return sum(n**2 for n in self.levels)

    def __call__(
        self, feature: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int
    ) -> Tensor:
        """``(N, C * num_bins)``: the grids one after the other, of each its ``(C, n, n)``."""
        cells = _cells(feature, boxes, stride)
        grids = [pool_rois(feature, cells, image_index, n, n, self.mode)[0] for n in self.levels]
        return torch.cat([grid.flatten(1) for grid in grids], 1)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"roi_op.mode={mode!r} is not known; use one of {', '.join(MODES)}")


def _as_rows(feature: Tensor, boxes: Tensor) -> Tensor:
    """Boxes without gradient in the precision that the ops compute places in."""
    return boxes.detach().to(torch.float64 if feature.dtype == torch.float64 else torch.float32)


def _cells(feature: Tensor, boxes: Tensor, stride: int) -> Tensor:
    return _as_rows(feature, boxes) * (1.0 / stride)
