"""Several batches that make one step, against one batch of all their images."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.commands.train import train
from detector.data.loader import build_train_loader
from detector.engine import assembly
from detector.engine.checkpoint import load_checkpoint
from detector.engine.optimizer import set_learning_rate
from detector.engine.randomness import seed_everything
from detector.engine.step_guard import StepGuard
from detector.engine.stopwatch import Stopwatch
from detector.engine.training_step import TrainingStep
from detector.ops.loss_counts import WholeBatch, loss_count
from tests.engine.toy_training import toy_config

CLOCK = Stopwatch(torch.device("cpu"))
# So many samples that all candidates are taken: which ones are drawn depends on the batch's size.
EVERY = ("model.rpn.num_samples=400", "model.roi_sampler.num_samples=60", "data.batch_size=8")


@pytest.fixture
def masks(shapes_root: Path, tmp_path: Path):
    """Builds equal Mask R-CNNs with group norm, and three batches of eight."""
    masks = ("model=mask_rcnn_fpn", "model.mask_branch.head.num_convs=1")
    masks += ("model.mask_branch.head.width=4", "model.mask_branch.pooler.strides=[16]")
    cfg = toy_config(
        shapes_root, tmp_path, *EVERY, *masks, "model.mask_branch.pooler.output_size=3"
    )
    cfg.model.backbone.norm = "gn"
    cfg.num_classes = 5
    runtime = assembly.build(cfg.runtime)
    data = assembly.build_dataset(cfg.data, "train")

    def build(normalization: str = "sampled"):
        seed_everything(1)
        cfg.model.rpn.normalization = normalization
        model = assembly.build(cfg.model)
        optimizer = assembly.build(cfg.optimizer)(model)
        guard = StepGuard(model, optimizer)
        return model, TrainingStep(model, optimizer, runtime, guard, 0, gradient_clip=1.0)

    return build, list(islice(build_train_loader(data, 8), 3))


def quarters(structure: Any) -> list[Any]:
    """Four batches of two of one of eight."""
    parts = [
        quarters(value)
        if dataclasses.is_dataclass(value)
        else value.chunk(4)
        if isinstance(value, torch.Tensor)
        else [value] * 4
        for value in (getattr(structure, field.name) for field in dataclasses.fields(structure))
    ]
    return [type(structure)(*values) for values in zip(*parts, strict=True)]


@pytest.mark.parametrize("normalization", ["sampled", "paper", "foreground"])
def test_four_batches_of_two_are_one_of_eight(masks, normalization: str) -> None:
    """Three steps; the numbers of foreground RoIs, which losses are divided by, differ."""
    build, batches = masks
    results = []
    for split in (lambda batch: [batch], quarters):
        model, take_step = build(normalization)
        set_learning_rate(take_step.optimizer, lambda step: 1.0, 0)
        losses = [take_step(split(batch), step, CLOCK) for step, batch in enumerate(batches)]
        results.append((losses, model.state_dict()))
    (one, weights), (four, accumulated) = results
    for a, b in zip(one, four, strict=True):
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in weights.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_means_of_the_parts_would_not_be_the_mean_of_the_whole(masks) -> None:
    """What the test above would miss if all batches had as many foreground RoIs."""
    build, batches = masks
    take_step = build()[1]
    whole = take_step.backward(batches[:1], 0, CLOCK)
    alone = [take_step.backward([part], 0, CLOCK) for part in quarters(batches[0])]
    mean = torch.stack([losses["loss_box"] for losses in alone]).mean()
    assert abs(mean - whole["loss_box"]) > 1e-3 * whole["loss_box"]


def test_counts_are_of_the_whole_batch_and_never_zero() -> None:
    whole = WholeBatch()
    for own in (0, 3):
        with whole.counting():
            assert loss_count(torch.tensor(own)) == max(own, 1)
            loss_count(2)
    for own in (0, 3):
        with whole.dividing():
            assert (loss_count(torch.tensor(own)), loss_count(2)) == (3, 4)
    assert loss_count(torch.tensor(0)) == 1 and loss_count(0) == 1 and loss_count(7) == 7


def test_counting_leaves_no_trace_in_batch_statistics(shapes_root: Path, tmp_path: Path) -> None:
    """Two equal batches in a step: the momentum of 0.1 acts twice on the first layer's input."""
    cfg = toy_config(shapes_root, tmp_path)
    cfg.num_classes = 5
    runtime = assembly.build(cfg.runtime)
    model = assembly.build(cfg.model)
    optimizer = assembly.build(cfg.optimizer)(model)
    take_step = TrainingStep(model, optimizer, runtime, StepGuard(model, optimizer), 0)
    data = assembly.build_dataset(cfg.data, "train")
    batch = next(iter(build_train_loader(data, 2, with_masks=False)))
    norm = model.backbone.layers[1]
    with torch.no_grad():
        first = model.backbone.layers[0](model.normalizer(batch.images, batch.image_sizes))
    mean = first.mean((0, 2, 3))
    take_step([batch, batch], 0, CLOCK)
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, (1 - 0.9**2) * mean, rtol=1e-4, atol=1e-5)


def test_stopping_with_accumulation_workers_and_fp16_resumes_exactly(
    shapes_root: Path, tmp_path: Path
) -> None:
    """The loss scale and its counter of good steps go on where they were."""
    overrides = ("training.accumulate=3", "runtime.precision=fp16", "schedule=multistep")
    overrides += ("schedule.milestones=[4]", "training.ema_decay=0.5", "data.num_workers=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(toy_config(shapes_root, whole, *overrides, "training.max_steps=5"))
    train(toy_config(shapes_root, parts, *overrides, "training.max_steps=3"))
    train(toy_config(shapes_root, parts, *overrides, "training.max_steps=5", "resume=auto"))
    expected, found = load_checkpoint(whole), load_checkpoint(parts)
    assert found["loss_scale"] == expected["loss_scale"]
    assert found["loss_scale"]["_growth_tracker"] == 5
    assert found["loader"] == expected["loader"] and found["loader"]["batch"] == 15 % 6
    for key in ("model", "trained_model"):
        for name, value in expected[key].items():
            assert torch.equal(found[key][name], value), (key, name)


def test_fewer_than_one_batch_is_refused(shapes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.accumulate=0"):
        train(toy_config(shapes_root, tmp_path, "training.accumulate=0"))
