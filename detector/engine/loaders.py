"""The loaders of a training, from its configuration."""

from __future__ import annotations

from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from detector.data.dataset import DetectionDataset
from detector.data.loader import TrainLoader, build_eval_loader, build_train_loader
from detector.engine.assembly import plain
from detector.engine.distributed import Ranks
from detector.engine.runtime import Runtime


def build_loaders(
    cfg: DictConfig,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    model: nn.Module,
    runtime: Runtime,
    ranks: Ranks,
) -> tuple[TrainLoader, DataLoader]:
    """This rank's part of the batches to train on, and of those to evaluate.

    Args:
        cfg: of the training; its ``data.batch_size`` is a number.
        train_set, val_set: what to load.
        model: tells what targets it needs.
        runtime: on which device.
        ranks: that train together.

    Raises:
        ValueError: see :func:`build_train_loader`.
    """
    pin_memory = runtime.torch_device.type == "cuda"
    shared = {
        "num_workers": cfg.data.num_workers,
        "buckets": plain(cfg.data.buckets),
        "pin_memory": pin_memory,
        "rank": ranks.rank,
        "num_ranks": ranks.size,
    }
    train_loader = build_train_loader(
        train_set,
        batch_size=cfg.data.batch_size,
        seed=cfg.seed,
        aspect_ratio_grouping=cfg.data.aspect_ratio_grouping,
        with_masks=model.has_masks,
        with_keypoints=model.has_keypoints,
        sampler=cfg.data.get("sampler", "default"),
        repeat_threshold=cfg.data.get("repeat_threshold", 0.001),
        batches_per_step=cfg.training.accumulate,
        **shared,
    )
    return train_loader, build_eval_loader(val_set, batch_size=cfg.data.val_batch_size, **shared)
