"""Finds where the first value that is not finite comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class FirstNonFinite:
    """Within ``with FirstNonFinite(model) as watch:`` looks at every output and every gradient.

    Forward, the module whose output comes first, children before the parents that hand it on.
    Backward, the module that got finite gradients of its outputs and gave others to its inputs or
    parameters; or the one at whose output a non-finite gradient first arrives, which what follows
    it has made, a loss for example. Modules without children are watched backward. The values stay
    the same bits.

    Attributes:
        found: a sentence, or ``None`` as long as everything is finite.
        module: the module's dotted path, where one is found.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.found: str | None = None
        self.module: str | None = None

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            path = name or type(self._model).__name__
            if not any(True for _ in module.children()):
                self._handles.append(
                    module.register_forward_pre_hook(self._aliases(path), with_kwargs=True)
                )
                for own, parameter in module.named_parameters():
                    if parameter.requires_grad:
                        self._watch(
                            parameter,
                            path,
                            f"{path} gives its {own} a gradient that is not finite",
                        )
            self._handles.append(module.register_forward_hook(self._look(path)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def losses(self, losses: dict[str, Tensor]) -> None:
        """Looks at the losses, which no module gives."""
        for name, loss in losses.items():
            if self.found is None and not torch.isfinite(loss).all():
                self.found = f"{name} is the first value that is not finite: all outputs are finite"
                self.module = name

    def _look(self, path: str):
        def look(module: nn.Module, inputs: tuple, output: Any) -> None:
            is_leaf = not any(True for _ in module.children())
            for tensor in tensors_in(output):
                if not tensor.is_floating_point():
                    continue
                if self.found is None and not torch.isfinite(tensor).all():
                    self.found = (
                        f"the output of {path} ({type(module).__name__}) is the first that is not "
                        "finite, on the way forward"
                    )
                    self.module = path
                if is_leaf and tensor.requires_grad:
                    self._watch(
                        tensor,
                        path,
                        f"the gradient that arrives at the output of {path} is the first that is "
                        "not finite: what follows it has made it",
                    )

        return look

    def _aliases(self, path: str):
        """Inputs under names of their own: a tensor's gradient is the sum over all its users'."""

        def alias(value: Any) -> Any:
            if isinstance(value, Tensor) and value.requires_grad:
                value = value.view_as(value)
                self._watch(
                    value, path, f"{path} gives its input a gradient that is not finite, the first"
                )
            elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
                value = type(value)(alias(child) for child in value)
            return value

        def before(module: nn.Module, inputs: tuple, named: dict[str, Any]):
            return alias(inputs), {key: alias(value) for key, value in named.items()}

        return before

    def _watch(self, tensor: Tensor, path: str, sentence: str) -> None:
        def look(gradient: Tensor) -> None:
            if self.found is None and not torch.isfinite(gradient).all():
                self.found = f"{sentence}, on the way backward"
                self.module = path

        self._handles.append(tensor.register_hook(look))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from tensors_in(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from tensors_in(child)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
