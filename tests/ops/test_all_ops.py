"""Every op against its reference on the CPU, and as part of a graph.

The same cases run on a GPU in ``tests/gpu``.
"""

from __future__ import annotations

import pytest
import torch
from torch._library import custom_ops

from tests.ops.case import (
    OpCase,
    assert_same,
    collect_cases,
    run_backward,
    tensors_of,
    variants,
    widened,
)

CPU = torch.device("cpu")
CASES = collect_cases()
CUSTOM = [case for case in CASES if case.custom_ops]
DIFFERENTIABLE = [case for case in CASES if case.gradients]
TRACEABLE = [case for case in CASES if case.traceable]


def by_name(cases: list[OpCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def plain_arguments(case: OpCase) -> tuple:
    return case.make(CPU, case.dtypes[0], case.layouts[0])


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(CASES))
def test_results_are_those_of_the_reference(case, dtype, layout):
    arguments = case.make(CPU, dtype, layout)
    results = case.op(*arguments)
    rounded = {"sums_in": dtype, "steps": 4} if case.rounds_on_cpu and dtype.itemsize == 2 else {}
    assert_same(results, case.reference(*widened(arguments)), case.exact, **rounded)
    for result in tensors_of(results):
        if result.is_floating_point():
            assert result.dtype == dtype
        if result.dim() == 4:
            assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("case", "dtype", "layout"), variants(DIFFERENTIABLE))
def test_gradients_are_those_of_the_reference(case, dtype, layout):
    arguments = case.make(CPU, dtype, layout)
    _, gradients = run_backward(case.op, arguments, case.gradients)
    _, expected = run_backward(case.reference, widened(arguments), case.gradients)
    assert any(gradient.any() for gradient in expected), "the case shows no gradient"
    # On the CPU a 16-bit gradient may be added up in 16 bits.
    steps = 16 if case.rounds_on_cpu else 4
    rounded = {"sums_in": dtype, "steps": steps} if dtype.itemsize == 2 else {}
    assert_same(gradients, expected, exact=False, **rounded)
    for gradient, argument in zip(
        gradients, tensors_of([arguments[i] for i in case.gradients]), strict=True
    ):
        assert (gradient.dtype, gradient.shape) == (argument.dtype, argument.shape)


@by_name(CUSTOM)
def test_custom_ops_are_registered_as_torch_wants_them(case):
    checks = case.custom_ops(CPU)
    assert checks
    for op, arguments in checks:
        torch.library.opcheck(op, arguments)


@by_name(TRACEABLE)
def test_ops_compile_as_one_graph(case):
    torch._dynamo.reset()
    arguments = plain_arguments(case)
    compiled = torch.compile(case.op, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*arguments), case.op(*arguments), case.exact)
    if case.gradients:
        _, gradients = run_backward(compiled, arguments, case.gradients)
        assert_same(gradients, run_backward(case.op, arguments, case.gradients)[1], case.exact)


@by_name(CASES)
def test_cases_are_the_same_every_time(case):
    for first, second in zip(*map(tensors_of, map(plain_arguments, (case, case))), strict=True):
        torch.testing.assert_close(first, second, atol=0, rtol=0, equal_nan=True)
        assert first.stride() == second.stride()


def test_every_custom_op_has_a_cuda_kernel_and_is_checked():
    ours = {name: op for name, op in custom_ops.OPDEFS.items() if name.startswith("detector::")}
    checked = {op.name() for case in CUSTOM for op, _ in case.custom_ops(CPU)}
    assert set(ours) == {name.removesuffix(".default") for name in checked}
    without = [name for name, op in ours.items() if "cuda" not in op._backend_fns]
    # Plain PyTorch on every device, and ops so that no compiler rounds them otherwise.
    assert set(without) == {f"detector::{x}" for x in ("align_samples", "crop_grid", "warp_grid")}
