"""What every op is tested with: the same cases on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    custom_ops: Callable[[torch.device], list[tuple[Any, tuple[Any, ...]]]] | None = None


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []
