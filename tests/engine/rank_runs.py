"""Trainings on one and on two ranks, well and badly ended; what they left is for the tests.

    python -m tests.engine.rank_runs DATA_ROOT FOLDER

Each rank is a fork of this process, so that only one has to import torch. A training leaves its run
directory, and in ``<name>.json`` for each rank how it ended, in what time, and what it said.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from detector.cli import _reported as reported
from detector.commands.evaluate import evaluate
from detector.commands.train import train
from detector.engine import acceleration
from detector.engine.compiled import compile_parts
from detector.engine.data_parallel import DataParallel
from detector.engine.training_step import TrainingStep
from tests.engine.toy_training import CONFIGS, toy_config

BASE = (
    "model=mask_rcnn_fpn",
    "model.mask_branch.head.num_convs=1",
    "model.mask_branch.head.width=4",
    "model.mask_branch.pooler.strides=[16]",
    "model.mask_branch.pooler.output_size=3",
    "training.max_steps=4",
    "training.ema_decay=0.9",
    "data.batch_size=4",
    "data.val_batch_size=1",
    "data.prepare.num_val=5",
    "evaluation.every=2",
    "evaluation.loss=true",
    "checkpoint.every=1",
    "logging.every=1",
    "logging.histograms=2",
    "distributed.timeout=60s",
)
Hook = Callable[[int, int, TrainingStep], None]


def hooked(action: Hook) -> Callable[[int], None]:
    """Has ``action(rank, finished steps, step)`` called before each step."""

    def install(rank: int) -> None:
        call = TrainingStep.__call__

        def watched(self, batches, step, stopwatch):
            action(rank, step, self)
            return call(self, batches, step, stopwatch)

        TrainingStep.__call__ = watched

    return install


@hooked
def stop_one(rank: int, step: int, _: TrainingStep) -> None:
    if rank == 1 and step == 1:
        os.kill(os.getpid(), signal.SIGTERM)


@hooked
def kill_one(rank: int, step: int, _: TrainingStep) -> None:
    if rank == 1 and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@hooked
def break_one(rank: int, step: int, _: TrainingStep) -> None:
    if rank == 1 and step == 2:
        raise ValueError("apples.jpg is truncated")


def delay_one(rank: int) -> None:
    from detector.data.dataset import DetectionDataset

    get, calls = DetectionDataset.__getitem__, []

    def slow(self, key):
        calls.extend([key] if isinstance(key, tuple) else [])  # to train on
        if rank == 1 and len(calls) == 5:  # the first of its third batch
            time.sleep(300)
        return get(self, key)

    DetectionDataset.__getitem__ = slow


def poison_one(rank: int) -> None:
    forward, calls = DataParallel.__call__, []

    def poisoned(self, *inputs):
        calls.append(None)
        losses = forward(self, *inputs)
        bad = rank == 1 and len(calls) == 3
        return losses | {"loss_box": losses["loss_box"] * (torch.nan if bad else 1.0)}

    DataParallel.__call__ = poisoned


def compile_quickly(_: int) -> None:
    """Traced and differentiated as for a compiler; the C++ of it would take minutes."""
    acceleration.compile_parts = lambda model: compile_parts(model, "aot_eager")


def note_statistics(folder: Path) -> Callable[[int], None]:
    @hooked
    def note(rank: int, step: int, take_step: TrainingStep) -> None:
        state = {k: v.clone() for k, v in take_step.model.state_dict().items() if "running" in k}
        torch.save(state, folder / f"statistics_{rank}_{step}.pt")

    return note


def evaluate_run(output: Path) -> Callable[[DictConfig], object]:
    """Evaluates the last checkpoint of the run directory."""

    def tool(cfg: DictConfig) -> None:
        words = [f"checkpoint={cfg.run_dir}", f"output={output}", "allow_code=true"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            evaluate(compose("evaluate", [*words, "runtime.device=cpu"]))

    return tool


class Runs:
    """Starts trainings of one data set into one folder."""

    def __init__(self, data_root: str, folder: Path) -> None:
        self.data_root = data_root
        self.folder = folder

    def __call__(
        self,
        name: str,
        num_ranks: int,
        *overrides: str,
        into: str | None = None,
        norm: str = "gn",
        prepare: Callable[[int], None] = lambda rank: None,
        tool: Callable[[DictConfig], object] = train,
        patience: float = 120.0,
    ) -> None:
        """Trains, and writes ``<name>.json``; ranks that last longer than ``patience`` are killed.

        Args:
            name: of the results.
            num_ranks: how many.
            overrides: of the configuration.
            into: the run directory, ``name`` by default.
            norm: of the backbone.
            prepare: called in each rank before the training.
            tool: what to do instead of training.
            patience: seconds after the first rank has ended badly.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        began = time.monotonic()
        children: dict[int, int] = {}
        for rank in range(num_ranks):
            sys.stdout.flush()
            child = os.fork()
            if not child:
                settings = (overrides, into or name, norm, prepare, tool)
                self._be(name, rank, num_ranks, port, *settings)
            children[child] = rank
        codes: dict[int, int] = {}
        seconds: dict[int, float] = {}
        while len(codes) < num_ranks:
            for child, rank in children.items():
                if rank not in codes:
                    ended, status = os.waitpid(child, os.WNOHANG)
                    if ended:
                        codes[rank] = os.waitstatus_to_exitcode(status)
                        seconds[rank] = time.monotonic() - began
                    elif time.monotonic() - min([*seconds.values(), 1e9]) - began > patience:
                        os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        said = {r: (self.folder / f"{name}.{r}.stderr").read_text() for r in range(num_ranks)}
        results = [{"code": codes[r], "seconds": seconds[r], "said": said[r]} for r in codes]
        ranks = dict(zip(codes, results, strict=True))
        (self.folder / f"{name}.json").write_text(json.dumps([ranks[r] for r in sorted(ranks)]))
        print(name, codes, f"{time.monotonic() - began:.1f} s", flush=True)

    def _be(self, name, rank, num_ranks, port, overrides, into, norm, prepare, tool) -> None:
        code = 70
        try:
            for number, kind in ((1, "stdout"), (2, "stderr")):
                file = os.open(self.folder / f"{name}.{rank}.{kind}", os.O_CREAT | os.O_WRONLY)
                os.dup2(file, number)
            torch.set_num_threads(1)
            if num_ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(num_ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            prepare(rank)
            cfg = toy_config(self.data_root, self.folder / into, *BASE, *overrides)
            cfg.model.backbone.norm = norm
            with reported("train"):
                tool(cfg)
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def main(data_root: str, folder: Path) -> None:
    run = Runs(data_root, folder)
    run("one", 1)
    run("two", 2)
    run("parts", 2, "data.batch_size=2", "training.accumulate=2")
    run("compiled", 2, "runtime.compile=true", prepare=compile_quickly)
    still = ("optimizer.lr=1e-30", "training.max_steps=1")
    run("still_one", 1, *still)
    run("still_two", 2, *still)
    for number in (1, 2):
        tool = evaluate_run(folder / f"evaluated_{number}")
        run(f"evaluated_{number}", number, into="two", tool=tool)
    note = note_statistics(folder)
    run("statistics", 2, "training.precise_bn_steps=1", norm="bn", prepare=note)

    run("stopped", 2, prepare=stop_one)
    run("stopped_again", 1, "resume=auto", into="stopped")
    run("killed", 2, prepare=kill_one)
    run("killed_again", 2, "resume=auto", into="killed")
    run("late", 2, "distributed.timeout=8s", prepare=delay_one, patience=5)
    run("broken", 2, prepare=break_one)
    run("refused", 2, "data.batch_size=3")
    run("not_finite", 2, prepare=poison_one)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
