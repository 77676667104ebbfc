"""A whole training whose steps take milliseconds: Faster R-CNN on one small map of features."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from detector.data.loader import build_train_loader
from detector.engine import assembly
from detector.engine.randomness import seed_everything
from detector.engine.step_guard import StepGuard
from detector.engine.training_step import TrainingStep
from detector.engine.weight_average import WeightAverage
from detector.structures import Batch

CONFIGS = Path(__file__).parents[2] / "configs"

TOY = [
    "model=faster_rcnn_fpn",
    "backbone=resnet18_fpn",
    "data=shapes",
    "augment=small",
    "optimizer=sgd",
    "schedule=cosine",
    "schedule.warmup_steps=5",
    "optimizer.lr=0.02",
    "model.rpn.anchors.sizes=[[32]]",
    "model.rpn.anchors.strides=[16]",
    "model.rpn.num_samples=32",
    "model.rpn.train_proposals.pre_nms_top_n=30",
    "model.rpn.train_proposals.post_nms_top_n=10",
    "model.rpn.test_proposals.pre_nms_top_n=30",
    "model.rpn.test_proposals.post_nms_top_n=10",
    "model.roi_sampler.num_samples=8",
    "model.box_branch.pooler.strides=[16]",
    "model.box_branch.pooler.output_size=3",
    "model.box_branch.head.width=16",
    "model.box_branch.detections.max_detections=5",
    "evaluation.max_detections=[1,2,5]",
    "data.prepare.num_train=12",
    "data.prepare.num_val=4",
    "data.batch_size=2",
    "data.val_batch_size=2",
    "logging.pictures=0",
    "training.max_steps=6",
    "training.gradient_clip=10",
    "runtime.device=cpu",
    "runtime.num_threads=1",
    "runtime.precision=float32",
]


class ToyBackbone(nn.Module):
    """Two convolutions that halve twice each, with norms between; stride 16."""

    strides = (16,)

    def __init__(self, out_channels: int = 8, norm: str = "bn") -> None:
        super().__init__()
        self.out_channels = out_channels
        norms = {"bn": nn.BatchNorm2d, "gn": lambda channels: nn.GroupNorm(2, channels)}
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4),
            norms[norm](8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, out_channels, 4, stride=4),
            norms[norm](out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to one map ``(B, C, H / 16, W / 16)``."""
        return [self.layers(images)]


def toy_config(data_root: Path | str, run_dir: Path | str, *overrides: str) -> DictConfig:
    """The configuration of the toy training; ``norm`` of its backbone is ``bn``."""
    words = [*TOY, f"data.root={data_root}", f"run_dir={run_dir}", *overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", words)
    cfg.model.backbone = OmegaConf.create(
        {"_target_": "tests.engine.toy_training.ToyBackbone", "out_channels": 8, "norm": "bn"}
    )
    return cfg


MASKS = (
    "model=mask_rcnn_fpn",
    "model.mask_branch.head.num_convs=1",
    "model.mask_branch.head.width=4",
    "model.mask_branch.pooler.strides=[16]",
    "model.mask_branch.pooler.output_size=3",
)


def toy_step(
    data_root: Path, run_dir: Path, *overrides: str, average: float | None = None, clip: float = 1.0
) -> TrainingStep:
    """The step of a toy Mask R-CNN, always from the same weights; ``overrides`` of the config."""
    cfg = toy_config(data_root, run_dir, *MASKS, *overrides)
    cfg.num_classes = 5
    runtime = assembly.build(cfg.runtime)
    seed_everything(1)
    model = runtime.place(assembly.build(cfg.model))
    model.train()
    optimizer = assembly.build(cfg.optimizer)(model)
    guard = StepGuard(model, optimizer, scaler=runtime.loss_scaler())
    kept = None if average is None else WeightAverage(model, average)
    return TrainingStep(model, optimizer, runtime, guard, 0, clip, average=kept)


def toy_batches(data_root: Path, run_dir: Path, count: int, *overrides: str) -> list[Batch]:
    """Batches of two images for :func:`toy_step`."""
    cfg = toy_config(data_root, run_dir, *MASKS, *overrides)
    data = assembly.build_dataset(cfg.data, "train")
    return list(islice(build_train_loader(data, 2), count))
