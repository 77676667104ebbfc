"""A built wheel works without the checkout: its configs travel inside it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-isolation")
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and "--no-isolation" not in command and "hatchling" in output:
        pytest.skip("hatchling is neither installed nor obtainable: pip install -e '.[test]'")
    assert done.returncode == 0, output
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(target), str(wheel)], check=True)
    return target


def run_detector(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``detector`` of the installed wheel, from a folder outside the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "detector.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_package_and_configs_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "detector").rglob("*.py")]
    configs = [
        "detector" / path.relative_to(REPOSITORY)
        for path in (REPOSITORY / "configs").rglob("*.yaml")
    ]
    assert {path.as_posix() for path in [*modules, *configs]} <= names
    assert "detector/configs/train.yaml" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"detector"}


def test_the_command_is_declared_and_dependencies_are_those_of_the_project(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    read = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
    assert "detector = detector.cli:main" in archive.read(read["entry_points.txt"]).decode()
    metadata = archive.read(read["METADATA"]).decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "LICENSE" in read


@pytest.mark.parametrize("tool", ["train", "evaluate", "predict"])
def test_tools_find_their_configs_from_any_folder(installed: Path, tmp_path: Path, tool: str):
    shown = run_detector(installed, tmp_path, tool, "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "runtime:" in shown.stdout
    assert list(tmp_path.iterdir()) == [], "looking at a config writes nothing"


def test_an_unknown_key_is_one_message(installed: Path, tmp_path: Path):
    done = run_detector(installed, tmp_path, "train", "training.max_step=3")
    assert done.returncode == 2
    assert "unknown config key 'training.max_step'; did you mean training.max_steps" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
