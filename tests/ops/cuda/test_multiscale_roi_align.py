"""The kernels of RoIAlign over a pyramid, run on the CPU against the reference."""

from __future__ import annotations

import pytest
import torch

from detector.ops.cuda import multiscale_roi_align as kernels
from detector.ops.multiscale_roi_align import assign_levels
from detector.ops.reference.multiscale_roi_align import pool_assigned, pool_assigned_backward
from tests.ops.cases_multiscale import CANONICAL_SIZE, SCALES, make
from tests.ops.cuda.host import HostBackend

CPU = torch.device("cpu")
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(
    ("dtype", "channels", "layout", "source"),
    [
        (torch.float32, 8, CHANNELS_LAST, "roi_align.cu"),
        (torch.bfloat16, 16, CHANNELS_LAST, "roi_align.cu"),
        (torch.float64, 2, CHANNELS_LAST, "roi_align.cu"),
        (torch.float32, 5, CHANNELS_LAST, "sampled_pooling.cu"),
        (torch.float32, 5, CONTIGUOUS, "sampled_pooling.cu"),
        (torch.float16, 4, CONTIGUOUS, "sampled_pooling.cu"),
    ],
)
@pytest.mark.parametrize("aligned", [True, False])
def test_kernels_equal_the_reference(
    host_kernels: HostBackend,
    dtype: torch.dtype,
    channels: int,
    layout: torch.memory_format,
    source: str,
    aligned: bool,
) -> None:
    """Geometry, forward and both gradients, all levels in one launch each."""
    features, boxes, valid = make(channels, CPU, dtype, layout)
    rows = boxes.flatten(0, 1)
    image_index = torch.arange(2).repeat_interleave(boxes.shape[1])
    image_index[5], image_index[6] = -1, 2  # no images of the batch
    image_index = image_index[:, None].expand(-1, 2).contiguous()[:, 0]  # with gaps
    levels = torch.where(valid.flatten(), assign_levels(rows, 3, canonical_size=CANONICAL_SIZE), -1)
    assert levels.unique().tolist() == [-1, 0, 1, 2]
    exact = [level.double() for level in features]
    expected = pool_assigned(exact, rows, image_index, levels, SCALES, 7, 2, aligned)

    rest = (2, aligned, 2, 4, CANONICAL_SIZE)
    given = (rows, image_index, valid.flatten(), SCALES)
    host_kernels.launched.clear()
    pooled = kernels.multiscale_roi_align(features, *given, 7, *rest)
    assert [kernel.source for kernel in host_kernels.launched] == ["levels.cu", source]
    # Positions are float32: a hundred cells from the origin they are off by 1e-5 cells.
    tolerance = {torch.float64: 1e-9}.get(dtype, 3 * torch.finfo(dtype).eps + 3e-5)
    torch.testing.assert_close(pooled.double(), expected.double(), atol=4 * tolerance, rtol=0)
    assert pooled.is_contiguous(memory_format=layout)

    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    sizes = [tuple(level.shape[2:]) for level in features]
    of_levels = pool_assigned_backward(
        grad.double(), sizes, 2, rows, image_index, levels, SCALES, 2, aligned
    )
    heights, widths = zip(*sizes, strict=True)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            gradients = kernels.multiscale_roi_align_backward(
                grad, 2, heights, widths, layout == CHANNELS_LAST, *given, *rest
            )
        finally:
            torch.use_deterministic_algorithms(False)
        for ours, theirs in zip(gradients, of_levels, strict=True):
            assert ours.is_contiguous(memory_format=layout) and ours.dtype == dtype
            scale = max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(ours.double(), theirs, atol=4 * tolerance * scale, rtol=0)


def test_levels_are_those_of_the_rule(host_kernels: HostBackend) -> None:
    """At the sizes where the rule steps, too; the level shows in the grid's step."""
    sizes = torch.tensor([0.0, 1, 16, 111.9, 112, 223.9, 224, 447.9, 448, 896, 5000])
    boxes = torch.stack((sizes * 0, sizes * 0, sizes, sizes), 1)
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    grid, levels = kernels.roi_align.geometry(
        torch.float32, 1, boxes, image_index, None, scales, 14, True, 2, 4, 224.0
    )
    assert torch.equal(levels.long(), assign_levels(boxes, 4))
    torch.testing.assert_close(grid[:, 2], sizes * torch.tensor(scales)[levels] / 14)


def test_nothing_to_pool(host_kernels: HostBackend) -> None:
    features, boxes, valid = make(8, CPU, torch.float32, CHANNELS_LAST)
    rest = (2, True, 2, 4, CANONICAL_SIZE)
    image_index = torch.zeros(0, dtype=torch.int64)
    given = (boxes[0, :0], image_index, valid[0, :0], SCALES)
    pooled = kernels.multiscale_roi_align(features, *given, 7, *rest)
    assert pooled.shape == (0, 8, 7, 7)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        gradients = kernels.multiscale_roi_align_backward(
            pooled, 2, [16, 8, 4], [24, 12, 6], True, *given, *rest
        )
        torch.use_deterministic_algorithms(False)
        assert [tuple(x.shape) for x in gradients] == [tuple(x.shape) for x in features]
        assert not any(x.any() for x in gradients)
