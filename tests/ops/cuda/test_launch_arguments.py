"""What a kernel is given are bare pointers: what they must not lead to is refused before."""

from __future__ import annotations

import pytest
import torch

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel
from tests.ops.cuda.host import HostBackend

KERNEL = Kernel.of("levels.cu", "roi_align_geometry", SCALAR="float")


def test_tensors_on_two_devices_are_refused(host_kernels: HostBackend) -> None:
    with pytest.raises(ValueError, match=r"roi_align_geometry needs all tensors .* cpu, meta"):
        runtime.launch(KERNEL, 1, 32, torch.ones(4), torch.ones(4, device="meta"))
    assert host_kernels.launched == []


@pytest.mark.parametrize("tensor", [torch.ones(4, 2)[:, 0], torch.ones(1).expand(4)])
def test_a_tensor_with_gaps_or_overlaps_is_refused(
    host_kernels: HostBackend, tensor: torch.Tensor
) -> None:
    with pytest.raises(AssertionError, match="roi_align_geometry has gaps or overlaps"):
        runtime.launch(KERNEL, 1, 32, torch.ones(4), tensor)
    assert host_kernels.launched == []
