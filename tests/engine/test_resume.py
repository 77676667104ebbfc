from pathlib import Path

import pytest
import torch

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.resume import load_to_resume
from detector.engine.run_directory import RunDirectory, choose_run_directory
from tests.engine.toy_training import toy_config


@pytest.fixture(scope="module")
def finished(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("toy") / "run"
    train(toy_config(shapes_root, run_dir, "checkpoint.every=2", "training.max_steps=5"))
    return run_dir


def copy(run: Path, to: Path) -> RunDirectory:
    for file in (run / "checkpoints").iterdir():
        (to / "checkpoints").mkdir(parents=True, exist_ok=True)
        (to / "checkpoints" / file.name).write_bytes(file.read_bytes())
    return RunDirectory(to)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    """Of a weight: torch reads such a file without a word."""
    matrix = next(value for value in load_checkpoint(path)["model"].values() if value.ndim == 2)
    data = path.read_bytes()
    place = data.index(matrix.numpy().tobytes()) + 100
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert load_checkpoint(path)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit])
def test_past_a_broken_last_checkpoint_it_goes_on_from_the_one_before(
    damage, finished: Path, shapes_root: Path, tmp_path: Path, capsys
) -> None:
    run = copy(finished, tmp_path / "run")
    damage(run.last)
    overrides = ("checkpoint.every=2", "training.max_steps=5", "resume=auto")
    train(toy_config(shapes_root, run.path, *overrides))
    said = capsys.readouterr().out
    assert "last.pt cannot be read" in said or "last.pt is damaged" in said
    assert f"going on from {run.previous()} of step 4" in said
    expected, found = load_checkpoint(finished), load_checkpoint(run.last)
    assert found["step"] == 5
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    # The broken one did not take the place of a whole one.
    assert load_checkpoint(run.previous())["step"] == 4


def test_without_any_whole_checkpoint_it_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    for file in run.saved:
        cut_off(file)
    with pytest.raises(ValueError, match=r"last\.pt cannot be read"):
        load_to_resume(run.last, run, automatic=True)


def test_a_checkpoint_asked_for_is_not_replaced_by_another(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    cut_off(run.last)
    with pytest.raises(ValueError, match=r"last\.pt cannot be read.*previous\.pt"):
        load_to_resume(run.last, run, automatic=False)
    path, content, said = load_to_resume(run.previous(), run, automatic=False)
    assert (path, content["step"], said) == (run.previous(), 4, [])


def test_without_last_the_previous_one_is_found(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    run.last.unlink()
    assert choose_run_directory(str(tmp_path), "auto", "x")[1] == run.previous()
