"""From an RPN to its file of proposals to a Fast R-CNN, on the synthetic shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from detector.commands.evaluate import evaluate
from detector.commands.propose import propose
from detector.commands.train import train
from detector.data.index import ONE_CATEGORY
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.predictor import load
from tests.small_trainings import TINY, TINY_SHAPES, compose_config

SECOND_STAGE = ("model.roi_sampler", "model.box_branch")
FIRST_STAGE = ("model.rpn",)


def compose_stage(model: str, without: tuple[str, ...], shapes_root: Path, *overrides: str):
    """The tiny training configuration of a model that lacks a stage."""
    shapes = [f"{key}={value}" for key, value in (TINY_SHAPES | {"model": model}).items()]
    words = [word for word in (*TINY, *shapes) if not word.startswith(without)]
    return compose_config("train", [*words, f"data.root={shapes_root}", *overrides])


@pytest.fixture(scope="module")
def trained_rpn(shapes_root: Path, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "rpn"
    overrides = (
        f"run_dir={run_dir}",
        "evaluation.max_detections=[5,10,20]",
        "checkpoint.metric=box.AR20",
        "data.train.keep_empty=false",
    )
    train(compose_stage("rpn_fpn", SECOND_STAGE, shapes_root, *overrides))
    return run_dir


@pytest.fixture(scope="module")
def proposal_files(trained_rpn: Path, compose_tool, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("proposals")
    files = {split: folder / f"{split}.npz" for split in ("train", "val")}
    for split, file in files.items():
        where = (f"checkpoint={trained_rpn}", f"output={file}", f"split={split}")
        assert propose(compose_tool("propose", *where)) == file
    return files


def test_an_rpn_is_trained_evaluated_and_used_without_classes(trained_rpn, shapes_root) -> None:
    metrics = json.loads((trained_rpn / "metrics.json").read_text())
    assert set(metrics) == {"box", "per_class"}
    assert list(metrics["per_class"]) == [ONE_CATEGORY[1]]
    assert 0 <= metrics["box"]["AR5"] <= metrics["box"]["AR20"] <= 1
    detector = load(trained_rpn)
    picture = next((shapes_root / "val").iterdir())
    result = detector.predict(picture, score_threshold=0.0)
    assert len(result) == 20
    assert set(result.names) == {ONE_CATEGORY[1]}


def test_an_rpns_checkpoint_is_evaluated_alike(trained_rpn, compose_tool, tmp_path) -> None:
    metrics = evaluate(compose_tool("evaluate", f"checkpoint={trained_rpn}", f"output={tmp_path}"))
    assert metrics == json.loads((trained_rpn / "metrics.json").read_text())


def test_files_hold_what_the_model_proposes(trained_rpn, proposal_files, shapes_root) -> None:
    """In pixels of the image files, for every image of the split, best first."""
    annotations = shapes_root / "annotations"
    for split, file in proposal_files.items():
        content = json.loads((annotations / f"instances_{split}.json").read_text())
        with np.load(file) as archive:
            assert sorted(archive["image_ids"]) == sorted(r["id"] for r in content["images"])
    image = content["images"][1]
    detector = load(trained_rpn)
    expected = detector.predict(shapes_root / "val" / image["file_name"], score_threshold=0.0)
    with np.load(proposal_files["val"]) as archive:
        place = archive["image_ids"].tolist().index(image["id"])
        part = slice(*archive["offsets"][place : place + 2])
        np.testing.assert_allclose(archive["boxes"][part], expected.boxes, atol=0.05)
        np.testing.assert_allclose(archive["scores"][part], expected.scores, atol=1e-4)


def test_a_fast_rcnn_is_trained_evaluated_and_resumed_on_them(
    proposal_files, compose_tool, shapes_root, tmp_path
) -> None:
    run_dir = tmp_path / "fast"
    overrides = (
        f"run_dir={run_dir}",
        f"data.train.proposals={proposal_files['train']}",
        f"data.val.proposals={proposal_files['val']}",
        "training.max_steps=4",
    )
    metrics = train(compose_stage("fast_rcnn_fpn", FIRST_STAGE, shapes_root, *overrides))
    assert set(metrics) == {"box", "box_errors", "per_class"}
    found = evaluate(compose_tool("evaluate", f"checkpoint={run_dir}", f"output={tmp_path}"))
    assert found == metrics
    last = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    assert not any(name.startswith("rpn.") for name in last["model"])
    with pytest.raises(ValueError, match="classifies given proposals"):
        load(run_dir).predict(shapes_root / "val")
    with pytest.raises(ValueError, match="has no RPN to propose"):
        propose(compose_tool("propose", f"checkpoint={run_dir}", f"output={tmp_path}/p.npz"))


def test_proposals_of_another_split_are_refused(proposal_files, shapes_root, tmp_path) -> None:
    overrides = (
        f"run_dir={tmp_path / 'run'}",
        f"data.train.proposals={proposal_files['val']}",
        f"data.val.proposals={proposal_files['val']}",
    )
    with pytest.raises(ValueError, match="has no proposals for 8 of the 12 images"):
        train(compose_stage("fast_rcnn_fpn", FIRST_STAGE, shapes_root, *overrides))


def test_a_model_and_its_data_must_agree_about_proposals(
    proposal_files, compose_tiny, shapes_root, tmp_path
) -> None:
    with pytest.raises(ValueError, match="FastRCNN needs proposals"):
        run_dir = f"run_dir={tmp_path / 'run'}"
        train(compose_stage("fast_rcnn_fpn", FIRST_STAGE, shapes_root, run_dir))
    with pytest.raises(ValueError, match="MaskRCNN proposes itself"):
        train(
            compose_tiny(
                f"run_dir={tmp_path / 'mask'}",
                f"data.train.proposals={proposal_files['train']}",
                f"data.val.proposals={proposal_files['val']}",
            )
        )


def test_any_detector_with_an_rpn_proposes(trained, compose_tool, tmp_path) -> None:
    """As many as asked for."""
    file = tmp_path / "some.npz"
    where = (f"checkpoint={trained}", f"output={file}", "num_proposals=7")
    propose(compose_tool("propose", *where))
    with np.load(file) as archive:
        assert np.diff(archive["offsets"]).tolist() == [7] * 4
        assert archive["scores"].min() > 0
        assert archive["scores"].max() < 1


def test_an_unknown_split_is_refused(trained_rpn, compose_tool, tmp_path) -> None:
    where = (f"checkpoint={trained_rpn}", f"output={tmp_path}/p.npz", "split=test")
    with pytest.raises(ValueError, match="split=test is not known"):
        propose(compose_tool("propose", *where))


def test_the_numbers_of_training_on_request(trained_rpn, compose_tool, tmp_path) -> None:
    content = load_checkpoint(trained_rpn)
    config = OmegaConf.create(content["config"])
    config.model.rpn.train_proposals.post_nms_top_n = 7
    save_checkpoint(tmp_path / "other.pt", content | {"config": OmegaConf.to_yaml(config)})
    words = (f"checkpoint={tmp_path / 'other.pt'}", f"output={tmp_path / 'p.npz'}", "split=val")
    for layer, count in (("train_proposals", 7), ("test_proposals", 20)):
        propose(compose_tool("propose", *words, f"layer={layer}"))
        with np.load(tmp_path / "p.npz") as archive:
            assert np.diff(archive["offsets"]).max() == count
            assert all(name.endswith(".jpg") for name in archive["file_names"])
    with pytest.raises(ValueError, match="layer=rpn is not known"):
        propose(compose_tool("propose", *words, "layer=rpn"))
