"""Kills a training of 200 steps ten times at random moments and compares its end bit for bit.

    python -m tests.engine.kill_and_resume DATA_ROOT FOLDER SEED

Each attempt is a fork of this process, so that only one has to import torch. Prints a line per
attempt; exits with 1 if an end differs.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from tests.engine.toy_training import toy_config

STEPS, KILLS = 200, 10


def start(data_root: str, run_dir: Path, num_workers: int) -> int:
    """Trains in a child process, from the newest checkpoint; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
        torch.set_num_threads(1)
        overrides = (
            f"training.max_steps={STEPS}",
            "training.ema_decay=0.9",
            "training.precise_bn_steps=1",
            "evaluation.every=90",
            "evaluation.loss=true",
            "checkpoint.every=7",
            "resume=auto",
            f"data.num_workers={num_workers}",
        )
        train(toy_config(data_root, run_dir, *overrides))
        code = 0
    finally:
        os._exit(code)


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def end(run_dir: Path) -> dict[str, object]:
    """The last checkpoint without what may differ: where it was written, and how long it took.

    Learning rates neither count nor last: each step sets them, and where the last kill came after
    the last step, none did.
    """
    content = load_checkpoint(run_dir)
    for group in content["optimizer"]["param_groups"]:
        del group["lr"]
    return {key: value for key, value in content.items() if key not in ("config", "seconds")}


def main(data_root: str, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    began = time.monotonic()
    whole = folder / "whole"
    assert os.waitpid(start(data_root, whole, 0), 0)[1] == 0
    duration = time.monotonic() - began
    expected = end(whole)

    kills, run = 0, 0
    while True:
        run_dir = folder / f"killed_{run}"
        child = start(data_root, run_dir, num_workers=kills % 2)
        deadline = time.monotonic() + rng.uniform(0.1, 0.35) * duration
        while kills < KILLS and time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.002)
        else:
            if kills < KILLS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                last = run_dir / "checkpoints" / "last.pt"
                step = load_checkpoint(last)["step"] if last.is_file() else 0
                print(f"killed, {last} is of step {step}")
                continue
            assert os.waitpid(child, 0)[1] == 0
        found = end(run_dir)
        other = [key for key in expected if not same(found.get(key), expected[key])]
        if other:
            sys.exit(f"{run_dir} has another end: {', '.join(other)}")
        print(f"{run_dir} finished with the same bits")
        if kills == KILLS:
            return
        run += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
