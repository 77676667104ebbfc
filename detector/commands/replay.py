"""A training step that went wrong, kept in a file and taken again.

A replay file is a ``torch.save`` file of plain tensors, numbers and text, readable with
``torch.load(path, weights_only=True)``:

    replay          1, its format
    config          YAML text of the configuration, as in a checkpoint
    class_names, category_ids   likewise
    model           weights and batch statistics before the step
    batches         the step's batches: dicts of tensors, see :class:`detector.structures.Batch`
    seed, step      finished steps; all random numbers of the step follow from the two
    loss_scale      of fp16, else None
    losses          what the step gave, with ``gradient_norm``
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import Tensor

from detector.engine import assembly
from detector.engine.atomic_file import atomic_write
from detector.engine.checkpoint import checkpoint_config, load_weights
from detector.engine.first_nonfinite import FirstNonFinite
from detector.engine.loss_window import NonFiniteLoss
from detector.engine.progress import open_console
from detector.engine.randomness import set_deterministic
from detector.engine.step_guard import StepGuard
from detector.engine.stopwatch import Stopwatch
from detector.engine.training_state import TrainingState
from detector.engine.training_step import TrainingStep
from detector.engine.weights.initial_weights import freeze_parts
from detector.structures import Batch, Polygons, Proposals, Targets

FORMAT = 1
_NESTED = {"targets": Targets, "polygons": Polygons, "proposals": Proposals}


class ReplayFile:
    """Within the ``with`` block a :class:`NonFiniteLoss` leaves a replay file.

    The batches are made again: they follow from their position. Nothing is kept in the meantime.

    Args:
        path: where to.
        state: of the training; its weights are those before the bad step, which
            :class:`detector.engine.step_guard.StepGuard` sees to.
        described: ``config``, ``class_names``, ``category_ids``.
        seed: of the training.
        accumulate: batches of a step.
    """

    def __init__(
        self,
        path: Path,
        state: TrainingState,
        described: dict[str, Any],
        seed: int,
        accumulate: int,
    ) -> None:
        self.path = path
        self._state = state
        self._described = described
        self._seed = seed
        self._accumulate = accumulate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, NonFiniteLoss):
            return
        try:
            self.write(error)
        except OSError as reason:
            raise error.extended(f"{self.path} could not be written ({reason})") from error
        raise error.extended(
            f"To find the module it comes from: python tools/replay.py file={self.path}"
        ) from error

    def write(self, error: NonFiniteLoss) -> None:
        """Writes the file of the step that ``error`` names."""
        loader = self._state.loader
        batches = loader.batches_at(error.position, self._accumulate, every_rank=True)
        kept = {key: self._described[key] for key in ("config", "class_names", "category_ids")}
        scaler = self._state.scaler
        content = {
            "replay": FORMAT,
            **kept,
            "model": self._state.model.state_dict(),
            "batches": [_plain(batch) for batch in batches],
            "seed": self._seed,
            "step": error.step - 1,
            "loss_scale": scaler.get_scale() if scaler else None,
            "losses": error.losses,
        }
        with atomic_write(self.path) as file:
            torch.save(content, file)


def load_replay(path: str | Path) -> dict[str, Any]:
    """Reads a replay file to the CPU; ``batches`` are of :class:`detector.structures.Batch`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or of another kind.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "replay.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; a training that meets a non-finite loss writes <run_dir>/replay.pt"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for cut off, foreign and unsafe files
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); train again") from error
    if not isinstance(content, dict) or content.get("replay") != FORMAT:
        raise ValueError(f"{path} is no replay file of this version; give a run_dir's replay.pt")
    content["batches"] = [_structure(Batch, batch) for batch in content["batches"]]
    return content


def replay(cfg: DictConfig) -> dict[str, Any]:
    """Takes the step again, and says where its first non-finite value comes from.

    Args:
        cfg: composed from ``configs/replay.yaml``, which explains every key.

    Returns:
        ``losses``, ``bit_equal`` (whether they are those of the training), ``found`` (a sentence)
        and ``module``, the last two ``None`` if everything is finite.

    Raises:
        FileNotFoundError, ValueError: what the user has to put right.
    """
    content = load_replay(cfg.file)
    config = checkpoint_config(content, cfg.allow_code)
    runtime = assembly.build(config.runtime if cfg.runtime is None else cfg.runtime)
    runtime.apply()
    set_deterministic(bool(config.get("deterministic", False)))
    model = runtime.place(assembly.build(config.model))
    model.train()
    freeze_parts(model, config.get("freeze", ()))
    load_weights(model, content["model"], cfg.file)
    optimizer = assembly.build(config.optimizer)(model)
    guard = StepGuard(model, optimizer, scaler=runtime.loss_scaler(content["loss_scale"]))
    step = TrainingStep(model, optimizer, runtime, guard, content["seed"])

    with FirstNonFinite(model) as watch:
        stopwatch = Stopwatch(runtime.torch_device)
        found = step.backward(content["batches"], content["step"], stopwatch, watch.losses)
    found["gradient_norm"] = step.gradient_norm()
    losses = {name: value.float().item() for name, value in found.items()}

    recorded = content["losses"]
    same = {name: _bits(value) == _bits(recorded[name]) for name, value in losses.items()}
    console = open_console()
    console.print(f"step {content['step'] + 1} of {cfg.file}, on {runtime.device}")
    for name, value in losses.items():
        note = "the same bits" if same[name] else f"the training had {recorded[name]:.9g}"
        console.print(f"  {name:<24} {value:<14.9g} {note}")
    ids = [image for batch in content["batches"] for image in batch.image_ids.tolist()]
    console.print(f"images {ids}", soft_wrap=True)
    console.print(watch.found or "every output and gradient is finite", soft_wrap=True)
    return {
        "losses": losses,
        "bit_equal": all(same.values()),
        "found": watch.found,
        "module": watch.module,
    }


def _bits(value: float) -> bytes:
    # NaNs are the same whatever their sign: which one an operation gives says nothing.
    return b"nan" if value != value else struct.pack("f", value)


def _plain(structure: Any) -> dict[str, Any]:
    values = {f.name: getattr(structure, f.name) for f in dataclasses.fields(structure)}
    return {
        name: _plain(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
    }


def _structure(kind: type, values: dict[str, Any]) -> Any:
    parts: dict[str, Tensor | Any] = {
        name: _structure(_NESTED[name], value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return kind(**parts)
