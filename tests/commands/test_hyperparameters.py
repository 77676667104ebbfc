"""A row of settings for each training, as TensorBoard's own reader finds it."""

import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from detector import cli
from detector.commands.hyperparameters import final_metrics, hyperparameters
from detector.commands.train import train
from detector.engine.metric_log import MetricLog
from tests.engine.toy_training import toy_config
from tests.small_trainings import CONFIGS, TINY, TINY_MASKS, TINY_SHAPES

METRICS = {
    "box": {"AP": 0.25, "AP50": 0.5, "AP75": 0.1, "APs": -1.0},
    "mask": {"AP": -1.0, "AP50": -1.0},
    "box_errors": {"missed": 0.25},
    "per_class": {"cat": {"box_AP": 0.5}},
}


def table(folder):
    """Columns of the table of trainings, and for each of its runs the settings."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    context = Context(TBContext(data_provider=provider))
    request = RequestContext()
    content = context.hparams_metadata(request, "")
    found = context.experiment_from_metadata(request, "", True, content, None)
    rows = {}
    for run, tags in content.items():
        given = parse_session_start_info_plugin_data(tags[SESSION_START_INFO_TAG]).hparams
        rows[run] = {key: value.string_value or value.number_value for key, value in given.items()}
    settings = {info.name: info.differs for info in found.hparam_infos}
    return settings, sorted(info.name.tag for info in found.metric_infos), rows


def test_final_numbers_are_those_that_are_defined():
    assert final_metrics(METRICS) == {"box AP": 0.25, "box AP50": 0.5}


def test_values_are_numbers_or_text(compose_tiny):
    found = hyperparameters(compose_tiny("optimizer.lr=0.5", "training.ema_decay=null"))
    assert found["optimizer.lr"] == 0.5 and found["training.ema_decay"] == "null"
    assert all(type(value) in (float, str) for value in found.values())


def test_what_the_command_line_chose_is_among_them(monkeypatch):
    """A group of a package of its own, a key of its own, and a place, which tells nothing."""
    words = ["experiment=ablation/table2e", "experiment/ablation/row@_global_=mlp2"]
    words += ["data.train.keep_empty=false", "run_dir=there", "data.root=here"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", words, return_hydra_config=True)
    own = OmegaConf.masked_copy(cfg, "hydra")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", own)
    found = hyperparameters(cfg)
    assert (found["experiment"], found["row"]) == ("ablation/table2e", "mlp2")
    assert (found["model"], found["backbone"]) == ("mask_rcnn_fpn_mlp", "resnet50_fpn")
    assert found["data.train.keep_empty"] == "false"
    assert not {"run_dir", "data.root"} & found.keys()


def test_later_rows_bring_columns_of_their_own(tmp_path):
    for name, given in (("a", {"lr": 0.1}), ("b", {"lr": 0.2, "roi_op": "roi_pool"})):
        log = MetricLog(tmp_path / name / "lines", tmp_path / name / "tensorboard")
        log.evaluation(5, METRICS)
        log.settings({"lr": 9.0}, {"mask AP": 0.5})  # before it was resumed
        log.settings(given, final_metrics(METRICS))
        log.close()
    settings, metrics, rows = table(tmp_path)
    assert settings == {"lr": True, "roi_op": False}
    assert metrics == ["final/box AP", "final/box AP50"]
    assert rows == {
        "a/tensorboard/hparams": {"lr": 0.1},
        "b/tensorboard/hparams": {"lr": 0.2, "roi_op": "roi_pool"},
    }


def test_a_sweep_is_compared_by_what_it_sweeps_over(monkeypatch, tmp_path, shapes_root):
    monkeypatch.chdir(tmp_path)
    words = [f"{key}={value}" for key, value in TINY_SHAPES.items()] + TINY + TINY_MASKS
    words += [f"data.root={shapes_root}", "training.max_steps=1", "schedule.warmup_steps=0"]
    words += ["logging.pictures=0", "run_dir=sweep", "roi_op=roi_pool,roi_align"]
    monkeypatch.setattr(sys, "argv", ["detector", "train", "-m", *words])
    cli.main()
    settings, metrics, rows = table(tmp_path / "sweep")
    assert [name for name, differs in settings.items() if differs] == ["roi_op"]
    assert {"backbone", "optimizer.lr", "seed", "training.max_steps"} <= settings.keys()
    assert not {"run_dir", "data.root", "logging.pictures", "data.num_workers"} & settings.keys()
    assert metrics == ["final/box AP", "final/box AP50", "final/mask AP", "final/mask AP50"]
    [row] = [row for name, row in rows.items() if "roi_pool" in name]
    assert (row["roi_op"], row["backbone"], row["data.batch_size"]) == (
        *("roi_pool", "resnet18_fpn"),
        2,
    )


def gradient_squares(run):
    """By step, the squares of all gradients that its histograms count."""
    events = EventAccumulator(str(run / "tensorboard"), {"histograms": 0}).Reload()
    squares = {}
    for tag in events.Tags()["histograms"]:
        for event in events.Histograms(tag):
            if tag.startswith("gradients_"):
                former = squares.get(event.step, 0.0)
                squares[event.step] = former + event.histogram_value.sum_squares
    return squares, events.Tags()["histograms"]


def test_histograms_hold_the_gradient_of_the_whole_step(tmp_path, shapes_root):
    """Of both batches, as clipped: its norm is the one that is logged."""
    settings = ("training.accumulate=2", "logging.histograms=2", "logging.every=1")
    cfg = toy_config(shapes_root, tmp_path, *settings, "training.max_steps=4",
                     "training.gradient_clip=0.5")  # fmt: skip
    train(cfg)
    squares, tags = gradient_squares(tmp_path)
    assert squares.keys() == {2, 4}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    norms = {event.step: event.value for event in events.Scalars("training/gradient_norm")}
    for step, square in squares.items():
        assert square**0.5 == pytest.approx(min(norms[step], 0.5), rel=1e-4)
    groups = {tag.partition("/")[0] for tag in tags}
    parts = ("backbone", "rpn", "box_branch")
    assert groups == {f"{kind}_{part}" for kind in ("weights", "gradients") for part in parts}


def test_without_the_option_nothing_is_counted(tmp_path, shapes_root, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the device was asked")

    monkeypatch.setattr("detector.engine.metric_log.count_values", refuse)
    train(toy_config(shapes_root, tmp_path, "training.max_steps=1"))
    with pytest.raises(ValueError, match=r"logging\.histograms=-5; it must be steps"):
        train(
            OmegaConf.merge(
                toy_config(shapes_root, tmp_path / "b"), {"logging": {"histograms": -5}}
            )
        )
