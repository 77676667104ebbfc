"""The kernels that pool bilinear samples, run on the CPU against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from detector.ops.cuda import roi_align as fast
from detector.ops.cuda import sampled_pooling as kernels
from detector.ops.cuda.levels import order_by_map
from detector.ops.reference import sampled_pooling as reference
from tests.ops.cuda.host import HostBackend

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last

# Rounding of the output, relative to values of about 1.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-12,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def make_inputs(
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = CHANNELS_LAST,
    shape: tuple[int, int, int, int] = (2, 8, 9, 11),
    samples: int = 2,
    pooled: tuple[int, int] = (3, 3),
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, image index, grid and samples; RoIs tiny to huge, outside, reversed and NaN."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    features = features.contiguous(memory_format=layout)
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    height, width = shape[2:]
    first = torch.rand(20, 2, generator=generator) * torch.tensor([width, height]) - 1
    size = torch.rand(20, 2, generator=generator) ** 3 * torch.tensor([width, height]) * 1.5
    boxes = torch.cat((first, first + size), 1)
    boxes[0] = torch.tensor([-0.5, -0.5, width - 0.5, height - 0.5])  # the whole map
    boxes[1] = torch.tensor([width + 5.0, 0, width + 9.0, 4])  # beside it
    boxes[2] = torch.tensor([2.0, 3, 2, 3])  # a point
    boxes[3] = torch.tensor([5.0, 6, 2, 1])  # reversed
    boxes[4] = torch.tensor([-1e4, -1e4, 1e4, 1e4])
    boxes[5] = torch.tensor([-1.0, -1, 0, 0])
    boxes[6, 2] = torch.nan
    boxes[7, 0] = -torch.inf
    counts = torch.full((20, 2), samples, dtype=torch.int32)
    if samples == 0:
        counts = torch.randint(1, 5, (20, 2), generator=generator, dtype=torch.int32)
        counts[8] = 0
    step = (boxes[:, 2:] - boxes[:, :2]) / (torch.tensor([pooled[1], pooled[0]]) * counts).clamp(
        min=1
    )
    grid = torch.cat((boxes[:, :2] + step / 2, step), 1).to(box_dtype)
    image_index = torch.randint(0, shape[0], (20,), generator=generator)
    image_index[9] = shape[0]  # no image of the batch
    image_index[10] = -1
    return features, image_index, grid, counts


def check(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    pooled: tuple[int, int],
    samples: int,
    border: str,
    mode: str,
    deterministic: bool,
) -> None:
    """Forward and backward equal the reference in float64 arithmetic."""
    features = inputs[0]
    options = (samples, border, mode)
    # Rounding must not move a sample over the border, so the grid is the same float32 numbers.
    exact = reference.pool_samples(features.double(), *inputs[1:], *pooled, *options)
    output, argmax = kernels.pool_samples(*inputs, *pooled, *options)
    tolerance = TOLERANCE[features.dtype]
    torch.testing.assert_close(output.double(), exact[0].double(), atol=tolerance, rtol=tolerance)
    assert output.dtype == features.dtype
    layout = CHANNELS_LAST if not features.is_contiguous() else CONTIGUOUS
    assert output.is_contiguous(memory_format=layout)

    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(features.dtype)
    rest = (*features.shape, *options)
    # Where two samples tie to rounding either may win: the reference follows the kernel's choice.
    expected = reference.pool_samples_backward(grad.double(), argmax, *inputs[1:], *rest)
    torch.use_deterministic_algorithms(deterministic)
    try:
        gradient = kernels.pool_samples_backward(
            grad, argmax, *inputs[1:], *rest, layout == CHANNELS_LAST
        )
    finally:
        torch.use_deterministic_algorithms(False)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        gradient.double(), expected, atol=tolerance * scale, rtol=4 * tolerance
    )
    assert gradient.dtype == features.dtype
    assert gradient.is_contiguous(memory_format=layout)
    if mode == "max":
        same = argmax == exact[1]
        assert same.float().mean() > 0.98


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_average_of_fixed_samples_in_channels_last(
    host_kernels: HostBackend, dtype: torch.dtype, deterministic: bool
) -> None:
    check(make_inputs(dtype), (3, 3), 2, "clamp", "avg", deterministic)
    assert {kernel.source for kernel in host_kernels.launched[-2:]} == {"roi_align.cu"}


@pytest.mark.parametrize("pooled", [1, 7, 14])
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_fixed_samples_of_every_size(host_kernels: HostBackend, pooled: int, samples: int) -> None:
    if (pooled == 14) != (samples == 2) and samples == 4:
        pytest.skip("one compilation less; sizes and samples are covered one by one")
    shape = (1, 4, 30, 23)
    inputs = make_inputs(shape=shape, samples=samples, pooled=(pooled, pooled))
    for deterministic in (False, True):
        check(inputs, (pooled, pooled), samples, "clamp", "avg", deterministic)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 16, 1, 40), (2, 264, 17, 9)])
def test_maps_of_every_shape(
    host_kernels_any_order: HostBackend, shape: tuple[int, int, int, int]
) -> None:
    """One cell, one row, and more channels than one warp or block takes."""
    for deterministic in (False, True):
        check(make_inputs(shape=shape), (3, 3), 2, "clamp", "avg", deterministic)


@pytest.mark.parametrize(
    ("layout", "border", "mode"),
    list(itertools.product((CONTIGUOUS, CHANNELS_LAST), ("clamp", "zero"), ("avg", "max"))),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_general_kernels(
    host_kernels: HostBackend, layout: torch.memory_format, border: str, mode: str
) -> None:
    """Odd channels, oblong output, samples that differ from RoI to RoI."""
    inputs = make_inputs(layout=layout, shape=(2, 5, 9, 11), samples=0, pooled=(2, 3))
    for deterministic in (False, True):
        check(inputs, (2, 3), 0, border, mode, deterministic)
    assert {kernel.source for kernel in host_kernels.launched[-2:]} == {"sampled_pooling.cu"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_general_kernels_in_every_precision(
    host_kernels_any_order: HostBackend, dtype: torch.dtype
) -> None:
    inputs = make_inputs(dtype, shape=(2, 5, 9, 11), samples=0, pooled=(2, 3))
    for deterministic in (False, True):
        check(inputs, (2, 3), 0, "clamp", "avg", deterministic)


@pytest.mark.parametrize("channels", [8, 5])
def test_samples_exactly_on_the_border(host_kernels: HostBackend, channels: int) -> None:
    """At -1 and at the size a sample still reads the border cell; a tile ends there too."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, channels, 8, 16, generator=generator)
    features = features.contiguous(memory_format=CHANNELS_LAST)
    x, y = (
        part.flatten()
        for part in torch.meshgrid(*torch.tensor([[-1.0, 16], [-1, 8]]), indexing="ij")
    )
    grid = torch.stack((x, y, 0 * x, 0 * y), 1)
    inputs = (features, torch.zeros(4, dtype=torch.int64), grid)
    inputs = (*inputs, torch.full((4, 2), 2, dtype=torch.int32))
    output, _ = kernels.pool_samples(*inputs, 3, 3, 2, "clamp", "avg")
    corners = features[0][:, [0, 7, 0, 7], [0, 0, 15, 15]].T
    torch.testing.assert_close(output, corners[:, :, None, None].expand(-1, -1, 3, 3))
    for deterministic in (False, True):
        check(inputs, (3, 3), 2, "clamp", "avg", deterministic)


