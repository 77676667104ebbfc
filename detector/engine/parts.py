"""What a model is made of: for each part its outputs, parameters and arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detector.engine.assembly import build, plain
from detector.structures import Proposals

# A part of these names inside another one is told apart: the trunk under its FPN, the pooling
# before res5.
_INNER = ("trunk", "pooler")

NOT_RUN = "not run at inference"
COCO_KEYPOINTS = 17


@dataclass(frozen=True)
class Part:
    """One call of a part on the way from pixels to detections.

    Attributes:
        path: its name in the model, which is its key under ``model`` in the configuration.
        kind: its class.
        shapes: of the tensors that it gives.
        trainable: parameters that training changes; 0 where an earlier call has counted them.
        frozen: parameters that it does not change, likewise.
        flops: two for each multiply-add of convolutions, matrix products and attention, which is
            what ``torch.utils.flop_counter`` counts; what an inner part does is not in.
    """

    path: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    trainable: int
    frozen: int
    flops: int

    @property
    def parameters(self) -> int:
        return self.trainable + self.frozen


@dataclass
class _Call:
    path: str
    module: nn.Module
    caller: _Call | None
    flops: int  # before it, then its own with those of all that it calls
    shapes: tuple[tuple[int, ...], ...] = ()


def build_without_memory(cfg: DictConfig, num_classes: int) -> nn.Module:
    """The model of a configuration on the ``meta`` device: shapes without numbers.

    Args:
        cfg: with the group ``model``; files of weights that it names are not read.
        num_classes: K. As many keypoints as the configuration says, or as COCO's people have.
    """
    cfg = cfg.copy()
    OmegaConf.update(cfg, "num_classes", num_classes)
    if OmegaConf.select(cfg, "num_keypoints") is None:
        OmegaConf.update(cfg, "num_keypoints", COCO_KEYPOINTS, force_add=True)
    tree = _without_weights(plain(cfg.model))
    with torch.device("meta"):
        return build(OmegaConf.create(tree))


def _without_weights(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: None if key == "weights" else _without_weights(value)
            for key, value in node.items()
        }
    return [_without_weights(item) for item in node] if isinstance(node, list) else node


@torch.no_grad()
def measure_parts(
    model: nn.Module, batch_size: int, height: int, width: int, num_proposals: int = 1000
) -> list[Part]:
    """The parts of a detector in the order in which they finish.

    A part is what the detector calls as a module, whatever that has inside. Nothing is computed:
    the model lies on the ``meta`` device, where tensors have shapes alone. All slots count, as on a
    GPU: as many proposals and detections as the model gives at most.

    Args:
        model: on the ``meta`` device.
        batch_size: B.
        height: H of the padded images, a multiple of the backbone's largest stride.
        width: W, likewise.
        num_proposals: P, for models that are given their proposals.

    Returns:
        A part for each call; the last, named :data:`NOT_RUN`, has what is in none of them, if
        anything is.
    """
    paths = {module: path for path, module in model.named_modules()}
    calls, stack = [], []
    counter = FlopCounterMode(display=False)

    def enter(module: nn.Module, inputs: tuple) -> None:
        caller = stack[-1] if stack else None
        stack.append(_Call(paths[module], module, caller, counter.get_total_flops()))

    def leave(module: nn.Module, inputs: tuple, output: Any) -> None:
        call = stack.pop()
        call.flops = counter.get_total_flops() - call.flops
        call.shapes = tuple(tuple(tensor.shape) for tensor in _tensors(output))
        calls.append(call)

    hooks = [module.register_forward_pre_hook(enter) for module in paths]
    hooks += [module.register_forward_hook(leave) for module in paths]
    was_training = model.training
    try:
        with counter:
            _detect(model.eval(), batch_size, height, width, num_proposals)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return _parts(model, [call for call in calls if _is_part(call)])


def multiply_adds(parts: list[Part]) -> int:
    """Of all parts together."""
    return sum(part.flops for part in parts) // 2


def _detect(model: nn.Module, batch_size: int, height: int, width: int, proposals: int) -> None:
    images = torch.zeros(batch_size, 3, height, width, dtype=torch.uint8, device="meta")
    sizes = torch.zeros(batch_size, 2, dtype=torch.int64, device="meta")
    given = []
    if model.needs_proposals:
        boxes = torch.zeros(batch_size, proposals, 4, device="meta")
        valid = torch.zeros(batch_size, proposals, dtype=torch.bool, device="meta")
        given.append(Proposals(boxes, boxes[..., 0], valid))
    model.detect(images, sizes, *given)


def _is_part(call: _Call) -> bool:
    if call.caller is None:
        return True
    return call.path.rpartition(".")[2] in _INNER and _is_part(call.caller)


def _parts(model: nn.Module, calls: list[_Call]) -> list[Part]:
    counted: set[nn.Parameter] = set()
    parts = []
    # An inner part has finished before the one around it, and has counted its own by then.
    for call in calls:
        inner = sum(other.flops for other in calls if other.caller is call)
        trainable, frozen = _count(call.module, counted)
        kind = type(call.module).__name__
        parts.append(Part(call.path, kind, call.shapes, trainable, frozen, call.flops - inner))
    trainable, frozen = _count(model, counted)
    if trainable or frozen:
        parts.append(Part(NOT_RUN, "", (), trainable, frozen, 0))
    return parts


def _count(module: nn.Module, counted: set[nn.Parameter]) -> tuple[int, int]:
    """Trainable and frozen parameters that are not in ``counted``, to which they are added."""
    new = [parameter for parameter in module.parameters() if parameter not in counted]
    counted.update(new)
    trainable = sum(parameter.numel() for parameter in new if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in new) - trainable


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))
