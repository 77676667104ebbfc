import shutil
import sys
from pathlib import Path

import pytest

from detector.engine.run_directory import RunDirectory, choose_run_directory, resume_command


def with_checkpoint(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").touch()
    return folder


def test_a_new_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        run, resume = choose_run_directory(None, None, "shapes", tmp_path)
        assert resume is None and run.path.parent == tmp_path / "shapes"
        run.path.mkdir(parents=True)
        folders.append(run.path)
    assert folders[0] != folders[1]


def test_a_new_run_does_not_overwrite_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds checkpoints.*resume=auto"):
        choose_run_directory(str(with_checkpoint(tmp_path / "run")), None, "shapes")


def test_auto_resumes_the_folder_or_starts_it(tmp_path: Path) -> None:
    run, resume = choose_run_directory(str(tmp_path / "run"), "auto", "shapes")
    assert resume is None and run.path == tmp_path / "run"
    with_checkpoint(tmp_path / "run")
    run, resume = choose_run_directory(str(tmp_path / "run"), "auto", "shapes")
    assert resume == tmp_path / "run" / "checkpoints" / "last.pt"


def test_auto_without_a_folder_takes_the_newest_that_has_a_checkpoint(tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "shapes" / "2026-01-01_00-00-00")
    newest = with_checkpoint(tmp_path / "shapes" / "2026-02-01_00-00-00")
    (tmp_path / "shapes" / "2026-03-01_00-00-00").mkdir()
    with_checkpoint(tmp_path / "other" / "2026-04-01_00-00-00")
    run, resume = choose_run_directory(None, "auto", "shapes", tmp_path)
    assert run.path == newest and resume == run.last
    run, resume = choose_run_directory(None, "auto", "unknown", tmp_path)
    assert resume is None


def test_a_checkpoint_leads_back_to_its_run_unless_another_is_named(tmp_path: Path) -> None:
    folder = with_checkpoint(tmp_path / "run")
    last = folder / "checkpoints" / "last.pt"
    for resume in (folder, last):
        assert choose_run_directory(None, str(resume), "shapes") == (RunDirectory(folder), last)
    run, _ = choose_run_directory(str(tmp_path / "new"), str(last), "shapes")
    assert run.path == tmp_path / "new"
    with pytest.raises(FileNotFoundError, match=r"gone\.pt.*last\.pt"):
        choose_run_directory(None, str(last.with_name("gone.pt")), "shapes")


def test_the_command_keeps_overrides_and_quotes_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    run = RunDirectory(Path("my runs/a"))
    words = ["tools/train.py", "a.b=[1, 2]", "resume=x", "run_dir=y", "experiment=shapes"]
    assert resume_command(run, words) == (
        ".venv/bin/python tools/train.py 'a.b=[1, 2]' experiment=shapes "
        "'run_dir=my runs/a' resume=auto"
    )


def test_the_command_names_an_installed_tool_as_a_shell_would_find_it(
    tmp_path, monkeypatch
) -> None:
    run = RunDirectory(Path("a"))
    installed = tmp_path / "bin" / "detector"
    monkeypatch.setattr(shutil, "which", lambda name: str(installed))
    command = resume_command(run, [f"{installed} train", "seed=1"])
    assert command == "detector train seed=1 run_dir=a resume=auto"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    command = resume_command(run, [f"{installed} train", "seed=1"])
    assert command == f"{installed} train seed=1 run_dir=a resume=auto"