@pytest.mark.parametrize("channels", [8, 5])
def test_a_roi_beside_the_map_reads_nothing(host_kernels: HostBackend, channels: int) -> None:
    """Not even at weight 0, which would let a NaN through."""
    features = torch.full((1, channels, 8, 8), torch.nan)
    features = features.contiguous(memory_format=CHANNELS_LAST)
    grid = torch.tensor([[20.0, 2, 1, 1], [2, 20, 1, 1]])
    counts = torch.full((2, 2), 2, dtype=torch.int32)
    output, _ = kernels.pool_samples(
        features, torch.zeros(2, dtype=torch.int64), grid, counts, 3, 3, 2, "clamp", "avg"
    )
    assert torch.equal(output, torch.zeros(2, channels, 3, 3))


def test_a_roi_far_larger_than_the_map_ends(host_kernels: HostBackend) -> None:
    """Millions of adaptive samples a cell, of which few are on the map."""
    features = torch.randn(1, 3, 6, 5)
    side = 2_000_000
    grid = torch.tensor([[-1e6, -1e6, 1.0, 1.0]])
    counts = torch.tensor([[side, side]], dtype=torch.int32)
    inputs = (features, torch.zeros(1, dtype=torch.int64), grid, counts)
    output, _ = kernels.pool_samples(*inputs, 1, 1, 0, "clamp", "avg")
    expected, _ = reference.pool_samples(*inputs, 1, 1, 0, "clamp", "avg")
    assert expected.abs().max() > 0
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
def test_no_rois_and_no_images(host_kernels: HostBackend, layout: torch.memory_format) -> None:
    features, image_index, grid, counts = make_inputs(layout=layout)
    for count, images in ((0, 2), (0, 0), (20, 0)):
        inputs = (features[:images], image_index[:count], grid[:count], counts[:count])
        output, argmax = kernels.pool_samples(*inputs, 3, 3, 2, "clamp", "avg")
        assert output.shape == (count, 8, 3, 3) and not output.any()
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            gradient = kernels.pool_samples_backward(
                output, argmax, *inputs[1:], images, 8, 9, 11, 2, "clamp", "avg", True
            )
            torch.use_deterministic_algorithms(False)
            assert gradient.shape == (images, 8, 9, 11) and not gradient.any()


