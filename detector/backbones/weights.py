"""Loading pretrained trunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# The classifier of an ImageNet network, which a detector has no use for.
CLASSIFIER = ("fc.", "classifier.", "head.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, or of a ``.pth``/``.pt`` file without running its code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds anything but tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; check model.backbone.weights")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many kinds for a damaged file
        raise ValueError(
            f"{path}: not a readable weights file ({error}); fetch it again"
        ) from error
    if isinstance(state, dict):
        state = state.get("model", state)
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds {type(state).__name__}, expected tensors by name")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a plain state dict of tensors by name")
    return state


def load_backbone_weights(
    backbone: nn.Module, path: str | Path, ignore: Sequence[str] = ()
) -> None:
    """Copies a state dict into ``backbone`` and reports what it did not find.

    A file may lack parameters (they keep their random values and are named in a warning), but what
    it has must fit.

    Args:
        backbone: with the file's names.
        path: of the weights file.
        ignore: beginnings of names that the backbone has no use for, besides the classifier's:
            ``layer4.`` where it ends before.

    Raises:
        ValueError: shapes differ, names are unknown, or nothing matches at all.
    """
    left_behind = (*CLASSIFIER, *ignore)
    state = read_state_dict(path)
    copy_weights(
        backbone, {n: value for n, value in state.items() if not n.startswith(left_behind)}, path
    )


def load_part_weights(part: nn.Module, path: str | Path, prefixes: Mapping[str, str]) -> None:
    """Copies a part of an ImageNet network's state dict into a part of a detector.

    Args:
        part: such as a RoI head.
        path: of the whole network's file.
        prefixes: beginnings of the names to take, and what stands for them in ``part``:
            ``{"classifier.0.": "fc6."}``.

    Raises:
        ValueError: shapes differ, names are unknown, or the file has no such names.
    """
    renamed = {}
    for name, value in read_state_dict(path).items():
        for prefix, own in prefixes.items():
            if name.startswith(prefix):
                renamed[own + name.removeprefix(prefix)] = value
    if not renamed:
        raise ValueError(
            f"{path}: has no {' or '.join(f'{prefix}*' for prefix in prefixes)}, which this part "
            "of the model starts from; give the file of the whole network"
        )
    copy_weights(part, renamed, path)


def copy_weights(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copies ``state``, read from ``path``, into ``module`` and reports what it did not find.

    Raises:
        ValueError: shapes differ, names are unknown, or nothing matches at all; nothing is copied.
    """
    state = {n: value for n, value in state.items() if not n.endswith("num_batches_tracked")}
    own = {
        name: value
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    unknown = [name for name in state if name not in own]
    differing = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in state
        if name in own and state[name].shape != own[name].shape
    ]
    problems = differing + [f"{name}: not in the model" for name in unknown]
    if problems or not state:
        listing = "\n  ".join(problems[:8]) or "the file holds no backbone parameters"
        raise ValueError(
            f"{path}: does not fit this backbone\n  {listing}\n"
            f"  ({len(problems)} of {len(state)} entries differ; is model.backbone.name the "
            "network the file was made for?)"
        )
    missing = [name for name in own if name not in state]
    module.load_state_dict(state, strict=False)
    logger.info("%s: %d of %d tensors loaded", path, len(state), len(own))
    if missing:
        logger.warning(
            "%s lacks %d of %d tensors, which start from random values (is model.backbone.name the "
            "network the file was made for?): %s%s",
            path,
            len(missing),
            len(own),
            ", ".join(missing[:24]),
            "" if len(missing) <= 24 else ", ...",
        )
