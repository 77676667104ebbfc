"""Several trainings by one command."""

import json
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from rich.console import Console

from detector import cli
from detector.engine.run_directory import RunDirectory, resume_command
from detector.engine.sweep import report_sweep, row_directory, row_name, sweep_table
from tests.small_trainings import TINY, TINY_MASKS, TINY_SHAPES


@pytest.mark.parametrize(
    ("overrides", "arguments", "expected"),
    [
        (
            ["roi_op=roi_pool", "seed=1"],
            ["-m", "roi_op=roi_pool,roi_align", "seed=1"],
            "roi_op=roi_pool",
        ),
        # Hydra hands on what a recipe sweeps over, which no one typed.
        (["roi_op=roi_warp", "experiment=x"], ["experiment=x"], "roi_op=roi_warp"),
        (["experiment/ablation/row@_global_=fcn"], [], "row=fcn"),
        (
            ["optimizer.lr=0.1", "seed=2"],
            ["-m", "optimizer.lr=0.1,1", "seed=1,2"],
            "optimizer.lr=0.1,seed=2",
        ),
        (["data.root=/a b/c"], [], "data.root=-a-b-c"),
        (["seed=1"], ["-m", "seed=1"], "row"),
        # It writes values in its own way.
        (
            ["roi_op=roi_pool", "evaluation.loss=True", "augment.val=[]", "++x=1.0"],
            ["-m", "roi_op=glob(roi_*)", "evaluation.loss=true", "augment.val=[ ]", "++x=1."],
            "roi_op=roi_pool",
        ),
    ],
)
def test_rows_are_called_by_what_is_their_own(overrides, arguments, expected):
    assert row_name(overrides, arguments) == expected


def test_rows_lie_in_the_folder_of_the_command_line():
    assert row_directory(Path("runs/x"), "seed=1", None, None) == Path("runs/x/seed=1")
    assert row_directory(Path("runs/x"), "seed=1", "there", "auto") == Path("there/seed=1")
    for run_dir, resume in ((None, "auto"), ("there", "there/seed=1")):
        with pytest.raises(ValueError, match=f"resume={resume}: several trainings"):
            row_directory(Path("runs/x"), "seed=1", run_dir, resume)


def test_the_table_shows_every_row_and_what_it_measured():
    rows = {
        "a": {"box": {"AP": 0.25, "AP50": 0.5}, "mask": {"AP": 0.125}},
        "b": {"box": {"AP": 0.3333, "AP50": None}},
    }
    console = Console(width=100)
    with console.capture() as capture:
        console.print(sweep_table(rows))
    lines = [line.replace("│", "").replace("┃", "").split() for line in capture.get().splitlines()]
    assert ["box", "AP", "box", "AP50", "mask", "AP"] in lines
    assert ["a", "25.0", "50.0", "12.5"] in lines and ["b", "33.3", "-", "-"] in lines


def test_a_narrow_table_says_what_its_rows_are():
    numbers = dict.fromkeys(("AP", "AP50", "AP75", "AR100"), 0.5)
    name = "roi_op=roi_warp"
    console = Console(width=80)
    with console.capture() as capture:
        console.print(sweep_table({name: {"box": numbers, "mask": numbers}}))
    [line] = [line for line in capture.get().splitlines() if "50.0" in line]
    assert name in line and line.count("50.0") == 8


@pytest.fixture
def command(monkeypatch, tmp_path, shapes_root, capsys):
    """``command("key=value", ...)`` runs the tool on tiny shapes and gives what it printed."""
    monkeypatch.chdir(tmp_path)
    settings = [f"{key}={value}" for key, value in TINY_SHAPES.items()]
    settings += [*TINY, *TINY_MASKS, f"data.root={shapes_root}", "logging.pictures=0"]
    settings += ["training.max_steps=1", "schedule.warmup_steps=0", "logging.every=1"]

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["detector", "train", *words, *settings])
        cli.main()
        return capsys.readouterr().out

    return run


def test_a_training_for_each_value_and_a_table(command, tmp_path):
    """The rows differ in what was asked for alone; a second call finds them finished."""
    words = ("-m", "roi_op=roi_pool,roi_align", "run_dir=sweep")
    printed = command(*words)
    names = ["roi_op=roi_pool", "roi_op=roi_align"]
    table = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert list(table) == names
    for name in names:
        metrics = tmp_path / "sweep" / name / "metrics.json"
        assert json.loads(metrics.read_text()) == table[name]
        assert f"{name}: training" in printed
    one, other = ((tmp_path / "sweep" / name / "config.yaml").read_text() for name in names)
    changed = {line.strip() for line in one.splitlines()} ^ {
        line.strip() for line in other.splitlines()
    }
    assert {line.split(":")[0] for line in changed} <= {
        *("_target_", "run_dir", "mode", "sampling_ratio", "aligned")
    }
    assert not (tmp_path / "runs").exists(), "nothing beside the folder asked for"

    again = command(*words, "resume=auto")
    assert again.count("resumed from") == 2
    assert json.loads((tmp_path / "sweep" / "table.json").read_text()) == table


def test_jobs_of_a_launcher_know_their_command_and_each_other(command, tmp_path, monkeypatch):
    """A launcher such as submitit runs each row in a process with arguments of its own."""
    launch = BasicLauncher.launch

    def in_a_job(self, overrides, initial_job_idx):
        monkeypatch.setattr(sys, "argv", ["_submit.py", "folder"])
        return launch(self, overrides, initial_job_idx)

    monkeypatch.setattr(BasicLauncher, "launch", in_a_job)
    words = ("-m", "seed=3,4", "run_dir=jobs")
    command(*words)
    assert sorted(path.name for path in (tmp_path / "jobs").glob("seed=*")) == ["seed=3", "seed=4"]
    other = {"box": {"AP": float("nan")}}
    (tmp_path / "jobs" / "seed=5").mkdir()
    (tmp_path / "jobs" / "seed=5" / "metrics.json").write_text(json.dumps(other))
    report_sweep(tmp_path / "jobs", {"seed=4": {"box": {"AP": 0.5}}})
    table = json.loads((tmp_path / "jobs" / "table.json").read_text())
    assert list(table) == ["seed=4", "seed=3", "seed=5"] and table["seed=4"]["box"]["AP"] == 0.5


def test_a_stopped_row_says_how_all_go_on(monkeypatch):
    arguments = ["/bin/detector train", "-m", "seed=1,2", "run_dir=x", "hydra.sweep.dir=x"]
    assert resume_command(RunDirectory(Path("x")), arguments).endswith(
        "train -m seed=1,2 run_dir=x resume=auto"
    )
