"""The kernels of RoI pooling, run on the CPU against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from detector.ops.cuda import roi_pool as kernels
from detector.ops.reference import roi_pool as reference
from tests.ops.cuda.host import ORDERS, HostBackend, running_on

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last

# Rounding of results of about 1; 16-bit gradients are summed in float32 and rounded once.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-12,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


@pytest.fixture(params=[False, True], ids=["atomic", "gather"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def make_inputs(
    dtype: torch.dtype,
    layout: torch.memory_format,
    shape: tuple[int, int, int, int] = (2, 8, 9, 11),
    num_rois: int = 24,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, boxes in cells, image index; boxes tiny to huge, outside, reversed, not finite."""
    generator = torch.Generator().manual_seed(0)
    height, width = shape[2:]
    features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    limit = torch.tensor([width, height])
    first = torch.rand(num_rois, 2, generator=generator) * limit - 1
    size = torch.rand(num_rois, 2, generator=generator) ** 3 * limit * 1.5
    boxes = torch.cat((first, first + size), 1)
    image_index = torch.randint(0, shape[0], (num_rois,), generator=generator)
    special = torch.tensor(
        [
            [0, 0, width - 1, height - 1],
            [width + 5, 0, width + 9, 4],
            [-8, -9, -3, -2],
            [2, 3, 2, 3],
            [5, 6, 2, 1],
            [0.5, 0.49999997, 2.5, 1.5],  # halves round away from zero, less than half does not
            [-0.5, -1.5, 3, 3],
            [-3e9, -3e9, 3e9, 3e9],
            [1e30, 1e30, 2e30, 2e30],
            [torch.nan, 0, 4, 4],
            [0, 0, torch.inf, 4],
            [-torch.inf, 0, 4, 4],
        ]
    )
    boxes[: len(special)] = special[:num_rois]
    image_index[num_rois - 2 :] = torch.tensor([-1, shape[0]])[:num_rois]  # of no image
    boxes = boxes.double() if dtype == torch.float64 else boxes
    return features.contiguous(memory_format=layout), boxes, image_index


def check(
    inputs: tuple[Tensor, Tensor, Tensor],
    pooled: tuple[int, int],
    mode: str,
    layout: torch.memory_format,
) -> None:
    features, boxes, image_index = inputs
    output, argmax = kernels.roi_pool(*inputs, *pooled, mode)
    expected, places = reference.pool_rois(*inputs, *pooled, mode)
    assert output.dtype == features.dtype
    assert output.is_contiguous(memory_format=layout)
    assert argmax.dtype == torch.int32
    assert torch.equal(argmax, places)
    if mode == "max":
        assert torch.equal(output, expected)
        assert argmax.is_contiguous(memory_format=layout)
    else:
        close(output, expected, features.dtype)

    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(features.dtype)
    where = (argmax, boxes, image_index, *features.shape, mode)
    last = layout == CHANNELS_LAST
    gradient = kernels.roi_pool_backward(grad, *where, last)
    close(gradient, reference.pool_rois_backward(grad.double(), *where), features.dtype)
    assert gradient.dtype == features.dtype
    assert gradient.is_contiguous(memory_format=layout)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(
        got.double(), expected.double(), atol=tolerance * scale, rtol=tolerance
    )


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_threads_in_any_order(host_kernels_any_order: HostBackend, mode, layout, deterministic):
    inputs = make_inputs(torch.float32, layout)
    check(inputs, (3, 2), mode, layout)
    backward = "roi_pool_backward_gather" if deterministic else "roi_pool_backward_atomic"
    assert host_kernels_any_order.launched[-1].name == backward


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(host_kernels: HostBackend, dtype, layout, deterministic):
    check(make_inputs(dtype, layout), (3, 3), "max", layout)


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 1, 1), (3, 4, 1, 40), (1, 264, 17, 9), (2, 5, 10, 8), (1, 1, 9, 9)],
    ids=str,
)
def test_maps_of_every_shape(host_kernels: HostBackend, shape, deterministic):
    """One cell, one row, several slabs of channels and tiles, an odd and a single channel."""
    features, boxes, image_index = make_inputs(torch.float32, CHANNELS_LAST, shape, 14)
    layout = CONTIGUOUS if features.is_contiguous() else CHANNELS_LAST
    check((features, boxes, image_index), (2, 3), "max", layout)
    plain = features.contiguous()
    check((plain, boxes, image_index), (2, 3), "max", CONTIGUOUS)


@pytest.mark.parametrize("pooled", [(1, 1), (7, 7), (20, 17)], ids=str)
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_bins_many_and_few(host_kernels: HostBackend, mode, pooled, deterministic):
    """More bins than cells share cells, one bin takes them all."""
    check(make_inputs(torch.float32, CHANNELS_LAST), pooled, mode, CHANNELS_LAST)


def test_channels_that_do_not_lie_at_16_bytes(host_kernels: HostBackend):
    features, boxes, image_index = make_inputs(torch.bfloat16, CONTIGUOUS, (1, 8, 9, 11))
    memory = torch.zeros(features.numel() + 1, dtype=torch.bfloat16)
    view = memory[1:].view(1, 9, 11, 8).permute(0, 3, 1, 2)
    view.copy_(features)
    assert view.data_ptr() % 16
    check((view, boxes, image_index), (3, 3), "max", CHANNELS_LAST)
    assert ("VECTOR", "1") in host_kernels.launched[0].macros


def test_more_rois_on_a_tile_than_one_round_lists(host_kernels_any_order: HostBackend):
    torch.use_deterministic_algorithms(True)
    try:
        inputs = make_inputs(torch.float32, CHANNELS_LAST, (2, 4, 9, 9), num_rois=150)
        check(inputs, (2, 2), "max", CHANNELS_LAST)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_gathered_gradient_has_the_same_bits_in_any_order(host_backend: HostBackend):
    features, boxes, image_index = make_inputs(torch.float32, CHANNELS_LAST, num_rois=80)
    _, argmax = reference.pool_rois(features, boxes, image_index, 3, 3, "max")
    grad = torch.randn(argmax.shape, generator=torch.Generator().manual_seed(1))
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for order in ORDERS:
            with running_on(host_backend, order):
                found.append(
                    kernels.roi_pool_backward(
                        grad, argmax, boxes, image_index, *features.shape, "max", True
                    )
                )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_no_rois_and_no_images(host_kernels: HostBackend, mode, deterministic):
    features, boxes, image_index = make_inputs(torch.float32, CHANNELS_LAST)
    check((features, boxes[:0], image_index[:0]), (3, 3), mode, CHANNELS_LAST)
    output, _ = kernels.roi_pool(features[:0], boxes, image_index, 3, 3, mode)
    assert output.shape == (24, 8, 3, 3)
    assert not output.any()


def test_nan_features_are_passed_over(host_kernels: HostBackend):
    features, boxes, image_index = make_inputs(torch.float32, CHANNELS_LAST)
    features[:, :, 4, 5] = torch.nan
    check((features, boxes, image_index), (2, 2), "max", CHANNELS_LAST)