def test_deterministic_gradient_has_the_same_bits_in_any_order(
    host_backend: HostBackend,
) -> None:
    """Whatever order threads and blocks run in; that of the atomics does not."""
    from tests.ops.cuda.host import ORDERS, running_on

    inputs = make_inputs(shape=(2, 8, 9, 11))
    grad = torch.randn(20, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    empty = torch.empty(0, dtype=torch.int32)
    results: dict[tuple[str, bool], list[Tensor]] = {}
    for order in ORDERS:
        with running_on(host_backend, order):
            for border, deterministic in itertools.product(("clamp", "zero"), (True, False)):
                torch.use_deterministic_algorithms(deterministic)
                rest = (2, 8, 9, 11, 2, border, "avg", True)
                gradient = kernels.pool_samples_backward(grad, empty, *inputs[1:], *rest)
                torch.use_deterministic_algorithms(False)
                results.setdefault((border, deterministic), []).append(gradient)
    for border in ("clamp", "zero"):
        first, *others = results[border, True]
        assert all(torch.equal(first, other) for other in others)
    assert not all(torch.equal(results["clamp", False][0], x) for x in results["clamp", False])


def test_rois_are_ordered_by_map() -> None:
    image = torch.tensor([1, 0, 5, 1, 0, -1, 1])
    level = torch.tensor([0, 1, 0, 0, 0, 1, -1], dtype=torch.int32)
    order, segments = order_by_map(image, level, num_images=2, num_levels=2)
    assert order.tolist()[:4] == [4, 1, 0, 3]
    assert segments.tolist() == [0, 1, 2, 4, 4]


def test_what_the_fast_kernels_take() -> None:
    assert fast.fits(torch.bfloat16, 4, 256, 7, 7, 2)
    assert not fast.fits(torch.bfloat16, 4, 12, 7, 7, 2)  # not whole 16-byte vectors
    assert not fast.fits(torch.float32, 4, 256, 7, 7, 0)  # adaptive
    assert not fast.fits(torch.float32, 4, 256, 7, 8, 2)
    assert not fast.fits(torch.float32, 4, 256, 28, 28, 2)
