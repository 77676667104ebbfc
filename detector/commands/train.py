"""Trains a detector; reads from top to bottom as what happens.

python tools/train.py                                  the default experiment
python tools/train.py experiment=NAME key=value ...    another recipe, changed
python tools/train.py ... run_dir=DIR resume=auto      goes on where it stopped
torchrun --nproc-per-node=8 tools/train.py ...         on 8 GPUs, see docs/distributed.md
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from detector.commands.hyperparameters import final_metrics, hyperparameters
from detector.commands.replay import ReplayFile
from detector.commands.training_pictures import TrainingPictures
from detector.engine import assembly
from detector.engine.acceleration import accelerated
from detector.engine.atomic_file import atomic_write, write_json
from detector.engine.batch_scaling import scale_to_batch
from detector.engine.batch_size import settle_batch_size
from detector.engine.checkpoint import check_classes, checkpoint_config
from detector.engine.checkpoint_writer import (
    CheckpointFollower,
    CheckpointWriter,
    check_writable,
    checkpoint_bytes,
)
from detector.engine.distributed import Ranks, Unwritten, check_alone, open_ranks
from detector.engine.durations import parse_duration
from detector.engine.inference import evaluate_model
from detector.engine.loaders import build_loaders
from detector.engine.loss_window import LossWindow
from detector.engine.optimizer import check_gradient_clip, describe_optimizer, set_learning_rate
from detector.engine.out_of_memory import TrainingMemory
from detector.engine.plan import is_due, plan_training
from detector.engine.precise_bn import check_precise_bn, recompute_batch_statistics
from detector.engine.prefetch import prefetched
from detector.engine.profiler import build_profiler
from detector.engine.progress import describe_val_loss, duration, open_console, open_display
from detector.engine.randomness import seed_everything, set_deterministic
from detector.engine.resume import load_to_resume
from detector.engine.run_directory import RunDirectory, choose_run_directory, resume_command
from detector.engine.signals import AgreedStop, StopRequest
from detector.engine.step_guard import StepGuard, check_on_nonfinite
from detector.engine.stopwatch import Stopwatch
from detector.engine.time_limit import ENDING, TimeLimit
from detector.engine.tolerant_log import TolerantLog
from detector.engine.training_evaluation import build_evaluation
from detector.engine.training_state import TrainingState
from detector.engine.training_step import TrainingStep, check_accumulate
from detector.engine.weight_average import WeightAverage
from detector.engine.weights.init_table import transfer_report
from detector.engine.weights.initial_weights import (
    check_initial_weights,
    freeze_parts,
    load_initial_checkpoint,
    load_initial_parts,
    random_and_frozen,
    read_initial_checkpoint,
)
from detector.evaluation.table import evaluation_table

if TYPE_CHECKING:
    from detector.evaluation.coco import Evaluation
    from detector.structures import Batch


def train(
    cfg: DictConfig, whole: RunDirectory | None = None, began: float | None = None
) -> dict[str, Any]:
    """Trains, evaluates and writes a run directory.

    Args:
        cfg: composed from ``configs/train.yaml``, which explains every key.
        whole: of the training in stages that this is one of, which goes on if this is stopped.
        began: when the process did that has nothing else to do, by ``time.monotonic``; else now.

    Returns:
        The final metrics, as written to ``metrics.json``.

    Raises:
        ValueError, OSError: what the user has to put right, before the first step. OSError: the
            last checkpoint could not be written; the one before is kept.
        NonFiniteLoss: training diverged; the last good checkpoint is kept, and the bad step.
        SystemExit: with 130, 143, 138 or 129 after Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP, when all
            is saved; with 2 where another rank has said what is wrong.
    """
    if "stages" in cfg.training:
        from detector.commands.alternating import train_alternating  # it trains each of its stages

        check_alone("training=alternating")
        return train_alternating(cfg)
    timeout = parse_duration("distributed.timeout", cfg.distributed.timeout or "10m")
    on_gpu = assembly.build(cfg.runtime).torch_device.type == "cuda"
    with open_ranks(timeout, on_gpu) as ranks:
        return _train(cfg, whole, ranks, began)


def _train(
    cfg: DictConfig, whole: RunDirectory | None, ranks: Ranks, process_began: float | None
) -> dict[str, Any]:
    began = time.monotonic() if process_began is None else process_began
    ending = 0.0 if process_began is None else ENDING
    # Where to write, and what to begin or go on from. Looked at first: it fails fast.
    run, resume_from = ranks.on_first(
        lambda: choose_run_directory(cfg.run_dir, cfg.resume, cfg.name)
    )
    former, setbacks = None, []
    if resume_from:
        resume_from, former, setbacks = load_to_resume(resume_from, run, cfg.resume == "auto")
    time_limit = parse_duration("training.time_limit", cfg.training.time_limit)
    accumulate = check_accumulate(cfg.training.accumulate)
    tolerated = check_on_nonfinite(cfg.training.on_nonfinite, cfg.training.max_skipped)
    init = {} if former else cfg.init
    weight_warnings = check_initial_weights(cfg.model, init, cfg.freeze)
    initial = read_initial_checkpoint(init)
    runtime = ranks.place(assembly.build(cfg.runtime))
    runtime.apply()
    set_deterministic(cfg.deterministic)
    scaled = scale_to_batch(cfg)

    # Data. Every image and annotation is checked here.
    train_set, val_set = ranks.in_turn(
        lambda: [assembly.build_dataset(cfg.data, split) for split in ("train", "val")]
    )
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
    sizes = settle_batch_size(cfg, scaled, former, model, runtime, train_set, ranks)
    loader, val_loader = build_loaders(cfg, train_set, val_set, model, runtime, ranks)
    ranks.exchange(None)  # before what only works where all ranks take part
    ranks.share_weights(model)

    # Optimiser, schedule, average of the weights.
    plan = plan_training(
        loader.steps_per_epoch / accumulate,
        cfg.training.max_steps,
        cfg.training.max_epochs,
        cfg.evaluation.every,
        cfg.evaluation.every_epochs,
    )
    OmegaConf.update(cfg, "training.max_steps", plan.max_steps)
    loader.plan(plan.max_steps)
    check_gradient_clip(cfg.training.gradient_clip)
    optimizer = assembly.build(cfg.optimizer)(model)
    schedule = assembly.build(cfg.schedule)
    decay = cfg.training.ema_decay
    average = WeightAverage(model, decay) if decay is not None else None

    # Evaluation, and what is best.
    evaluator, val_loss, objective, early = build_evaluation(cfg, val_set, model, runtime)

    # Resume.
    scaler = runtime.loss_scaler()
    state = TrainingState(model, optimizer, loader, objective, average, scaler, early)
    if former:
        state.restore(former, resume_from, keeps_best=run.best.is_file())
        if state.step > plan.max_steps:
            raise ValueError(
                f"{resume_from} has finished {state.step} steps, more than training.max_steps="
                f"{plan.max_steps}; raise it to go on"
            )
    guard = StepGuard(model, optimizer, tolerated, scaler)
    plain_step = TrainingStep(
        model, optimizer, runtime, guard, cfg.seed, cfg.training.gradient_clip, ranks, average
    )

    pictures = TrainingPictures(state.evaluated_model, cfg, runtime, train_set.index, val_set.index)

    # The run directory.
    size = checkpoint_bytes(optimizer, model, *([average.model] if average else []))
    if ranks.is_first:
        kept = (cfg.checkpoint.keep_last, cfg.checkpoint.keep_every)
        check_writable(run, size, *kept, plan.max_steps)
        with atomic_write(run.config) as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    described = {
        "config": OmegaConf.to_yaml(cfg),
        "class_names": list(classes),
        "category_ids": category_ids,
        "keypoint_names": list(pictures.watcher.keypoint_names),
        "skeleton": [list(pair) for pair in pictures.watcher.skeleton],
    }
    window, stopwatch = LossWindow(tolerated), Stopwatch(runtime.torch_device)
    images_per_step = cfg.data.batch_size * accumulate
    val_steps = len(val_set) / images_per_step
    limit = TimeLimit(time_limit, state.seconds, val_steps, began, ending=ending)
    paced = limit.pace(schedule, plan.max_steps)
    rate = paced if time_limit is None else lambda step: ranks.of_first(paced(step))
    saved = state.step if resume_from == run.last else None
    ranks.start()

    with (
        StopRequest() as heard,
        TrainingMemory(cfg, runtime, run, whole) as memory,
        open_display(plan.max_steps, state.step, open_console(quiet=not ranks.is_first)) as display,
        closing(
            TolerantLog(run, state.step, cfg.logging.histograms, display.print)
            if ranks.is_first
            else Unwritten()
        ) as log,
        CheckpointWriter(run, cfg.checkpoint.keep_last, saved, display.print)
        if ranks.is_first
        else CheckpointFollower(saved) as writer,
        build_profiler(
            cfg.profiler if ranks.is_first else None,
            run.profile,
            runtime.torch_device,
            display.print,
        ) as profiler,
        ReplayFile(run.replay, state, described, cfg.seed, accumulate)
        if ranks.is_first
        else nullcontext(),
    ):
        stop = AgreedStop(heard, ranks.highest)

        def content() -> dict[str, Any]:
            window.check()  # diverged weights must not replace good ones
            return state.content(limit.elapsed, described)

        def evaluate_on(some: Iterable[Batch], partly: bool = True) -> Evaluation | None:
            if cfg.training.precise_bn_steps:
                recompute_batch_statistics(
                    state.evaluated_model,
                    loader.batches_at(loader.position, cfg.training.precise_bn_steps),
                    runtime,
                    cfg.seed,
                    ranks,
                )
            how = (runtime, stop.ask, val_loss, ranks, partly)
            return evaluate_model(state.evaluated_model, some, evaluator, *how)

        def draw() -> None:
            if ranks.is_first:
                pictures.draw(state.step, run.pictures, log, display.print)

        for line in transfer_report(transfer) if transfer else ():
            display.print(line)
        display.print(assembly.describe_model(model))
        display.print(f"train {assembly.describe_dataset(train_set)}")
        display.print(f"val   {assembly.describe_dataset(val_set)}")
        display.print(
            f"{plan.max_steps} steps of {images_per_step} images, "
            f"{plan.max_steps / plan.steps_per_epoch:.1f} epochs, on {runtime.device} in "
            f"{runtime.precision}{ranks}{limit}"
        )
        if runtime.choices:
            display.print(f"runtime: {', '.join(runtime.choices)}, {describe_optimizer(optimizer)}")
        for line in sizes:
            display.print(line)
        if former:
            display.print(f"resumed from {resume_from} after step {state.step}")
            for change in assembly.config_changes(checkpoint_config(former, allow_code=True), cfg):
                display.print(f"changed since the checkpoint: {change}")
        for warning in (
            *([] if former else weight_warnings),
            *([*transfer.warnings, *random_and_frozen(model, transfer)] if transfer else []),
            *plan.without_effect(cfg.training.max_epochs),
            *schedule.without_effect(plan.max_steps),
            *check_precise_bn(cfg.training.precise_bn_steps, model),
            *guard.warnings(),
            *(train_set.augmentation.late_switches(plan.max_steps) if time_limit else ()),
            *setbacks,
        ):
            display.print(f"warning: {warning}")
        display.print(f"writing to {run.path}")

        take_step = accelerated(plain_step, accumulate, display.note)
        batches = prefetched(loader, runtime)
        while True:
            # Evaluate. It comes before the end of the loop, so that a run which was stopped after
            # its last step but before the evaluation catches up when it is resumed.
            stop.ask()
            if state.step < plan.max_steps and ranks.of_first(limit.wants_rehearsal):
                writer.save(content())
                writer.wait()
                limit.saving = writer.seconds
                if late := limit.rehearse(val_loader, len(val_loader), evaluate_on, draw):
                    display.print(f"warning: {late}")
                stopwatch.restart()
            is_over = time_limit is not None and ranks.of_first(limit.is_over)
            finished = state.step >= plan.max_steps or is_over
            finished = finished or (early is not None and early.is_over)
            if (finished or plan.evaluates(state.step)) and not state.is_evaluated:
                if writer.newest != state.step:
                    writer.save(content())
                ranks.waiting_for = f"the end of the evaluation after step {state.step}"
                with limit.evaluating():
                    tracked = display.track(val_loader, len(val_loader), "evaluating", "batches")
                    found = evaluate_on(tracked, partly=False)
                    if found is not None:
                        is_best = state.judge(found.metrics)
                        log.evaluation(state.step, found.metrics)
                        log.curves(state.step, found.errors)
                        display.print(evaluation_table(found))
                        if val_loss:
                            display.print(describe_val_loss(found.metrics["val"]))
                        writer.save(content(), best=is_best)
                        draw()
                if early and early.is_over:
                    display.print(f"stopping early: {early}")
                    finished = True
                stopwatch.restart()
            if stop or finished:
                break

            # One step.
            profiler.begin(state.step + 1, stopwatch)
            limit.start_step()
            stopwatch.start()
            position = loader.position
            parts = [next(batches) for _ in range(accumulate)]
            stopwatch.lap("data", on_host=True)
            ranks.meet(state.step + 1)
            multiplier = set_learning_rate(optimizer, rate, state.step)
            with memory.step(state.step + 1, parts):
                losses = take_step(parts, state.step, stopwatch)
            state.step += 1
            log.histograms(state.step, model)
            limit.end_step()
            profiler.end()

            # Look at it now and then, and save.
            image_ids = torch.cat([batch.image_ids for batch in parts])
            window.add(state.step, image_ids, losses, position)
            if guard.knows_bad:
                window.check()
            display.advance(state.step)
            if is_due(state.step, cfg.logging.every) or state.step == plan.max_steps:
                values = window.read()
                seconds = stopwatch.read()
                values["lr"] = optimizer.defaults["lr"] * multiplier
                values["epoch"] = state.step / plan.steps_per_epoch
                values["images_per_second"] = images_per_step / seconds["step"]
                values["memory_gib"] = runtime.peak_memory() or 0.0
                if scaler:
                    values["fp16_scale"] = scaler.get_scale()
                times = {f"time/{name}": value for name, value in seconds.items()}
                log.training(state.step, values | times)
                display.report(values, seconds["step"])
            keep = is_due(state.step, cfg.checkpoint.keep_every)
            if keep or is_due(state.step, cfg.checkpoint.every):
                writer.save(content(), keep=keep)
                limit.saving = writer.seconds

        # The end.
        if not (finished and state.is_evaluated):
            writer.save_now(content())
            display.print(
                f"stopped by {stop.signal.name}; saved step {state.step} to {run.last}. "
                f"Go on with\n    {resume_command(whole or run)}"
            )
            raise SystemExit(stop.exit_code)
        writer.wait(required=True)
        log.settings(hyperparameters(cfg), final_metrics(state.evaluation["metrics"]))
        display.print(
            f"finished {state.step} steps in {duration(time.monotonic() - began)}; "
            f"see {run.metrics}"
            + (f" and the pictures in {run.pictures}" if cfg.logging.pictures else "")
        )
    metrics = state.evaluation["metrics"]
    if ranks.is_first:
        write_json(run.metrics, metrics)
    return metrics
