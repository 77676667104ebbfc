"""What a model begins from, and which parts of it stay so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from detector.backbones.freezing import Freezable
from detector.engine.checkpoint import checkpoint_file, load_checkpoint, load_weights


def check_initial_weights(
    model: DictConfig, init: Mapping[str, str | None] | None = None, frozen: Sequence[str] = ()
) -> list[str]:
    """Looks at the settings alone: reading the data may take minutes.

    Args:
        model: the ``model`` group.
        init: see :func:`load_initial_parts`.
        frozen: see :func:`freeze_parts`.

    Returns:
        A sentence if random values of the trunk are kept as they are, which rarely trains.

    Raises:
        FileNotFoundError: there is no such weights file or checkpoint.
    """
    init = init or {}
    for path in init.values():
        if path is not None:
            checkpoint_file(str(path))
    backbone = model.get("backbone") or {}
    if "weights" not in backbone:  # a trunk of the user's own
        return []
    if backbone["weights"] is not None:
        path = Path(str(backbone["weights"])).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights file; check model.backbone.weights")
        return []
    if init.get("backbone") is not None:
        return []
    kept = []
    if backbone.get("norm") == "frozen_bn":
        kept.append(("norm=frozen_bn", "model.backbone.norm=bn"))
    if backbone.get("freeze_at"):
        kept.append((f"freeze_at={backbone['freeze_at']}", "model.backbone.freeze_at=0"))
    if "backbone" in frozen:
        kept.append((f"frozen=[{','.join(frozen)}]", "frozen=[]"))
    if not kept:
        return []
    settings = " and ".join(setting for setting, _ in kept)
    instead = " ".join(other for _, other in kept)
    return [
        f"the trunk is random, since model.backbone.weights is not given, and {settings} "
        f"{'keep' if len(kept) > 1 else 'keeps'} it so; training may diverge. Give a weights file, "
        f"or set {instead}"
    ]


def load_initial_parts(model: nn.Module, init: Mapping[str, str | None]) -> None:
    """Begins with parts of other trainings, whatever models those were.

    Args:
        model: such as a :class:`detector.rcnn.FastRCNN`.
        init: by the name of a part, the checkpoint (or run directory) that has its weights.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the model or the checkpoint has no such part, or they do not fit.
    """
    for part, path in init.items():
        if path is None:
            continue
        _check_part(model, part, f"init.{part}={path}")
        file = checkpoint_file(str(path))
        weights = load_checkpoint(file)["model"]
        prefix = f"{part}."
        state = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        if not state:
            there = ", ".join(dict.fromkeys(name.partition(".")[0] for name in weights))
            raise ValueError(f"init.{part}={path}: the checkpoint has no {part}, it has {there}")
        load_weights(getattr(model, part), state, f"init.{part}: {file}")


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Keeps parts of the model as they are: weights, and statistics of batch norms.

    Args:
        model: a detector of :mod:`detector.rcnn`, or one of one's own that is ``Freezable``.
        parts: names such as ``backbone``.

    Raises:
        ValueError: the model has no such part.
    """
    if not parts:
        return
    for part in parts:
        _check_part(model, part, f"frozen=[{','.join(parts)}]")
    if not isinstance(model, Freezable):
        raise ValueError(
            f"frozen=[{','.join(parts)}], but {type(model).__name__} cannot freeze parts; let it "
            "inherit detector.backbones.freezing.Freezable"
        )
    model.freeze_modules(getattr(model, part) for part in parts)


def _check_part(model: nn.Module, part: str, setting: str) -> None:
    parts = dict(model.named_children())
    if part not in parts:
        raise ValueError(
            f"{setting}: {type(model).__name__} has no part {part}, it has {', '.join(parts)}"
        )
