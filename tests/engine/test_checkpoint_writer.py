import builtins
import errno
import resource
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.commands.train import train
from detector.engine import atomic_file, checkpoint_writer
from detector.engine.checkpoint import load_checkpoint
from detector.engine.checkpoint_writer import CheckpointWriter, check_writable, checkpoint_bytes
from detector.engine.run_directory import RunDirectory
from tests.engine.toy_training import toy_config


def content(step: int, weight: float = 0.0) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {"weight": torch.full((20_000,), weight)},
        "config": "",
        "class_names": [],
        "category_ids": [],
        "step": step,
    }


def steps(run: RunDirectory) -> dict[str, int]:
    return {file.name: load_checkpoint(file)["step"] for file in run.last.parent.glob("*.pt")}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    run.last.parent.mkdir()
    return run


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While it holds something, what is written to checkpoints meets a disk without space."""
    full: list[bool] = []

    def open_full(path: Path, mode: str):
        return builtins.open("/dev/full" if full and ".pt." in str(path) else path, mode)

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(atomic_file, "open", open_full, raising=False)
    monkeypatch.setattr(atomic_file.os, "fsync", lambda number: None)
    return full


def test_the_newest_rotate_and_copies_stay(run: RunDirectory) -> None:
    with CheckpointWriter(run, keep_last=3) as writer:
        for step in (1, 2, 2, 3, 4, 5):  # the evaluation of a step saves it again
            writer.save(content(step), best=step == 3, keep=step == 2)
    assert steps(run) == {
        "last.pt": 5,
        "previous.pt": 4,
        "previous_2.pt": 3,
        "best.pt": 3,
        "step_00000002.pt": 2,
    }
    assert not list(run.last.parent.glob(".*"))


def test_one_kept_is_last_alone(run: RunDirectory) -> None:
    with CheckpointWriter(run, keep_last=1) as writer:
        writer.save(content(1))
        writer.save(content(2))
    assert steps(run) == {"last.pt": 2}


def test_what_changes_while_it_is_written_is_not_what_is_saved(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, save = threading.Event(), checkpoint_writer.save_checkpoint

    def slow(*arguments, **options):
        assert go_on.wait(60)
        save(*arguments, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    state = content(1, 0.5)
    with CheckpointWriter(run) as writer:
        writer.save(state)
        assert not run.last.exists()
        state["model"]["weight"].fill_(7.0)
        state["step"] = 2
        go_on.set()
    found = load_checkpoint(run.last)
    assert found["step"] == 1 and (found["model"]["weight"] == 0.5).all()


def test_a_full_disk_costs_one_checkpoint_and_a_warning(
    run: RunDirectory, full_disk: list[bool]
) -> None:
    said: list[str] = []
    with CheckpointWriter(run, warn=said.append) as writer:
        writer.save(content(1))
        writer.save(content(2))
        writer.wait()
        full_disk.append(True)
        writer.save(content(3), best=True)
        writer.wait()
        assert steps(run) == {"last.pt": 2, "previous.pt": 1}
        full_disk.clear()
        writer.save(content(4))
    [warning] = said
    assert "step 3" in warning and "No space left" in warning and "of step 2 stays" in warning
    assert steps(run) == {"last.pt": 4, "previous.pt": 2}


def test_the_last_checkpoint_has_to_be_there(run: RunDirectory, full_disk: list[bool]) -> None:
    said = r"step 2 could.*step 1 stays\. Make room.*resume=auto"
    with pytest.raises(OSError, match=said), CheckpointWriter(run) as writer:
        writer.save_now(content(1))
        full_disk.append(True)
        writer.save_now(content(2))
    assert steps(run) == {"last.pt": 1}


def test_weights_that_are_not_finite_end_it(run: RunDirectory) -> None:
    with pytest.raises(FloatingPointError, match="step 2"), CheckpointWriter(run) as writer:
        writer.save(content(1))
        writer.save(content(2, float("nan")))
    assert steps(run) == {"last.pt": 1}


def test_the_rest_of_a_killed_write_goes(run: RunDirectory) -> None:
    run.last.with_name(".last.pt.1234.tmp").write_bytes(b"half")
    with CheckpointWriter(run):
        assert not list(run.last.parent.iterdir())


def test_too_little_space_is_refused_before_the_first_step(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    # The last two, the best, five copies, and one being written: 9 of 100 bytes.
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda folder: usage(900))
    check_writable(run, 100, keep_last=2, keep_every=20, max_steps=100)
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda folder: usage(899))
    with pytest.raises(OSError, match=r"GiB are free.*keep_last.*keep_every"):
        check_writable(run, 100, keep_last=2, keep_every=20, max_steps=100)
    run.last.write_bytes(b"there already")
    check_writable(run, 100, keep_last=2, keep_every=20, max_steps=100)


def test_files_that_may_not_be_so_large_are_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (99, 99))
    with pytest.raises(OSError, match=r"at most 0\.00 here; raise `ulimit -f`"):
        check_writable(run, 100, keep_last=2, keep_every=0, max_steps=100)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 100))
    check_writable(run, 100, keep_last=2, keep_every=0, max_steps=100)


def test_a_folder_that_cannot_be_written_is_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=r"cannot be written to.*Read-only.*another run_dir"):
        check_writable(run, 100, keep_last=2, keep_every=0, max_steps=100)


def test_the_size_is_foreseen(run: RunDirectory) -> None:
    model = nn.Linear(300, 100)
    sgd, momentum = (torch.optim.SGD(model.parameters(), 0.1, m) for m in (0.0, 0.9))
    adam = torch.optim.Adam(model.parameters())
    assert [checkpoint_bytes(o, model) for o in (sgd, momentum, adam)] == [
        120_400,
        240_800,
        361_200,
    ]
    assert checkpoint_bytes(sgd, model, model) == 240_800


def test_a_training_outlives_a_full_disk_until_its_end(
    shapes_root: Path, tmp_path: Path, full_disk: list[bool], monkeypatch, capsys
) -> None:
    run = RunDirectory(tmp_path / "run")
    rotate = CheckpointWriter._rotate

    def fill(writer: CheckpointWriter) -> None:
        rotate(writer)
        full_disk.append(True)

    monkeypatch.setattr(CheckpointWriter, "_rotate", fill)
    with pytest.raises(OSError, match=r"step 6 could not be written.*step 2 stays"):
        train(toy_config(shapes_root, run.path, "checkpoint.every=1"))
    assert "the checkpoint of step 4 could not be written" in capsys.readouterr().out
    assert steps(run) == {"last.pt": 2, "previous.pt": 1}
    full_disk.clear()
    monkeypatch.setattr(CheckpointWriter, "_rotate", rotate)
    train(toy_config(shapes_root, run.path, "checkpoint.every=1", "resume=auto"))
    assert load_checkpoint(run.last)["step"] == 6
