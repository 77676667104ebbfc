"""What ops do in Python around their kernels on a GPU, found out without one.

Fake tensors of a CUDA device take the branches that a GPU takes; they have no values, so asking for
one is an error, and every tensor of the CPU among them would be copied while the GPU waits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detector.ops.multiscale_roi_align import multiscale_roi_align
from tests.ops.case import collect_cases, map_tensors, tensors_of, variants

# The package offers functions under the names of their files.
roi_align, crop_and_resize, roi_warp = (
    importlib.import_module(f"detector.ops.{name}")
    for name in ("roi_align", "crop_and_resize", "roi_warp")
)

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
CAPTURABLE = [case for case in collect_cases() if case.capturable]


class Calls(TorchDispatchMode):
    """Every call that reaches a device, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made.append((func, (*args, *(kwargs or {}).values()), result))
        return result

    def of_the_cpu(self) -> list[str]:
        return [
            str(func)
            for func, arguments, result in self.made
            if any(x.device.type == "cpu" for x in tensors_of((arguments, result)))
        ]


def on_fake_gpu(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Calls:
    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)

    with FakeTensorMode(), Calls() as calls:
        function(*map_tensors(fake, arguments))
    return calls


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CAPTURABLE))
def test_nothing_is_asked_of_the_gpu_nor_copied_to_it(case, dtype, layout):
    calls = on_fake_gpu(case.op, case.make(CPU, dtype, layout))
    assert calls.made
    assert calls.of_the_cpu() == []


def test_questions_and_copies_are_seen():
    ones = (torch.ones(3),)
    with pytest.raises(DataDependentOutputException):
        on_fake_gpu(lambda x: x.max().item(), ones)
    assert on_fake_gpu(lambda x: x + torch.tensor([1.0, 2.0, 3.0]).to(x.device), ones).of_the_cpu()
    assert on_fake_gpu(lambda x: x.cpu(), ones).of_the_cpu()


BOXES = torch.tensor([[1.0, 2.0, 22.0, 23.0]])


@pytest.mark.parametrize(
    "place",
    [
        lambda boxes: roi_align.place_samples(boxes, (7, 7), 0, False),
        lambda boxes: roi_align.place_samples(boxes, (3, 7), 2, True),
        lambda boxes: crop_and_resize.place_points(boxes, (30, 30), (7, 7)),
        lambda boxes: roi_warp.place_points(boxes, (7, 7)),
    ],
    ids=["roi_align_adaptive", "roi_align", "crop_and_resize", "roi_warp"],
)
def test_places_on_a_map_are_divided_not_multiplied_by_a_reciprocal(place):
    """CUDA divides by a Python number as a product with its reciprocal: 21 / 7 is above 3 then,
    so that a cell has a sample too many, and the last point of a crop lies outside the map."""
    calls = on_fake_gpu(place, (BOXES,))
    assert calls.of_the_cpu() == []
    divisors = [args[1] for func, args, _ in calls.made if func is torch.ops.aten.div.Tensor]
    assert divisors
    assert all(isinstance(divisor, Tensor) for divisor in divisors)


def test_a_gpu_is_not_given_more_levels_than_a_kernel_takes():
    maps = [torch.zeros(1, 8, 64 >> level, 64 >> level) for level in range(7)]
    strides = [4 << level for level in range(7)]
    boxes = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="at most 6"):
        on_fake_gpu(
            lambda boxes, *maps: multiscale_roi_align(maps, boxes, 7, strides), (boxes, *maps)
        )
