"""Weights of any source as a checkpoint of ours, and ours as another package's state dict.

python tools/convert.py source=maskrcnn_resnet50_fpn_coco.pth output=mask.pt
python tools/convert.py source=mask.pt output=theirs.pth to=torchvision
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from detector.backbones.torchvision_weights import fetch_weights, is_torchvision
from detector.engine.checkpoint import (
    FORMAT,
    REQUIRED,
    checkpoint_file,
    load_checkpoint,
)
from detector.engine.parts import build_without_memory
from detector.interop import detectron2, torchvision
from detector.interop.files import StateFile, read_state
from detector.interop.key_rules import UnknownKeys
from detector.interop.recipes import Format, Recipe, compose_config

logger = logging.getLogger(__name__)

# In the order in which they are asked.
FORMATS: dict[str, Format] = {"torchvision": torchvision, "detectron2": detectron2}


def load_any(
    source: str | Path,
    overrides: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint of ours, whatever package ``source`` is of.

    Args:
        source: a checkpoint of ours or its run directory, a file of torchvision's or Detectron2's
            weights, or ``torchvision://NAME``.
        overrides: of the configuration that is recognised, such as
            ``model.box_branch.detections.score_threshold=0.3``; not for checkpoints of ours.
        class_names: of label 0, 1, ... where the file does not name them.

    Returns:
        ``format``, ``model``, ``config``, ``class_names``, ``category_ids`` and ``step`` as
        :mod:`detector.engine.checkpoint` has them, and ``source``, the name of what it was. Of an
        ImageNet network ``model`` has the trunk alone, and ``class_names`` is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, unsafe or of no known kind, or does not fit the model that
            it is recognised as; the message has the first names and shapes that differ and the
            nearest recipe.
        OSError: the weights are neither here nor to be fetched.
    """
    if is_torchvision(source):
        entry = {torchvision.WEIGHTS: str(source)}
        return _from_foreign(
            StateFile(fetch_weights(str(source)), "torch", entry, str(source)),
            overrides,
            class_names,
        )
    path = Path(source).expanduser()
    if path.is_dir():
        path = checkpoint_file(path)
    state = read_state(path)
    if all(key in state.metadata for key in REQUIRED if key != "model"):
        if overrides or class_names:
            raise ValueError(
                f"{path} is a checkpoint of this package, which brings its configuration and "
                "classes; leave overrides and class_names out"
            )
        return load_checkpoint(path)
    return _from_foreign(state, overrides, class_names)


def _from_foreign(
    state: StateFile, overrides: Sequence[str], class_names: Sequence[str] | None
) -> dict[str, Any]:
    for module in FORMATS.values():
        recipe = module.recognise(state)
        if recipe is not None:
            break
    else:
        raise ValueError(f"{state.path} holds no model that is known here. {nearest(state)}")
    if class_names is not None:
        recipe = _renamed(recipe, class_names, state.path)
    recipe = recipe.with_overrides(overrides)
    config = compose_config(recipe)
    model = _converted(state, recipe, module)
    logger.info("%s: %s, %d classes", state.path, recipe.name, recipe.num_classes)
    return {
        "format": FORMAT,
        "model": model,
        "config": OmegaConf.to_yaml(config),
        "class_names": list(recipe.class_names),
        "category_ids": list(recipe.category_ids),
        "step": 0,
        "source": f"{recipe.name}, {state.path}",
    }


def _renamed(recipe: Recipe, class_names: Sequence[str], path: str) -> Recipe:
    if len(class_names) != recipe.num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names, but {path} has {recipe.num_classes} "
            "classes besides the background"
        )
    return recipe.with_classes(class_names, recipe.category_ids)


def _converted(state: StateFile, recipe: Recipe, module: Format) -> dict[str, Tensor]:
    """Our state dict, of which every name and shape is the model's.

    Raises:
        ValueError: it does not fit.
    """
    expected = expected_state(recipe)
    try:
        model, unknown = module.to_ours(state, recipe), []
    except UnknownKeys as error:
        model, unknown = {}, error.names
    problems = [f"{name}: no such name in {recipe.name}" for name in unknown]
    if not unknown:
        problems = _differences(model, expected, recipe, module)
    if problems:
        listing = "\n  ".join(problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(
            f"{state.path} looks like {recipe.name}, but does not fit it:\n  {listing}{more}\n"
            f"{nearest(state)}"
        )
    return model


def expected_state(recipe: Recipe) -> dict[str, Tensor]:
    """The state dict of the recipe's model without numbers, of its parts where it names some."""
    # An ImageNet network has no classes, and the number changes nothing in its parts.
    config = compose_config(recipe)
    model = build_without_memory(config, max(recipe.num_classes, 1))
    state = model.state_dict()
    if not recipe.parts:
        return state
    return {name: value for name, value in state.items() if name.startswith(recipe.parts)}


def _differences(
    model: Mapping[str, Tensor], expected: Mapping[str, Tensor], recipe: Recipe, module: Format
) -> list[str]:
    """What differs, in the order of the model; the trunk of an ImageNet network may lack stages."""

    def called(name: str) -> str:
        theirs = module.their_name(name, recipe)
        return name if theirs is None else f"{theirs} (here {name})"

    problems = []
    for name, value in expected.items():
        if name not in model:
            if not recipe.parts:
                problems.append(f"{called(name)}: missing, expected {tuple(value.shape)}")
        elif model[name].shape != value.shape:
            problems.append(
                f"{called(name)}: {tuple(model[name].shape)}, expected {tuple(value.shape)}"
            )
    problems += [f"{called(name)}: not in the model" for name in model if name not in expected]
    return problems


def nearest(state: StateFile) -> str:
    """A sentence about the known model with most of the file's names and shapes."""
    best, best_agreeing, best_count = None, 0, 0
    for module in FORMATS.values():
        for recipe in module.known_recipes():
            expected = module.from_ours(expected_state(recipe), compose_config(recipe))
            agreeing = sum(
                name in expected and expected[name].shape == value.shape
                for name, value in state.tensors.items()
            )
            if agreeing > best_agreeing:
                best, best_agreeing, best_count = recipe, agreeing, len(expected)
    if best is None:
        first = ", ".join(list(state.tensors)[:3]) or "nothing"
        return f"None of its {len(state.tensors)} names is one of a known model's: {first}, ..."
    return (
        f"The nearest is {best.name}, with which {best_agreeing} of the file's "
        f"{len(state.tensors)} tensors agree in name and shape; it has {best_count}"
    )
