"""One Faster R-CNN made of an RPN and a Fast R-CNN that have the same convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from detector.engine.atomic_file import atomic_write
from detector.engine.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from detector.engine.run_directory import RunDirectory

SHARED = "backbone"


def unite(cfg: DictConfig, rpn_path: Path, fast_rcnn_path: Path, run: RunDirectory) -> None:
    """Writes ``last.pt`` and ``config.yaml`` of the network made of both.

    Args:
        cfg: of the Faster R-CNN.
        rpn_path: checkpoint of the RPN on the shared convolutions.
        fast_rcnn_path: checkpoint of the Fast R-CNN on them.
        run: where to write.
    """
    rpn, fast_rcnn = load_checkpoint(rpn_path), load_checkpoint(fast_rcnn_path)
    layers = {name: value for name, value in rpn["model"].items() if name.startswith("rpn.")}
    cfg = cfg.copy()
    cfg.num_classes = len(fast_rcnn["class_names"])
    with atomic_write(run.config) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    content = {
        "format": FORMAT,
        "model": fast_rcnn["model"] | layers,
        "config": OmegaConf.to_yaml(cfg),
        "class_names": fast_rcnn["class_names"],
        "category_ids": fast_rcnn["category_ids"],
        "step": rpn["step"] + fast_rcnn["step"],
    }
    save_checkpoint(run.last, content)


def check_shared(paths: Sequence[Path]) -> int:
    """Proves that checkpoints have the same shared convolutions, bit for bit.

    Returns:
        How many tensors were compared: weights, and statistics of norms.

    Raises:
        ValueError: they have not; names the checkpoints and the first tensor.
    """
    first = _shared_bits(paths[0])
    for path in paths[1:]:
        other = _shared_bits(path)
        for name in sorted(first.keys() | other.keys()):
            if name not in first or name not in other or not torch.equal(first[name], other[name]):
                raise ValueError(
                    f"{path} and {paths[0]} differ in {name}, which they should share: their "
                    "folders do not belong to one training. Delete all stages from the older on, "
                    "and go on with resume=auto"
                )
    return len(first)


def _shared_bits(path: Path) -> dict[str, Tensor]:
    weights = load_checkpoint(path)["model"]
    # Bytes: as numbers, 0 equals -0.
    return {
        name: value.contiguous().reshape(-1).view(torch.uint8)
        for name, value in weights.items()
        if name.startswith(f"{SHARED}.")
    }
