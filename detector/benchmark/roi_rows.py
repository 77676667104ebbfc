"""Pooling of RoIs, forward and backward, beside torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
import torchvision.ops
from torch import Tensor

from detector.benchmark.comparison import Comparison
from detector.benchmark.inputs import feature_pyramid, random_boxes
from detector.ops.roi_align import roi_align
from detector.ops.roi_pool import roi_pool

Pool = Callable[[Tensor], Tensor]


def single_level_rows(device: torch.device) -> list[Comparison]:
    """RoIs on one map of stride 16, as in Fast R-CNN and the C4 models."""
    on_gpu = device.type == "cuda"
    batch, channels, num_rois = (8, 512, 512) if on_gpu else (2, 256, 128)
    dtype = torch.float32
    features = feature_pyramid(batch, channels, device, dtype, torch.contiguous_format)[2]
    boxes = list(random_boxes(batch, num_rois, seed=31).to(device))
    shape = f"{batch}x{channels}x{features.shape[2]}x{features.shape[3]}"
    inputs = f"{shape} float32, {num_rois} RoIs an image, 7x7"
    align = {"spatial_scale": 1 / 16, "sampling_ratio": 2, "aligned": True}
    pooled = [
        (
            "roi_align",
            lambda x: roi_align(x, boxes, 7, **align),
            lambda x: torchvision.ops.roi_align(x, boxes, 7, **align),
        ),
        (
            "roi_pool",
            lambda x: roi_pool(x, boxes, 7, 1 / 16),
            lambda x: torchvision.ops.roi_pool(x, boxes, 7, 1 / 16),
        ),
    ]
    rows = []
    for name, ours, theirs in pooled:
        rows += pooling_rows(name, inputs, [features], ours, {f"torchvision {name}": theirs})
    return rows


def pooling_rows(
    name: str,
    inputs: str,
    features: list[Tensor],
    ours: Callable[..., Tensor],
    others: dict[str, Callable[..., Tensor]],
    with_deterministic: bool = False,
) -> list[Comparison]:
    """Forward and backward of functions of feature maps.

    Args:
        name: of the op.
        inputs: in words.
        features: leaf maps that get gradients.
        ours: takes the maps and gives the pooled RoIs.
        others: by name, likewise.
        with_deterministic: one more row, our deterministic backward beside their other one.
    """
    leaves = [level.detach().requires_grad_() for level in features]
    frozen = [level.detach() for level in features]
    pooled = ours(*leaves)
    grad = torch.randn(pooled.shape, device=pooled.device).to(pooled)
    # What must be moved: each map once, and the pooled RoIs once.
    traffic = sum(x.numel() * x.element_size() for x in (*features, pooled))

    def backward(pool: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        result = pool(*leaves)
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    def repeatable() -> tuple[Tensor, ...]:
        with _deterministic():
            return torch.autograd.grad(pooled, leaves, grad, retain_graph=True)

    backwards = {other: backward(pool) for other, pool in others.items()}
    rows = [
        Comparison(
            f"{name} forward",
            inputs,
            lambda: ours(*frozen),
            {other: lambda pool=pool: pool(*frozen) for other, pool in others.items()},
            _check_close,
            with_memory=True,
            traffic_bytes=traffic,
        ),
        Comparison(
            f"{name} backward",
            inputs,
            backward(ours),
            backwards,
            _check_all_close,
            with_memory=True,
            traffic_bytes=traffic,
        ),
    ]
    if with_deterministic:
        rows.append(
            Comparison(
                f"{name} backward, deterministic",
                inputs,
                repeatable,
                {f"{other}, not deterministic": side for other, side in backwards.items()},
                _check_all_close,
                with_memory=True,
                traffic_bytes=traffic,
            )
        )
    return rows


@contextmanager
def _deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _check_close(ours: Tensor, theirs: Tensor) -> None:
    # The steps of the dtype that results may differ by, at the largest value. In float32 a place on
    # a map hundreds of cells wide is rounded to some 1e-5 cells, whichever way it is computed.
    steps = 4 if ours.dtype.itemsize == 2 else 2048
    tolerance = steps * torch.finfo(ours.dtype).eps * theirs.abs().amax()
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs.double()).abs().amax() <= tolerance.double()


def _check_all_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        _check_close(mine, other)
