"""Writes the proposals of a checkpoint's RPN to a file, for a Fast R-CNN to be trained on.

python tools/propose.py checkpoint=runs/rpn/.../checkpoints/best.pt output=train.npz split=train
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from detector.commands.evaluate import override
from detector.data.loader import build_eval_loader
from detector.data.proposals import write_proposals
from detector.engine import assembly
from detector.engine.atomic_file import atomic_write
from detector.engine.checkpoint import (
    checkpoint_config,
    checkpoint_file,
    load_checkpoint,
    load_weights,
)
from detector.engine.progress import open_console, track
from detector.results import to_results
from detector.structures import Detections

SPLITS = ("train", "val")
LAYERS = ("train_proposals", "test_proposals")


def propose(cfg: DictConfig) -> Path:
    """Proposes on every image of a split, as in evaluation, and writes a file of proposals.

    Args:
        cfg: composed from ``configs/propose.yaml``.

    Returns:
        The file.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or dataset that cannot be used.
    """
    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split} is not known: write {' or '.join(SPLITS)}")
    path = checkpoint_file(str(cfg.checkpoint))
    checkpoint = load_checkpoint(path)
    former = checkpoint_config(checkpoint, cfg.allow_code)
    data = OmegaConf.to_container(cfg.data, resolve=False)
    config = override(former, OmegaConf.create({"data": data, "evaluation": {}}))
    if OmegaConf.select(config, "model.rpn") is None:
        raise ValueError(f"{path} holds a {config.model._target_}, which has no RPN to propose")
    if cfg.layer not in LAYERS:
        raise ValueError(f"layer={cfg.layer} is not known: write {' or '.join(LAYERS)}")
    config.model.rpn.test_proposals = config.model.rpn[cfg.layer]
    if cfg.num_proposals is not None:
        config.model.rpn.test_proposals.post_nms_top_n = cfg.num_proposals
    # The images as in evaluation, and all of them: a file serves whoever leaves some out.
    config.data[cfg.split].augment = "${augment.val}"
    config.data[cfg.split].keep_empty = True
    runtime = assembly.build(cfg.runtime)
    runtime.apply()

    dataset = assembly.build_dataset(config.data, cfg.split)
    loader = build_eval_loader(
        dataset,
        batch_size=config.data.val_batch_size,
        num_workers=config.data.num_workers,
        buckets=assembly.plain(config.data.buckets),
        with_masks=False,
        with_keypoints=False,
        pin_memory=runtime.torch_device.type == "cuda",
    )
    model = assembly.build(config.model)
    load_weights(model, checkpoint["model"], path)
    model = runtime.place(model).eval()

    console = open_console()
    console.print(
        f"{path}, step {checkpoint['step']}: {assembly.describe_model(model)}", soft_wrap=True
    )
    console.print(assembly.describe_dataset(dataset), soft_wrap=True)
    image_ids, boxes, scores = [], [], []
    for batch in track(loader, len(loader), "proposing", "batches", console):
        moved = runtime.move(batch)
        with torch.inference_mode(), runtime.autocast():
            proposals = model.propose(moved.images, moved.image_sizes)
        found = Detections(
            boxes=proposals.boxes,
            scores=proposals.scores.sigmoid(),
            labels=torch.zeros_like(proposals.valid, dtype=torch.int64),
            valid=proposals.valid,
        )
        for result in to_results(
            found, batch.image_sizes, batch.original_sizes, ["object"], image_ids=batch.image_ids
        ):
            image_ids.append(result.image_id)
            boxes.append(result.boxes)
            scores.append(result.scores)

    output = Path(str(cfg.output))
    index = dataset.index
    names = {int(each): index.file_name(i) for i, each in enumerate(index.image_ids)}
    with atomic_write(output) as file:
        write_proposals(file, image_ids, boxes, scores, [names[each] for each in image_ids])
    count = np.mean([len(each) for each in boxes])
    console.print(
        f"{output}: proposals for {len(image_ids)} images, {count:.0f} each on average",
        soft_wrap=True,
    )
    return output
