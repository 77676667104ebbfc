"""Trains a detector; reads from top to bottom as what happens.

python tools/train.py                                  the default experiment
python tools/train.py experiment=NAME key=value ...    another recipe, changed
python tools/train.py ... run_dir=DIR resume=auto      goes on where it stopped
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.nn.utils import clip_grad_norm_, get_total_norm

from detector.data.loader import build_eval_loader, build_train_loader
from detector.engine import assembly
from detector.engine.atomic_file import atomic_copy, atomic_write, write_json
from detector.engine.checkpoint import (
    FORMAT,
    best_metric,
    check_classes,
    check_newest,
    check_resumable,
    checkpoint_config,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from detector.engine.inference import evaluate_model, given_proposals
from detector.engine.init_table import transfer_table
from detector.engine.initial_weights import (
    check_initial_weights,
    freeze_parts,
    load_initial_checkpoint,
    load_initial_parts,
    read_initial_checkpoint,
)
from detector.engine.loss_window import LossWindow
from detector.engine.metric_log import MetricLog
from detector.engine.optimizer import (
    check_gradient_clip,
    restore_optimizer,
    set_learning_rate,
)
from detector.engine.pictures import Comparisons
from detector.engine.plan import is_due, plan_training
from detector.engine.progress import duration, open_display
from detector.engine.randomness import seed_everything
from detector.engine.run_directory import RunDirectory, choose_run_directory, resume_command
from detector.engine.signals import StopRequest
from detector.engine.stopwatch import Stopwatch
from detector.engine.weight_average import WeightAverage
from detector.evaluation.table import evaluation_table
from detector.predictor import Detector


def train(cfg: DictConfig, whole: RunDirectory | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes a run directory.

    Args:
        cfg: composed from ``configs/train.yaml``, which explains every key.
        whole: of the training in stages that this is one of, which goes on if this is stopped.

    Returns:
        The final metrics, as written to ``metrics.json``.

    Raises:
        ValueError, FileNotFoundError: what the user has to put right, before the first step.
        NonFiniteLoss: training diverged; the last good checkpoint is kept.
        SystemExit: with 130 or 143 after Ctrl-C or SIGTERM, when everything is saved.
    """
    if "stages" in cfg.training:
        from detector.engine.alternating import train_alternating  # it trains each of its stages

        return train_alternating(cfg)

    # Where to write, and what to begin or go on from. Looked at first: it fails fast.
    run, resume_from = choose_run_directory(cfg.run_dir, cfg.resume, cfg.name)
    former = load_checkpoint(resume_from) if resume_from else None
    if former:
        check_resumable(resume_from, former)
        check_newest(resume_from, former, run.last)
    init = {} if former else cfg.init
    weight_warnings = check_initial_weights(cfg.model, init, cfg.freeze)
    initial = read_initial_checkpoint(init)
    runtime = assembly.build(cfg.runtime)
    runtime.apply()

    # Data. Every image and annotation is checked here.
    train_set = assembly.build_dataset(cfg.data, "train")
    val_set = assembly.build_dataset(cfg.data, "val")
    assembly.check_same_classes(train_set, val_set)
    classes = train_set.index.category_names
    category_ids = train_set.index.category_ids.tolist()
    if former:
        check_classes(resume_from, former, classes, train_set.index.source_file)
    assembly.set_num_classes(cfg, classes, train_set.index.source_file)
    assembly.set_num_keypoints(cfg, train_set.index.num_keypoints, train_set.index.source_file)

    # Model, from random or pretrained weights.
    seed_everything(cfg.seed)
    model = runtime.place(assembly.build(cfg.model))
    model.train()
    transfer = load_initial_checkpoint(model, initial, cfg, train_set.index)
    load_initial_parts(model, init)
    freeze_parts(model, cfg.freeze)
    assembly.check_masks(model, train_set)
    assembly.check_keypoints(model, train_set, val_set)
    assembly.check_proposals(model, train_set, val_set)
    pin_memory = runtime.torch_device.type == "cuda"
    loader = build_train_loader(
        train_set,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        buckets=assembly.plain(cfg.data.buckets),
        aspect_ratio_grouping=cfg.data.aspect_ratio_grouping,
        with_masks=model.has_masks,
        with_keypoints=model.has_keypoints,
        pin_memory=pin_memory,
    )
    val_loader = build_eval_loader(
        val_set,
        batch_size=cfg.data.val_batch_size,
        num_workers=cfg.data.num_workers,
        buckets=assembly.plain(cfg.data.buckets),
        pin_memory=pin_memory,
    )

    # Optimiser, schedule, average of the weights.
    plan = plan_training(
        loader.steps_per_epoch,
        cfg.training.max_steps,
        cfg.training.max_epochs,
        cfg.evaluation.every,
        cfg.evaluation.every_epochs,
    )
    OmegaConf.update(cfg, "training.max_steps", plan.max_steps)
    check_gradient_clip(cfg.training.gradient_clip)
    optimizer = assembly.build(cfg.optimizer)(model)
    schedule = assembly.build(cfg.schedule)
    decay = cfg.training.ema_decay
    average = WeightAverage(model, decay) if decay is not None else None

    # Resume.
    step, evaluated, best = 0, None, None
    if former:
        load_weights(model, former.get("trained_model", former["model"]), resume_from)
        if average:
            load_weights(average.model, former["model"], resume_from)
        restore_optimizer(optimizer, former["optimizer"], resume_from)
        loader.load_state_dict(former["loader"])
        step, evaluated = former["step"], former["evaluation"]
        best = former["best"] if run.best.is_file() else None  # a new run_dir has a best of its own
        if step > plan.max_steps:
            raise ValueError(
                f"{resume_from} has finished {step} steps, more than training.max_steps="
                f"{plan.max_steps}; raise it to go on"
            )
    trained_parameters = [p for group in optimizer.param_groups for p in group["params"]]
    evaluated_model = average.model if average else model

    # Evaluation.
    max_detections = assembly.plain(cfg.evaluation.max_detections)
    has_masks = model.has_masks and val_set.index.has_masks
    has_keypoints = model.has_keypoints and val_set.index.has_keypoints
    evaluator = assembly.build_evaluator(cfg.evaluation, val_set, model)
    metric = assembly.choose_metric(cfg.evaluation, val_set)
    kind, key = best_metric(
        cfg.checkpoint.metric, has_masks, max_detections, metric, has_keypoints
    )
    # A picture alone has no proposals.
    num_pictures = 0 if model.needs_proposals else cfg.logging.pictures
    comparisons = Comparisons(val_set.index, num_pictures, cfg.logging.score_threshold)
    watched_names, watched_ids = assembly.classes_of(model, classes, category_ids)
    watcher = Detector(
        evaluated_model,
        class_names=watched_names,
        category_ids=watched_ids,
        transforms=assembly.build(cfg.augment.val),
        runtime=runtime,
        buckets=assembly.plain(cfg.data.buckets),
        keypoint_names=train_set.index.keypoint_names if model.has_keypoints else (),
        skeleton=train_set.index.skeleton if model.has_keypoints else (),
    )

    # The run directory.
    with atomic_write(run.config) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    config_text = OmegaConf.to_yaml(cfg)
    window, stopwatch = LossWindow(), Stopwatch(runtime.torch_device)
    began = time.perf_counter()

    with (
        StopRequest() as stop,
        closing(MetricLog(run.metric_lines, run.tensorboard, step)) as log,
        open_display(plan.max_steps, step) as display,
    ):

        def save() -> None:
            window.check()  # diverged weights must not replace good ones
            content = {
                "format": FORMAT,
                "model": evaluated_model.state_dict(),
                "config": config_text,
                "class_names": list(classes),
                "category_ids": category_ids,
                "keypoint_names": list(watcher.keypoint_names),
                "skeleton": [list(pair) for pair in watcher.skeleton],
                "step": step,
                "optimizer": optimizer.state_dict(),
                "loader": loader.state_dict(),
                "evaluation": evaluated,
                "best": best,
            }
            if average:
                content["trained_model"] = model.state_dict()
            save_checkpoint(run.last, content)

        if transfer:
            display.print(transfer_table(transfer))
        display.print(assembly.describe_model(model))
        display.print(f"train {assembly.describe_dataset(train_set)}")
        display.print(f"val   {assembly.describe_dataset(val_set)}")
        display.print(
            f"{plan.max_steps} steps of {cfg.data.batch_size} images, "
            f"{plan.max_steps / plan.steps_per_epoch:.1f} epochs, on {runtime.device} in "
            f"{runtime.precision}"
        )
        if former:
            display.print(f"resumed from {resume_from} after step {step}")
            for change in assembly.config_changes(checkpoint_config(former, allow_code=True), cfg):
                display.print(f"changed since the checkpoint: {change}")
        for warning in (
            *([] if former else weight_warnings),
            *(transfer.warnings if transfer else []),
            *plan.without_effect(cfg.training.max_epochs),
            *schedule.without_effect(plan.max_steps),
        ):
            display.print(f"warning: {warning}")
        display.print(f"writing to {run.path}")

        batches = iter(loader)
        while True:
            # Evaluate. It comes before the end of the loop, so that a run which was stopped after
            # its last step but before the evaluation catches up when it is resumed.
            if plan.evaluates(step) and (evaluated is None or evaluated["step"] != step):
                save()
                tracked = display.track(val_loader, len(val_loader), "evaluating", "batches")
                found = evaluate_model(
                    evaluated_model, tracked, evaluator, runtime, should_stop=lambda: bool(stop)
                )
                if found is not None:
                    evaluated = {"step": step, "metrics": found.metrics}
                    log.evaluation(step, evaluated["metrics"])
                    display.print(evaluation_table(found))
                    value = found.metrics[kind][key]
                    is_best = best is None or value > best
                    best = value if is_best else best
                    save()
                    if is_best:
                        atomic_copy(run.last, run.best)
                    for name, picture in comparisons.draw(watcher, run.pictures):
                        log.picture(step, name, picture)
                stopwatch.restart()
            if stop or step >= plan.max_steps:
                break

            # One step.
            stopwatch.start()
            batch = next(batches)
            on_device = runtime.move(batch)
            stopwatch.lap("data", on_host=True)

            seed_everything(cfg.seed, step)
            multiplier = set_learning_rate(optimizer, schedule, step)
            with runtime.autocast():
                losses = model(
                    on_device.images,
                    on_device.image_sizes,
                    on_device.targets,
                    *given_proposals(on_device),
                )
            total = sum(losses.values())
            stopwatch.lap("forward")

            optimizer.zero_grad(set_to_none=True)
            total.backward()
            stopwatch.lap("backward")

            if cfg.training.gradient_clip is not None:
                norm = clip_grad_norm_(trained_parameters, cfg.training.gradient_clip)
            else:
                norm = get_total_norm([p.grad for p in trained_parameters if p.grad is not None])
            optimizer.step()
            step += 1
            if average:
                average.update(model, step)
            stopwatch.lap("update")

            # Look at it now and then, and save.
            window.add(step, batch.image_ids, {"loss": total, **losses, "gradient_norm": norm})
            display.advance(step)
            if is_due(step, cfg.logging.every) or step == plan.max_steps:
                values = window.read()
                seconds = stopwatch.read()
                values["lr"] = optimizer.defaults["lr"] * multiplier
                values["epoch"] = step / loader.steps_per_epoch
                values["images_per_second"] = cfg.data.batch_size / seconds["step"]
                values["memory_gib"] = runtime.peak_memory() or 0.0
                times = {f"time/{name}": value for name, value in seconds.items()}
                log.training(step, values | times)
                display.report(values, seconds["step"])
            if is_due(step, cfg.checkpoint.every):
                save()

        # The end.
        if evaluated is None or evaluated["step"] < plan.max_steps:
            save()
            display.print(
                f"stopped by {stop.signal.name}; saved step {step} to {run.last}. Go on with\n"
                f"    {resume_command(whole or run)}"
            )
            raise SystemExit(stop.exit_code)
        display.print(
            f"finished {step} steps in {duration(time.perf_counter() - began)}; "
            f"see {run.metrics} and the pictures in {run.pictures}"
        )
    metrics = evaluated["metrics"]
    write_json(run.metrics, metrics)
    return metrics
