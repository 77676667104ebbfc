"""One side of a comparison of whole detectors: a model that trains or detects, and its laps.

Every side has the same functions, so that what is measured does not know whose model it is:
``step`` takes one step or detects in one batch, ``work`` says how much of it there was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detector.benchmark.model_workload import Workload
from detector.engine.acceleration import build_step
from detector.engine.assembly import build
from detector.engine.inference import detect
from detector.engine.stopwatch import Stopwatch
from detector.interop.recipes import compose_config
from detector.ops.masks import paste_masks
from detector.structures import Batch, Detections

# So small that the weights, and with them the work, stay as they are.
LEARNING_RATE = 1e-7
OPTIMIZER = ("optimizer=sgd", f"optimizer.lr={LEARNING_RATE}")

Found = list[dict[str, Tensor]]


class Ours:
    """Our model: training by the step that ``tools/train.py`` takes.

    Args:
        workload: what to run.
        settings: of ``configs/train.yaml``: ``runtime=auto``, ...
        trains: or detects.
        say: is told what the runtime does.
    """

    def __init__(
        self,
        workload: Workload,
        settings: Sequence[str],
        trains: bool,
        say: Callable[[str], None] = print,
    ) -> None:
        config = compose_config(workload.recipe().with_overrides([*OPTIMIZER, *settings]))
        if trains:
            self.runtime, self.model, self._step = build_step(config, say)
        else:
            self.runtime = build(config.runtime)
            self.runtime.apply()
            self.model = self.runtime.place(build(config.model)).eval()
        self.model.load_state_dict(workload.state)
        self.device = self.runtime.torch_device
        on_gpu = self.device.type == "cuda"
        self.batches = [batch.pin_memory() if on_gpu else batch for batch in workload.batches]
        self.trains = trains
        self.num_steps = 0

    def step(self, number: int, stopwatch: Stopwatch) -> Tensor | Found:
        """The loss of a training step on the batch of this number, or what is found in it."""
        batch = self.batches[number % len(self.batches)]
        stopwatch.start()
        if self.trains:
            losses = self._step([batch], self.num_steps, stopwatch)
            self.num_steps += 1
            return losses["loss"]
        found = detect(self.model, batch, self.runtime)
        stopwatch.lap("network")
        pasted = _paste(found, batch)
        stopwatch.lap("paste")
        return pasted

    def run_eagerly(self, number: int) -> None:
        """Forward and backward, or detection, for counts alone."""
        batch = self.runtime.move(self.batches[number % len(self.batches)])
        if not self.trains:
            detect(self.model, batch, self.runtime)
            return
        with self.runtime.autocast():
            losses = self.model(batch.images, batch.image_sizes, batch.targets)
        sum(losses.values()).backward()

    def stages(self) -> dict[str, nn.Module]:
        """What ends a stage of detection when it has run, by the stage's name."""
        return {
            "backbone": self.model.backbone,
            "rpn": self.model.rpn.test_proposals,
            "box": self.model.box_branch.detections,
        }

    def poolers(self) -> dict[str, nn.Module]:
        """By branch, what pools its RoIs; its second argument is their boxes."""
        branches = {"box": self.model.box_branch}
        if self.model.has_masks:
            branches["mask"] = self.model.mask_branch
        return {name: branch.pooler for name, branch in branches.items()}


