"""What the command line says when something is wrong, and what it runs when nothing is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import detector
from detector import cli
from detector.config_files import find_configs


@pytest.fixture
def tool(tmp_path: Path, monkeypatch):
    """Runs a stand-in for ``train`` with a small config; ``tool.function`` is what it calls."""
    configs = tmp_path / "configs"
    (configs / "experiment").mkdir(parents=True)
    (configs / "experiment" / "short.yaml").write_text(
        "# @package _global_\ntraining: {steps: 1}\n"
    )
    (configs / "train.yaml").write_text(
        "defaults: [_self_, {experiment: null}]\n"
        "training: {steps: 9, epochs: null}\n"
        "data: {root: here, val: {images: '???'}}\n"
        "hydra: {output_subdir: null, run: {dir: .}, job: {chdir: false}}\n"
    )
    module = ModuleType("stand_in")
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli.TOOLS, "train", ("stand_in", ""))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.delenv("DETECTOR_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    seen = []

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["train", *words])
        module.train = lambda config, **given: seen.append(config) or run.function(config)
        cli.run_tool("train", configs)
        return seen[-1]

    run.function = lambda config: None
    return run


@pytest.fixture
def refused(tool, capsys):
    """The message and exit code of a refused command line."""

    def run(*words: str) -> tuple[str, int]:
        with pytest.raises(SystemExit) as exit:
            tool(*words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return captured.err, exit.value.code

    return run


def test_overrides_reach_the_tool(tool):
    config = tool("experiment=short", "data.root=a/b c")
    assert config.training.steps == 1
    assert config.data.root == "a/b c"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["training.steps=many"], "training.steps=many: a whole number"),
        (["training.steps=2.5"], "such as training.steps=9"),
        (["experiment=short", "training.steps=x"], "such as training.steps=1"),
        (["training=3"], "training=3: a group of settings"),
        (["++data={root: [1]}"], "data.root=[1]: text"),
    ],
)
def test_a_value_of_another_kind_than_the_default_is_refused(refused, words: list, named: str):
    message, code = refused(*words)
    assert code == 2
    assert named in message


def test_a_group_that_is_switched_off_needs_no_values(tool):
    assert tool("training.steps=3", "training=null").training is None


def test_numbers_are_names_where_text_is_meant(tool):
    assert tool("data.root=2024").data.root == "2024"


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("training.step=3", ["'training.step'", "training.steps"]),
        ("steps=3", ["'steps'", "training.steps"]),
        ("experimnt=short", ["'experimnt'", "experiment"]),
        ("data.vall.images=x", ["'data.vall.images'", "data.val.images"]),
        ("zzz=1", ["'zzz'", "--help"]),
    ],
)
def test_an_unknown_key_is_named_with_its_neighbours(refused, word: str, names: list[str]):
    message, code = refused("data.root=x", word)
    assert code == 2
    assert all(name in message for name in names)


def test_an_unknown_choice_lists_the_choices(refused):
    message, code = refused("experiment=long")
    assert code == 2
    assert "experiment/long" in message and "short" in message


@pytest.mark.parametrize(
    ("word", "first", "last"),
    [
        ("shrot", "there is no experiment=shrot; did you mean short?", "long_voc07"),
        ("voc07", "there is no experiment=voc07; did you mean long_voc07?", "short"),
    ],
)
def test_a_misspelt_choice_is_told_the_near_ones_first(
    tool, refused, tmp_path: Path, word: str, first: str, last: str
):
    (tmp_path / "configs" / "experiment" / "long_voc07.yaml").touch()
    message, code = refused(f"experiment={word}")
    assert code == 2
    assert message.startswith(f"detector train: error: {first}\nOthers: {last}")


def test_a_tool_for_one_process_is_refused_several(tool, refused, monkeypatch):
    tool()  # several ranks train
    monkeypatch.setattr(cli, "SEVERAL_RANKS", ("evaluate",))
    tool()
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    message, code = refused()
    assert (code, "tools/train.py is not for 2 ranks; start it without torchrun" in message) == (
        2,
        True,
    )


def test_a_batch_size_may_be_short():
    assert cli._spelt_out("batch_size=auto", "train") == "data.batch_size=auto"
    assert cli._spelt_out("batch_size=4", "predict") == "batch_size=4"
    assert cli._spelt_out("init=runs/a=b", "train") == "init.checkpoint=runs/a=b"
    assert cli._spelt_out("init={backbone: x}", "train") == "init={backbone: x}"


def test_a_file_given_as_the_data_is_told_its_place(tool, refused, tmp_path: Path):
    (tmp_path / "configs" / "data").mkdir()
    (tmp_path / "configs" / "data" / "custom.yaml").touch()
    message, code = refused("+data=my/train.json")
    assert code == 2
    assert "data=custom" in message and "data.train.annotations=FILE" in message


def test_blanks_around_the_equals_sign_are_pointed_out(refused):
    message, code = refused("training.steps", "=", "3")
    assert code == 2
    assert "key=value without blanks" in message


def test_a_malformed_override_shows_how_to_quote(refused):
    message, code = refused("data.root=a=b")
    assert code == 2
    assert "quotes" in message


def test_a_missing_value_names_its_key(tool, refused):
    tool.function = lambda config: config.data.val.images
    message, code = refused()
    assert (code, "data.val.images must be given: data.val.images=..." in message) == (2, True)


@pytest.mark.parametrize("error", [ValueError("a.json: image 7 ..."), OSError("disk full")])
def test_a_users_error_is_one_message(tool, refused, error: Exception):
    def fail(config: object) -> None:
        raise error

    tool.function = fail
    message, code = refused()
    assert code == 2
    assert message.startswith(f"detector train: error: {error}")


def test_a_missing_file_is_named(tool, refused):
    tool.function = lambda config: Path("nowhere.json").read_text()
    message, _ = refused()
    assert "nowhere.json" in message


def test_our_own_errors_and_debugging_keep_the_traceback(tool, monkeypatch):
    tool.function = lambda config: [][0]
    with pytest.raises(IndexError):
        tool()
    monkeypatch.setenv("DETECTOR_DEBUG", "1")
    tool.function = lambda config: int("x")
    with pytest.raises(ValueError, match="invalid literal"):
        tool()


def test_ctrl_c_outside_training_is_quiet(tool, refused):
    def interrupt(config: object) -> None:
        raise KeyboardInterrupt

    tool.function = interrupt
    message, code = refused()
    assert code == 130
    assert "interrupted" in message


def test_usage_version_and_misspelt_tools(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["detector"])
    cli.main()
    usage = capsys.readouterr().out
    assert all(name in usage for name in ("train", "evaluate", "predict"))

    monkeypatch.setattr(sys, "argv", ["detector", "--version"])
    cli.main()
    assert capsys.readouterr().out == f"detector {detector.__version__}\n"

    monkeypatch.setattr(sys, "argv", ["detector", "trian"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_configs_of_the_checkout_are_found():
    assert (find_configs() / "train.yaml").is_file()


def test_a_diverged_training_is_one_message(tool, refused):
    def diverge(config: object) -> None:
        raise FloatingPointError("loss_box is nan at step 7")

    tool.function = diverge
    message, code = refused()
    assert (code, "loss_box is nan at step 7" in message) == (2, True)


def test_a_backbone_that_lacks_what_the_model_reads_is_named_with_it(monkeypatch, capsys, tmp_path):
    words = ["detector", "describe", "~experiment", "model=faster_rcnn_c4", "backbone=vgg16"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "model=faster_rcnn_c4 does not go with backbone=vgg16: it reads model.backbone.name" in (
        message
    )
    assert "faster_rcnn_c4.yaml say which it is for" in message
    assert " resnet50_c4," in message and "vgg16," not in message
