"""The tool for datasets: what it writes is read by the configs it names, and what it refuses."""

from __future__ import annotations

import os

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from detector.commands.data import data
from detector.config_files import find_configs
from detector.data.writers.formats import FORMATS
from detector.engine import assembly


def compose(*words):
    with hydra.initialize_config_dir(str(find_configs()), version_base="1.3"):
        return hydra.compose("data", list(words))


@pytest.fixture
def run(shapes_root, tmp_path):
    """Runs the tool on the shapes; gives the folder."""

    def run(*words, output="out"):
        source = [f"data.root={shapes_root}", "data.prepare=null"]
        data(compose("data=shapes", *source, f"output={tmp_path / output}", *words))
        return tmp_path / output

    return run


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_by_its_config(run, form, capsys, shapes_root):
    root = run("action=convert", f"to={form}")
    said = capsys.readouterr().out
    assert "train: writing 12 images" in said and "val: writing 4 images" in said
    [command] = [line for line in said.splitlines() if line.startswith("read with ")]
    words = command.removeprefix("read with ").replace("'", "").split()
    config = compose("action=convert", "output=none", *words)
    assert str(root) in words[1]
    words = ["data=shapes", f"data.root={shapes_root}", "data.prepare=null"]
    source = compose(*words, "action=convert", "output=none")
    for split in ("train", "val"):
        config.data[split].augment = source.data[split].augment = None
        index = assembly.build_dataset(config.data, split).index
        expected = assembly.build_dataset(source.data, split).index
        order = np.argsort(index.image_ids)
        assert len(index) == len(expected) and index.category_names == expected.category_names
        assert index.widths[order].tolist() == expected.widths.tolist()
        assert index.has_masks == (form != "voc")
        assert index.num_annotations <= expected.num_annotations
        assert np.array_equal(np.unique(index.labels), np.unique(expected.labels))


def test_split_divides_and_links(run, capsys, shapes_root):
    root = run("action=split", "split=train", "fraction=.25", "to=yolo")
    train = {path.name for path in (root / "images/train").iterdir()}
    val = {path.name for path in (root / "images/val").iterdir()}
    assert len(train) == 9 and len(val) == 3 and not train & val
    some = root / "images/val" / min(val)
    assert os.path.samefile(some, shapes_root / "train" / some.name)


def test_images_are_referred_to_or_copied(run, shapes_root):
    referred = run("action=convert", "split=val", "images=reference", "to=csv", output="a")
    assert not (referred / "val").exists()
    assert str((shapes_root / "val").resolve()) in (referred / "val.csv").read_text()
    copied = run("action=convert", "split=val", "images=copy", output="b")
    one = next((copied / "val").iterdir())
    assert not os.path.samefile(one, shapes_root / "val" / one.name)
    assert one.read_bytes() == (shapes_root / "val" / one.name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["action=paint"], "action=paint is not known: write check, browse"),
        (["action=convert", "to=png"], "to=png is not known: write coco, voc"),
        (["action=convert", "split=test"], "split=test is not known"),
        (["action=split"], "split=None cannot be divided: write split=train"),
        (["action=convert", "images=move"], "images=move is not known"),
        (["action=convert", "to=yolo", "images=reference"], "images lie beside their annotations"),
        (["action=split", "split=train", "fraction=2"], "fraction=2"),
    ],
)
def test_mistakes_are_refused(run, words, message):
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        run("action=convert", "split=val")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_several_datasets_become_one(run, shapes_root, tmp_path, capsys):
    for name in ("first", "second"):
        run("action=convert", output=name)
    words = [f"data.root={tmp_path}", "data=concat", "action=convert", f"output={tmp_path / 'all'}"]
    data(compose(*words, "data.drop=[]"))
    assert "train: writing 24 images" in capsys.readouterr().out
    config = compose(*words)
    assert OmegaConf.to_container(config.data)["sampler"] == "default"