class Theirs:
    """A peer's model, with the optimiser of its reference training.

    Args:
        peer: such as :mod:`detector.benchmark.torchvision_peer`.
        workload: what to run.
        device: on which.
        bf16: autocast to bfloat16 and channels_last memory, else float32 and contiguous.
        trains: or detects.
    """

    def __init__(
        self, peer: ModuleType, workload: Workload, device: torch.device, bf16: bool, trains: bool
    ) -> None:
        self.peer = peer
        self.device = device
        self.bf16 = bf16
        self.trains = trains
        self.model = peer.build(workload).to(device).train(trains)
        if bf16:
            self.model = self.model.to(memory_format=torch.channels_last)
        with_masks = workload.network.startswith("mask")
        self.inputs = [peer.make_inputs(batch, with_masks) for batch in workload.batches]
        if device.type == "cuda":
            self.inputs = [peer.pin(inputs) for inputs in self.inputs]
        self.optimizer = peer.make_optimizer(self.model, LEARNING_RATE) if trains else None

    def step(self, number: int, stopwatch: Stopwatch) -> Tensor | Found:
        """As :meth:`Ours.step`."""
        inputs = self.inputs[number % len(self.inputs)]
        stopwatch.start()
        moved = self.peer.move(inputs, self.device)
        stopwatch.lap("data")
        if not self.trains:
            with torch.inference_mode(), self._autocast():
                found = self.peer.detect(self.model, moved)
            stopwatch.lap("network")
            return found
        with self._autocast():
            losses = self.peer.losses(self.model, moved)
            total = sum(losses.values())
        stopwatch.lap("forward")
        self.optimizer.zero_grad()
        total.backward()
        stopwatch.lap("backward")
        self.optimizer.step()
        stopwatch.lap("update")
        return total.detach()

    def run_eagerly(self, number: int) -> None:
        """As :meth:`Ours.run_eagerly`."""
        inputs = self.peer.move(self.inputs[number % len(self.inputs)], self.device)
        if not self.trains:
            with torch.inference_mode(), self._autocast():
                self.peer.detect(self.model, inputs)
            return
        with self._autocast():
            total = sum(self.peer.losses(self.model, inputs).values())
        total.backward()

    def stages(self) -> dict[str, nn.Module]:
        """As :meth:`Ours.stages`."""
        return self.peer.stages(self.model)

    def poolers(self) -> dict[str, nn.Module]:
        """As :meth:`Ours.poolers`."""
        return self.peer.poolers(self.model)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


Side = Ours | Theirs


def work_of(side: Side) -> dict[str, Any]:
    """What one run does: ``flops`` of convolutions and matrix products, ``pooled`` RoIs by branch,
    all per image of the first batch."""
    pooled: dict[str, int] = {}

    def count(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            boxes = inputs[1]
            pooled[name] = len(boxes) if isinstance(boxes, Tensor) else sum(map(len, boxes))

        return hook

    hooks = [m.register_forward_pre_hook(count(name)) for name, m in side.poolers().items()]
    counter = FlopCounterMode(display=False)
    with torch.compiler.set_stance("force_eager"), counter:  # compiled kernels are not counted
        side.run_eagerly(0)
    for hook in hooks:
        hook.remove()
    num_images = _num_images(side)
    return {
        "flops": counter.get_total_flops() / num_images,
        "pooled": {name: number / num_images for name, number in pooled.items()},
    }


@contextmanager
def lapped(side: Side, stopwatch: Stopwatch) -> Iterator[None]:
    """Detection whose laps are its stages: backbone, RPN, box and mask branch."""

    def lap(name: str) -> Callable:
        def hook(*_) -> None:
            stopwatch.lap(name)

        return hook

    found = side.stages()
    last = found.pop("second stage", None)
    hooks = [module.register_forward_hook(lap(name)) for name, module in found.items()]
    if last is not None:
        # The box branch ends where the mask branch begins to pool.
        mask = side.poolers().get("mask")
        if mask is not None:
            hooks.append(mask.register_forward_pre_hook(lap("box")))
        hooks.append(last.register_forward_hook(lap("mask" if mask is not None else "box")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _num_images(side: Side) -> int:
    if isinstance(side, Ours):
        return len(side.batches[0].images)
    first = side.inputs[0]
    return len(first[0] if isinstance(first, tuple) else first)


def _paste(found: Detections, batch: Batch) -> Found:
    """The filled slots of each image, their masks pasted into it, which the peers do in their
    models."""
    results = []
    height, width = batch.images.shape[2:]
    for number, valid in enumerate(found.valid):
        result = {name: getattr(found, name)[number, valid] for name in ("boxes", "scores")}
        result["labels"] = found.labels[number, valid]
        if found.masks is not None:
            masks = found.masks[number, valid].float()
            result["masks"] = paste_masks(masks, result["boxes"], height, width)
        results.append(result)
    return results


def as_arrays(found: Found) -> list[dict[str, np.ndarray]]:
    """Without masks, to be compared elsewhere."""
    names = ("boxes", "scores", "labels")
    return [{name: one[name].float().cpu().numpy() for name in names} for one in found]
