"""Every op on a GPU against the reference on the CPU, and in all that a training step asks of it.

``pytest -m gpu`` runs these; without a GPU they are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Argument, Kernel
from tests.ops.case import (
    OpCase,
    assert_same,
    collect_cases,
    map_tensors,
    run_backward,
    tensors_of,
    variants,
    widened,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
    # A kernel that cannot be used warns, and then the test must not pass by the slower path.
    pytest.mark.filterwarnings("error:The CUDA kernels:RuntimeWarning"),
]

GPU = torch.device("cuda", 0)
CASES = collect_cases()
CAPTURABLE = [case for case in CASES if case.capturable]
DIFFERENTIABLE = [case for case in CASES if case.gradients]


class CountingBackend(runtime.CudaBackend):
    def __init__(self) -> None:
        super().__init__()
        self.launched: list[Kernel] = []

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        super().launch(kernel, grid, block, shared_bytes, arguments)
        self.launched.append(kernel)


BACKEND = CountingBackend()


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    """The kernels launched by the test; no earlier failure lets it take the slower path."""
    monkeypatch.setattr(runtime, "_unavailable", [])
    BACKEND.launched.clear()
    before = runtime.use_backend(BACKEND)
    yield BACKEND.launched
    runtime.use_backend(before)
    assert runtime._unavailable == []


def step(case: OpCase) -> Callable[[tuple[Any, ...]], tuple[Any, list[Tensor]]]:
    """One forward and, where the op has one, backward: results and gradients."""
    if case.gradients:
        return lambda arguments: run_backward(case.op, arguments, case.gradients)
    return lambda arguments: (case.op(*arguments), [])


def reference_step(case: OpCase, arguments: tuple[Any, ...]) -> tuple[Any, list[Tensor]]:
    arguments = widened(map_tensors(Tensor.cpu, arguments))
    if case.gradients:
        return run_backward(case.reference, arguments, case.gradients)
    return case.reference(*arguments), []


def assert_step(case: OpCase, got: tuple[Any, list[Tensor]], arguments: tuple[Any, ...]) -> None:
    expected = reference_step(case, arguments)
    assert_same(got[0], expected[0], case.exact)
    # Atomics add in any order: the sums of many RoIs differ by more than one rounding.
    tolerance = {"steps": 128}
    if case.sums_rounded and got[1][0].dtype.itemsize == 2:
        tolerance = {"steps": 2, "sums_in": got[1][0].dtype}
    assert_same(got[1], expected[1], exact=False, **tolerance)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CASES))
def test_results_and_gradients_are_those_of_the_reference(case, dtype, layout, launched):
    arguments = case.make(GPU, dtype, layout)
    got = step(case)(arguments)
    assert_step(case, got, arguments)
    for result in tensors_of(got[0]):
        if result.is_floating_point():
            assert result.dtype == dtype
        if result.dim() == 4:
            assert result.is_contiguous(memory_format=layout)
    assert launched or not case.custom_ops, "no kernel was launched"


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CAPTURABLE))
def test_ops_are_captured_and_replayed_with_other_inputs(case, dtype, layout):
    run = step(case)
    arguments = case.make(GPU, dtype, layout)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(arguments)  # compiles what capture may not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(arguments)
    graph.replay()
    assert_step(case, got, arguments)

    # Images, boxes and all that belongs to them in the other order, and other features.
    for tensor in tensors_of(arguments):
        changed = tensor.flip(0) if tensor.dim() else tensor.clone()
        tensor.copy_(changed * 1.5 if tensor.dim() == 4 and tensor.is_floating_point() else changed)
    graph.replay()
    assert_step(case, got, arguments)


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CAPTURABLE))
def test_ops_ask_the_gpu_nothing(case, dtype, layout):
    run = step(case)
    arguments = case.make(GPU, dtype, layout)
    run(arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CASES))
def test_deterministic_mode_repeats_every_bit(case, dtype, layout):
    run = step(case)
    arguments = case.make(GPU, dtype, layout)
    with deterministic():
        first = run(arguments)
        for _ in range(4):
            assert_same(run(arguments), first, exact=True)
    assert_step(case, first, arguments)


@pytest.mark.parametrize("repeatable", [False, True], ids=["", "deterministic"])
@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CASES))
def test_without_kernels_the_slower_path_gives_the_same(
    case, dtype, layout, repeatable, launched, monkeypatch
):
    arguments = case.make(GPU, dtype, layout)
    with monkeypatch.context() as context, deterministic() if repeatable else nullcontext():
        context.setattr(runtime, "_unavailable", ["this test"])
        got = step(case)(arguments)
    assert not launched
    assert_step(case, got, arguments)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=[case.name for case in DIFFERENTIABLE])
def test_deterministic_mode_is_capturable_and_asks_nothing_too(case):
    if not case.capturable:
        pytest.skip("the op has data-dependent shapes")
    with deterministic():
        test_ops_ask_the_gpu_nothing(case, case.dtypes[0], case.layouts[0])
        test_ops_are_captured_and_replayed_with_other_inputs(case, case.dtypes[0], case.layouts[0])


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_ops_run_on_the_current_stream(case):
    run = step(case)
    arguments = case.make(GPU, case.dtypes[0], case.layouts[0])
    expected = run(arguments)
    zeros = map_tensors(torch.zeros_like, arguments)
    torch.cuda.synchronize()
    # Work that keeps the stream busy, then the inputs, then the op: another stream reads zeros.
    side = torch.cuda.Stream()
    busy = torch.ones(4096, 4096, device=GPU)
    with torch.cuda.stream(side):
        for _ in range(20):
            busy = busy @ busy
        for late, tensor in zip(tensors_of(zeros), tensors_of(arguments), strict=True):
            late.copy_(tensor)
        got = run(zeros)
    torch.cuda.synchronize()
    assert_same(got, expected, case.exact and not case.gradients, steps=128)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees one GPU")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_ops_run_on_the_gpu_of_their_arguments(case):
    """Which is not the current one."""
    arguments = case.make(torch.device("cuda", 1), case.dtypes[0], case.layouts[0])
    got = step(case)(arguments)
    assert_step(case, got, arguments)
    assert all(x.device.index == 1 for x in tensors_of(got))
