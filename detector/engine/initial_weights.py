"""What a trunk begins from, looked at before the data is read."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig


def check_initial_weights(model: DictConfig) -> list[str]:
    """Looks at the trunk's settings alone: reading the data may take minutes.

    Args:
        model: the ``model`` group.

    Returns:
        A sentence if random values are kept as they are, which rarely trains.

    Raises:
        FileNotFoundError: there is no such weights file.
    """
    backbone = model.get("backbone") or {}
    if "weights" not in backbone:  # a trunk of the user's own
        return []
    if backbone["weights"] is not None:
        path = Path(str(backbone["weights"])).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights file; check model.backbone.weights")
        return []
    kept = []
    if backbone.get("norm") == "frozen_bn":
        kept.append(("norm=frozen_bn", "norm=bn"))
    if backbone.get("freeze_at"):
        kept.append((f"freeze_at={backbone['freeze_at']}", "freeze_at=0"))
    if not kept:
        return []
    settings = " and ".join(setting for setting, _ in kept)
    instead = " ".join(f"model.backbone.{other}" for _, other in kept)
    return [
        f"the trunk is random, since model.backbone.weights is not given, and {settings} "
        f"{'keep' if len(kept) > 1 else 'keeps'} it so; training may diverge. Give a weights file, "
        f"or set {instead}"
    ]
