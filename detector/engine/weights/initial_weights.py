"""What a model begins with, and which parts of it stay so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detector.backbones.freezing import Freezable
from detector.backbones.torchvision_weights import find_weights, is_torchvision
from detector.backbones.weights import expected_pixels
from detector.data.index import AnnotationIndex
from detector.engine.checkpoint import checkpoint_file, load_checkpoint, load_weights
from detector.engine.weights.model_differences import model_differences
from detector.engine.weights.part_paths import find_part
from detector.engine.weights.weight_transfer import Transfer, transfer_weights
from detector.interop.convert import load_any

# Keys of the group that name no part of the model.
WHOLE = ("checkpoint", "match_names")


def initial_parts(init: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parts that begin with a checkpoint of their own, and which.

    Raises:
        ValueError: ``init`` is no group of settings.
    """
    if not isinstance(init, Mapping):
        raise ValueError(f"init={init}: in a file this is written init: {{checkpoint: {init}}}")
    for part, path in init.items():
        if part not in WHOLE and path is not None:
            yield part, str(path)


def begins_elsewhere(init: Mapping[str, Any]) -> bool:
    """Whether anything begins with a checkpoint."""
    return any(initial_parts(init)) or init.get("checkpoint") is not None


def check_initial_weights(
    model: DictConfig, init: Mapping[str, Any] | None = None, freeze: Sequence[str] = ()
) -> list[str]:
    """Looks at the settings alone: reading the data may take minutes.

    Args:
        model: the ``model`` group.
        init: the ``init`` group, see :func:`read_initial_checkpoint`, :func:`load_initial_parts`.
        freeze: see :func:`freeze_parts`.

    Returns:
        Sentences: if random values of the trunk are kept as they are, which rarely trains; if its
        weights were trained with other pixels; or if a setting has no effect.

    Raises:
        FileNotFoundError: there is no such weights file or checkpoint.
        ValueError: the weights file is damaged or unsafe.
    """
    init = init or {}
    parts = dict(initial_parts(init))
    for part, path in parts.items():
        try:
            checkpoint_file(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"init.{part}: {error}") from None
    warnings = []
    if init.get("match_names") and init.get("checkpoint") is None:
        warnings.append("init.match_names=true has no effect without init=CHECKPOINT")
    backbone = model.get("backbone") or {}
    if "weights" not in backbone:  # a trunk of the user's own
        return warnings
    if backbone["weights"] is not None:
        _check_weights_file(str(backbone["weights"]))
        warnings += _other_pixels(str(backbone["weights"]), model.get("normalizer") or {})
        if init.get("checkpoint") is not None:
            warnings.append(
                "both init and model.backbone.weights are given: where both have a tensor, init's "
                "is taken"
            )
        return warnings
    if "backbone" in parts or init.get("checkpoint") is not None:
        return warnings
    kept = []
    if backbone.get("norm") == "frozen_bn":
        kept.append(("norm=frozen_bn", "model.backbone.norm=bn"))
    if backbone.get("freeze_at"):
        kept.append((f"freeze_at={backbone['freeze_at']}", "model.backbone.freeze_at=0"))
    if "backbone" in freeze or "backbone.trunk" in freeze:
        kept.append((f"freeze=[{','.join(freeze)}]", "freeze=[]"))
    if not kept:
        return warnings
    settings = " and ".join(setting for setting, _ in kept)
    instead = " ".join(other for _, other in kept)
    return [
        *warnings,
        f"the trunk is random, since model.backbone.weights is not given, and {settings} "
        f"{'keep' if len(kept) > 1 else 'keeps'} it so; training may diverge. Give a weights file, "
        f"or set {instead}",
    ]


def _check_weights_file(weights: str) -> None:
    if is_torchvision(weights):
        find_weights(weights)
        return
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; check model.backbone.weights")


def _other_pixels(weights: str, normalizer: Mapping[str, Any]) -> list[str]:
    """A sentence if a trunk was trained with another mean or deviation of the pixels."""
    if not {"mean", "std"} <= normalizer.keys():
        return []
    expected = expected_pixels(weights)
    if expected is None:
        return []
    # Means of ImageNet by other counts, and rounded ones, are the same to a network.
    is_same = all(
        abs(own - value) <= tolerance
        for key, tolerance in (("mean", 2.0), ("std", 0.5))
        for own, value in zip(normalizer[key], getattr(expected, key), strict=True)
    )
    if is_same:
        return []
    mean, std = (
        ",".join(f"{value:.6g}" for value in values) for values in (expected.mean, expected.std)
    )
    return [
        f"{weights}: this network was trained with other pixels than model.normalizer gives it; "
        f"set model.normalizer.mean=[{mean}] model.normalizer.std=[{std}]"
    ]


