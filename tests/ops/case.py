"""What every op is tested with: the same cases on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

LAYOUTS = (torch.contiguous_format, torch.channels_last)
ALL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class OpCase:
    """One op with inputs worth trying.

    Attributes:
        name: shown by pytest.
        make: ``make(device, dtype, layout)`` gives the op's positional arguments, the same values
            every time; ``dtype`` and ``layout`` are those of feature maps, boxes stay float32
            (float64 with float64 features).
        op: the public function, all options bound.
        reference: plain PyTorch with the same arguments and the same meaning.
        gradients: positions of the arguments (tensors or lists of tensors) that get gradients.
        dtypes: that ``make`` takes.
        layouts: that ``make`` takes.
        exact: results equal the reference's bit for bit; otherwise to the rounding of ``dtype``.
        capturable: has fixed shapes, asks nothing of the GPU and can be part of a CUDA graph.
        traceable: ``torch.compile(fullgraph=True)`` takes it.
        rounds_on_cpu: the CPU path computes in the dtype of 16-bit features, where a GPU has
            float32.
        sums_rounded: a gradient is the sum of parts, each rounded to the dtype of the features.
        custom_ops: ``custom_ops(device)`` gives ``(op, arguments)`` pairs for
            ``torch.library.opcheck``, the ops as in ``torch.ops.detector.<name>.default``.
    """

    name: str
    make: Callable[[torch.device, torch.dtype, torch.memory_format], tuple[Any, ...]]
    op: Callable[..., Any]
    reference: Callable[..., Any]
    gradients: tuple[int, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    layouts: tuple[torch.memory_format, ...] = (torch.contiguous_format,)
    exact: bool = False
    capturable: bool = True
    traceable: bool = True
    rounds_on_cpu: bool = False
    sums_rounded: bool = False
    custom_ops: Callable[[torch.device], list[tuple[Any, tuple[Any, ...]]]] | None = None


def collect_cases() -> list[OpCase]:
    """The ``CASES`` of every ``cases_*.py`` beside this file."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    cases = [case for name in names for case in importlib.import_module(f"tests.ops.{name}").CASES]
    assert len({case.name for case in cases}) == len(cases), "two cases have one name"
    return cases


def variants(cases: list[OpCase]) -> list[Any]:
    """Parameters ``case, dtype, layout`` for every combination that a case takes."""
    return [
        pytest.param(case, dtype, layout, id=f"{case.name}-{_word(dtype)}-{_word(layout)}")
        for case in cases
        for dtype in case.dtypes
        for layout in case.layouts
    ]


def _word(constant: object) -> str:
    return str(constant).removeprefix("torch.")


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nested tuples, lists and dataclasses with ``function`` of every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(function, item) for item in value)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changes = {name: map_tensors(function, field) for name, field in fields.items()}
        return dataclasses.replace(value, **changes)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dataclasses, in order."""
    found = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, value)
    return found


def widened(value: Any) -> Any:
    """The same numbers with 16-bit floats as float32, in which the reference has no rounding."""
    return map_tensors(
        lambda x: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, value
    )


def run_backward(
    function: Callable[..., Any], arguments: tuple[Any, ...], positions: tuple[int, ...]
) -> tuple[Any, list[Tensor]]:
    """Results, and the gradients of the arguments at ``positions`` for fixed output gradients.

    The output gradients are a pattern of the position alone, so that two implementations get the
    same ones, and so that no random number is drawn in a CUDA graph.
    """
    arguments = tuple(
        map_tensors(lambda x: x.detach().requires_grad_(), argument)
        if position in positions
        else argument
        for position, argument in enumerate(arguments)
    )
    inputs = tensors_of([arguments[position] for position in positions])
    results = function(*arguments)
    outputs = [x for x in tensors_of(results) if x.requires_grad]
    assert outputs, "nothing has a gradient"
    gradients = torch.autograd.grad(
        outputs, inputs, [_output_gradient(x) for x in outputs], allow_unused=True
    )
    filled = [
        torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)
    ]
    return map_tensors(Tensor.detach, results), filled


def _output_gradient(output: Tensor) -> Tensor:
    # Sevenths of -3..3 in an order that no pooling grid repeats.
    place = torch.arange(output.numel(), device=output.device)
    return ((place * 5 % 7 - 3) / 7).to(output.dtype).view(output.shape)


def assert_same(
    got: Any,
    expected: Any,
    exact: bool,
    sums_in: torch.dtype = torch.float32,
    steps: int = 32,
) -> None:
    """Results equal the reference's: bit for bit, or to the rounding of what ``got`` is stored in.

    Args:
        got: of the op, nested.
        expected: of the reference, nested alike; floats may have more bits.
        exact: floats too have to be equal.
        sums_in: in which ``got`` was added up, if that has fewer bits than float64 results have.
        steps: of that dtype at the largest value, by which sums may differ.
    """
    got_tensors, expected_tensors = tensors_of(got), tensors_of(expected)
    assert len(got_tensors) == len(expected_tensors)
    if not got_tensors:
        assert got == expected
    for ours, reference in zip(got_tensors, expected_tensors, strict=True):
        ours, reference = ours.cpu(), reference.cpu()
        assert ours.shape == reference.shape
        if exact or not ours.dtype.is_floating_point:
            torch.testing.assert_close(ours, reference, atol=0, rtol=0, equal_nan=True)
            continue
        stored = torch.finfo(ours.dtype).eps
        summed = stored if ours.dtype == torch.float64 else torch.finfo(sums_in).eps
        finite = reference[reference.isfinite()].abs()
        largest = finite.max().item() if finite.numel() else 0.0
        torch.testing.assert_close(
            ours.to(reference.dtype),
            reference,
            rtol=stored,
            atol=steps * summed * largest,
            equal_nan=True,
        )
