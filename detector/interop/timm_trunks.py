"""timm's ImageNet networks as trunks.

Hundreds of networks have files of the same names, so that the network is named by its files:
``config.json`` beside the weights, as timm publishes them, or the beginning of the file's name,
``convnext_tiny.in12k_ft_in1k.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from detector.backbones.timm_trunk import network_names
from detector.interop.files import StateFile
from detector.interop.key_rules import UnknownKeys
from detector.interop.recipes import Recipe

PREFIX = "backbone.trunk.network."
NAME = "timm "
# Images of any size; see detector.backbones.timm_trunk.TimmTrunk.
SWIN = {"strict_img_size": False, "always_partition": True}


def recognise(state: StateFile) -> Recipe | None:
    """The recipe of a network whose file says which it is; ``None`` without timm."""
    try:
        import timm
    except ImportError:
        return None
    name = _network_name(Path(state.path), timm.is_model)
    if name is None:
        return None
    pixels = timm.get_pretrained_cfg(name)
    overrides = ["model=faster_rcnn_fpn", "backbone=timm_fpn", f"model.backbone.name={name}"]
    if name.startswith("swin"):
        options = ",".join(f"{key}:{str(value).lower()}" for key, value in SWIN.items())
        overrides.append(f"model.backbone.options={{{options}}}")
    if pixels is not None:
        for key in ("mean", "std"):
            values = ",".join(f"{255 * value:.7g}" for value in getattr(pixels, key))
            overrides.append(f"model.normalizer.{key}=[{values}]")
    return Recipe(f"{NAME}{name}", tuple(overrides), parts=(PREFIX,))


def to_ours(state: StateFile, recipe: Recipe) -> dict[str, Tensor]:
    """Our trunk's state dict; the classifier and stages behind the trunk's are left out.

    Raises:
        UnknownKeys: names that the network does not have.
    """
    names = _names(recipe)
    unknown = [name for name in state.tensors if name not in names]
    if unknown:
        raise UnknownKeys(unknown)
    return {
        PREFIX + ours: value
        for name, value in state.tensors.items()
        if (ours := names[name]) is not None
    }


def their_name(name: str, recipe: Recipe) -> str | None:
    """timm's name of our ``name``."""
    ours = name.removeprefix(PREFIX)
    return next((theirs for theirs, own in _names(recipe).items() if own == ours), None)


def _names(recipe: Recipe) -> dict[str, str | None]:
    name = recipe.name.removeprefix(NAME)
    return network_names(name, SWIN if name.startswith("swin") else {})


def _network_name(path: Path, is_model: Callable[[str], bool]) -> str | None:
    candidates = [path.name.partition(".")[0], path.name.partition("-")[0]]
    try:
        config = json.loads((path.parent / "config.json").read_text())
        candidates.insert(0, str(config["architecture"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # another program's, or none
    return next((name for name in candidates if is_model(name)), None)
