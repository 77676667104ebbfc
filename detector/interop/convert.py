"""Weights of any source as a checkpoint of ours, and ours as another package's state dict.

python tools/convert.py source=maskrcnn_resnet50_fpn_coco.pth output=mask.pt
python tools/convert.py source=mask.pt to=torchvision output=theirs.pth
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from omegaconf import DictConfig, OmegaConf

from detector.backbones.torchvision_weights import fetch_weights, is_torchvision
from detector.engine.assembly import plain
from detector.engine.atomic_file import atomic_write
from detector.engine.checkpoint import (
    FORMAT,
    REQUIRED,
    checkpoint_file,
    load_checkpoint,
    save_checkpoint,
)
from detector.engine.progress import open_console
from detector.interop import torchvision
from detector.interop.files import StateFile, read_state
from detector.interop.fitting import convert_state, nearest
from detector.interop.formats import READERS
from detector.interop.recipes import Reader, Recipe, compose_config
from detector.interop.writing import write_foreign


def convert(cfg: DictConfig) -> dict[str, Any]:
    """Reads ``source`` and writes ``output``.

    Args:
        cfg: composed from ``configs/convert.yaml``.

    Returns:
        What was written.

    Raises:
        FileNotFoundError, ValueError, OSError: see :func:`load_any` and
            :func:`detector.interop.writing.write_foreign`.
    """
    content = load_any(str(cfg.source), plain(cfg.overrides), plain(cfg.class_names))
    source, output = content.get("source", cfg.source), Path(cfg.output)
    if cfg.to is None:
        if not content["class_names"]:
            raise ValueError(
                f"{source} is an ImageNet network, not a detector: train from it with "
                f"model.backbone.weights={cfg.source}"
            )
        save_checkpoint(output, content)
        written: dict[str, Any] = content
    else:
        written = write_foreign(content, cfg.to, cfg.allow_code)
        with atomic_write(output) as file:
            if output.suffix == ".safetensors":
                file.write(safetensors.torch.save(written))
            else:
                torch.save(written, file)
    open_console().print(
        f"{source}: {len(content['model'])} tensors, {len(content['class_names'])} classes; "
        f"written to {output}",
        soft_wrap=True,
    )
    return written


def load_any(
    source: str | Path,
    overrides: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint of ours, whatever package ``source`` is of.

    Args:
        source: a checkpoint of ours or its run directory, a file of torchvision's, Detectron2's or
            timm's weights, or ``torchvision://NAME``.
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
        state = StateFile(fetch_weights(str(source)), "torch", entry, str(source))
    else:
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
    module, recipe = recognise(state)
    if class_names is not None:
        recipe = _renamed(recipe, class_names, state.path)
    recipe = recipe.with_overrides(overrides)
    return {
        "format": FORMAT,
        "model": convert_state(state, recipe, module),
        "config": OmegaConf.to_yaml(compose_config(recipe)),
        "class_names": list(recipe.class_names),
        "category_ids": list(recipe.category_ids),
        "step": 0,
        "source": f"{recipe.name}, {state.path}",
    }


def recognise(state: StateFile) -> tuple[Reader, Recipe]:
    """The package that a state dict is of, and its recipe.

    Raises:
        ValueError: it is of none.
    """
    for module in READERS.values():
        recipe = module.recognise(state)
        if recipe is not None:
            return module, recipe
    raise ValueError(f"{state.path} holds no model that is known here. {nearest(state)}")


def _renamed(recipe: Recipe, class_names: Sequence[str], path: str) -> Recipe:
    if len(class_names) != recipe.num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names, but {path} has {recipe.num_classes} "
            "classes besides the background"
        )
    return recipe.with_classes(class_names, recipe.category_ids)
