"""Loading pretrained trunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from detector.backbones.torchvision_weights import fetch_weights, find_weights, is_torchvision
from detector.interop.detectron2_networks import Conventions, imagenet_network
from detector.interop.files import read_state

logger = logging.getLogger(__name__)

# The classifier of an ImageNet network, which a detector has no use for.
CLASSIFIER = ("fc.", "classifier.", "head.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weights file of any kind, or ``torchvision://NAME``, without running its code.

    An ImageNet network of Detectron2's gets torchvision's names, and its first convolution takes
    red, green and blue in this order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds anything but tensors by name.
    """
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict[str, Tensor], Conventions | None]:
    """Tensors, and of a network of Detectron2's what it expects."""
    if is_torchvision(path):
        return fetch_weights(str(path)), None
    try:
        file = read_state(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; check model.backbone.weights") from error
    network = imagenet_network(file)
    return (file.tensors, None) if network is None else (network.tensors, network.conventions)


def expected_pixels(path: str | Path) -> Conventions | None:
    """What a network expects of its pixels, where its file or torchvision's catalogue says so.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_state_dict`; nothing is fetched.
    """
    if not is_torchvision(path):
        return _read(path)[1]
    preset = find_weights(str(path)).transforms()
    if not hasattr(preset, "mean"):  # of a detector
        return None
    mean, std = (tuple(255 * x for x in values) for values in (preset.mean, preset.std))
    return Conventions(mean, std, bgr=False)


def _check_stride(module: nn.Module, path: str | Path, conventions: Conventions | None) -> None:
    own = getattr(module, "stride_in_1x1", None)
    if conventions is not None and own not in (None, conventions.stride_in_1x1):
        raise ValueError(
            f"{path}: this network strides in its {'1x1' if own is False else '3x3'} convolutions "
            f"and wants other pixels than torchvision's; set {' '.join(conventions.overrides)}"
        )


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
        ValueError: shapes differ, names are unknown, nothing matches at all, or a network of
            Detectron2's strides elsewhere than the backbone's ``stride_in_1x1`` says.
    """
    left_behind = (*CLASSIFIER, *ignore)
    state, conventions = _read(path)
    _check_stride(backbone, path, conventions)
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
    state, conventions = _read(path)
    _check_stride(part, path, conventions)
    for name, value in state.items():
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
