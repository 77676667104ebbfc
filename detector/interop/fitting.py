"""Whether a state dict is what a recipe's model takes; what is said where it is not."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from detector.engine.parts import build_without_memory
from detector.interop.files import StateFile
from detector.interop.formats import FORMATS
from detector.interop.key_rules import UnknownKeys
from detector.interop.recipes import Reader, Recipe, compose_config

# Differences that a message shows.
SHOWN = 6


def convert_state(state: StateFile, recipe: Recipe, module: Reader) -> dict[str, Tensor]:
    """Our state dict, of which every name and shape is the model's.

    The trunk of an ImageNet network may lack stages, which is nobody's mistake.

    Raises:
        ValueError: it does not fit; the message has the first names and shapes that differ and the
            nearest recipe.
    """
    expected = expected_state(recipe)
    try:
        model = module.to_ours(state, recipe)
    except UnknownKeys as error:
        problems = [f"{name}: no such name in {recipe.name}" for name in error.names]
    else:
        problems = _differences(model, expected, recipe, module)
        if not problems:
            return model
    listing = "\n  ".join(problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise ValueError(
        f"{state.path} looks like {recipe.name}, but does not fit it:\n  {listing}{more}\n"
        f"{nearest(state)}"
    )


def expected_state(recipe: Recipe) -> dict[str, Tensor]:
    """The state dict of the recipe's model without numbers, of its parts where it names some."""
    # An ImageNet network has no classes, and the number changes nothing in its parts.
    model = build_without_memory(compose_config(recipe), max(recipe.num_classes, 1))
    state = model.state_dict()
    if not recipe.parts:
        return state
    return {name: value for name, value in state.items() if name.startswith(recipe.parts)}


def _differences(
    model: Mapping[str, Tensor], expected: Mapping[str, Tensor], recipe: Recipe, module: Reader
) -> list[str]:
    """A line for each, in the order of the model."""

    def called(name: str) -> str:
        theirs = module.their_name(name, recipe)
        return name if theirs is None else f"{theirs} (here {name})"

    problems = []
    for name, value in expected.items():
        if name not in model:
            if not recipe.parts:
                problems.append(f"{called(name)}: missing, expected {tuple(value.shape)}")
        elif model[name].shape != value.shape:
            found, wanted = tuple(model[name].shape), tuple(value.shape)
            problems.append(f"{called(name)}: {found}, expected {wanted}")
    problems += [f"{called(name)}: not in the model" for name in model if name not in expected]
    return problems


@functools.cache
def _known_shapes() -> list[tuple[Recipe, dict[str, torch.Size]]]:
    """Of each known model their names and shapes; it takes seconds."""
    known = []
    for module in FORMATS.values():
        for recipe in module.known_recipes():
            theirs = module.from_ours(expected_state(recipe), compose_config(recipe))
            known.append((recipe, {name: value.shape for name, value in theirs.items()}))
    return known


def nearest(state: StateFile) -> str:
    """A sentence about the known model with most of the file's names and shapes."""
    best, most, size = None, 0, 0
    for recipe, shapes in _known_shapes():
        agreeing = sum(shapes.get(name) == value.shape for name, value in state.tensors.items())
        if agreeing > most:
            best, most, size = recipe, agreeing, len(shapes)
    count = len(state.tensors)
    if best is None:
        first = ", ".join(list(state.tensors)[:3]) or "nothing"
        return f"None of its {count} names is one of a known model's. It begins with {first}"
    return (
        f"The nearest recipe is {best.name}, which has {size} tensors; {most} of the file's "
        f"{count} agree with them in name and shape"
    )
