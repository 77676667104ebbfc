"""``torch.compile`` of a model's dense parts, from outside: the model does not know.

What lies between them (matching, sampling, NMS, RoIAlign) is made of custom ops that a compiler can
only call, and of shapes that follow from the data on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Each shape of a batch is a compilation of each part: more of them than there are buckets.
SHAPES = 64


def dense_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Normalisation of pixels, backbone and every head of a model, by their paths.

    A head is what a branch calls ``head``: the RPN's convolutions, the fully connected layers of
    the box branch or of each stage of a cascade, the convolutions of the mask and keypoint branch.
    Those without numbers are left out, as is what lies within another one.
    """
    parts: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        named = path in ("normalizer", "backbone") or path.endswith(".head")
        inside = any(path.startswith(f"{outer}.") for outer in parts)
        if named and not inside and any(True for _ in (*module.parameters(), *module.buffers())):
            parts[path] = module
    return parts


def compile_parts(model: nn.Module, backend: str = "inductor") -> list[str]:
    """Compiles the dense parts in place; the names of the state dict stay.

    Compiled code runs in training mode only: evaluation, whose last batches have shapes of their
    own, and copies of the model run as they are written. The compilation itself comes with the
    first batch of each shape. If it fails, one warning says why, and that part runs as written
    from then on.

    Args:
        model: on its device, in its memory layout.
        backend: of ``torch.compile``.

    Returns:
        The paths of the parts.
    """
    parts = dense_parts(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for path, part in parts.items():
        # On a CPU empty slots are dropped: the number of rows of the RoI heads is any.
        any_rows = on_cpu and path.endswith(".head") and path != "rpn.head"
        part.compile(backend=backend, dynamic=None if any_rows else False)
        part._compiled_call_impl = _Compiled(path, part, part._compiled_call_impl)
    return list(parts)


class _Compiled:
    """Stands for the ``__call__`` of a part, and goes back to it where compilation fails."""

    def __init__(self, path: str, part: nn.Module, compiled: Callable[..., Any]) -> None:
        self._path = path
        self._part = part
        self._compiled = compiled

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not self._part.training:
            return self._part._call_impl(*inputs, **options)
        try:
            # The way backward is compiled here too, where a failure can still be made good.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(*inputs, **options)
        except Exception as error:
            if not _is_of_the_compiler(error):
                raise
            warnings.warn(
                f"{self._path} could not be compiled ({_reason(error)}) and runs as it is written, "
                "which is slower. Put that right, or set runtime.compile=false",
                RuntimeWarning,
                stacklevel=2,
            )
        del self._part._compiled_call_impl  # what the class has: None
        return self._part._call_impl(*inputs, **options)


def _is_of_the_compiler(error: BaseException) -> bool:
    return isinstance(error, torch._dynamo.exc.TorchDynamoException)


def _reason(error: BaseException) -> str:
    """The last cause's first line: what is around it tells of the compiler's own layers."""
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