def read_initial_checkpoint(init: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of the checkpoint that the whole model begins with.

    Args:
        init: the ``init`` group. ``checkpoint`` is whatever
            :func:`detector.interop.convert.load_any` reads, ``None`` for nothing.

    Raises:
        FileNotFoundError, ValueError: see there.
    """
    source = init.get("checkpoint")
    try:
        return None if source is None else load_any(str(source))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init.checkpoint: {error}") from None


def load_initial_checkpoint(
    model: nn.Module,
    content: Mapping[str, Any] | None,
    cfg: DictConfig,
    index: AnnotationIndex,
) -> Transfer | None:
    """Begins with whatever of a checkpoint has its place in the model.

    Args:
        model: a new one.
        content: of :func:`read_initial_checkpoint`.
        cfg: the whole configuration.
        index: of the training set, whose classes and keypoints are the model's.

    Returns:
        What was done, for :func:`detector.engine.weights.init_table.transfer_table`.

    Raises:
        ValueError: the checkpoint does not fit the model, and not for other classes.
    """
    if content is None:
        return None
    names = {"classes": index.category_names, "keypoints": index.keypoint_names}
    source = str(cfg.init.checkpoint)
    parts = {name.partition(".")[0] for name in content["model"]}
    differences = model_differences(content["config"], cfg, parts)
    try:
        transfer = transfer_weights(model, content, names, source, cfg.init.match_names)
    except ValueError as error:
        remedy = (
            f"Set what it was trained with: {'; '.join(differences)}"
            if differences
            else ("Choose the experiment, model and backbone that it was trained with")
        )
        raise ValueError(f"{error}\n{remedy}") from error
    if differences:
        shown = "; ".join(differences[:8]) + ("; ..." if len(differences) > 8 else "")
        transfer.warnings.append(f"the checkpoint was trained as another model: {shown}")
    return transfer


def load_initial_parts(model: nn.Module, init: Mapping[str, Any]) -> None:
    """Begins with parts of other trainings, whatever models those were.

    Args:
        model: such as a :class:`detector.rcnn.FastRCNN`.
        init: by the name of a part, the checkpoint (or run directory) that has its weights.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the model or the checkpoint has no such part, or they do not fit.
    """
    for part, path in initial_parts(init):
        own = find_part(model, part, f"init.{part}={path}")
        file = checkpoint_file(path)
        weights = load_checkpoint(file)["model"]
        prefix = f"{part}."
        state = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        if not state:
            there = ", ".join(dict.fromkeys(name.partition(".")[0] for name in weights))
            raise ValueError(f"init.{part}={path}: the checkpoint has no {part}, it has {there}")
        load_weights(own, state, f"init.{part}: {file}")


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Keeps parts of the model as they are: weights, and statistics of batch norms.

    Args:
        model: a detector of :mod:`detector.rcnn`, or one of one's own that is ``Freezable``.
        parts: dotted paths such as ``backbone`` or ``backbone.trunk.layer1``.

    Raises:
        ValueError: the model has no such part.
    """
    if not parts:
        return
    setting = f"freeze=[{','.join(parts)}]"
    modules = [find_part(model, part, setting) for part in parts]
    if not isinstance(model, Freezable):
        raise ValueError(
            f"{setting}, but {type(model).__name__} cannot freeze parts; let it inherit "
            "detector.backbones.freezing.Freezable"
        )
    model.freeze_modules(modules)


def random_and_frozen(model: nn.Module, transfer: Transfer) -> list[str]:
    """A sentence if parameters that a checkpoint did not give do not learn either."""
    random = {*transfer.missing, *transfer.reinitialised}
    kept = [n for n, p in model.named_parameters() if n in random and not p.requires_grad]
    if not kept:
        return []
    more = ", ..." if len(kept) > 3 else ""
    return [
        f"{len(kept)} tensors begin with random values and are frozen, so that they stay random: "
        f"{', '.join(kept[:3])}{more}; see freeze and model.backbone.freeze_at"
    ]
