"""Keypoint R-CNN from training to predictions, on the synthetic skeletons."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detector
from detector.commands.evaluate import evaluate
from detector.commands.predict import predict
from detector.commands.train import train
from detector.data.skeleton_figures import JOINTS, SIGMAS, SKELETON
from detector.data.skeletons import ensure_skeletons
from detector.engine import assembly
from detector.engine.checkpoint import best_metric
from tests.small_trainings import TINY, TINY_SHAPES, compose_config


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return ensure_skeletons(tmp_path_factory.mktemp("data") / "skeletons", 6, 4)


def compose_skeletons(root: Path, *overrides: str):
    kept = {k: v for k, v in TINY_SHAPES.items() if k not in ("model", "data")}
    kept |= {"data.root": root, "data.prepare.num_train": 6}
    words = ["model=keypoint_rcnn_fpn", "data=skeletons", *(f"{k}={v}" for k, v in kept.items())]
    head = ["model.keypoint_branch.head.num_convs=1", "model.keypoint_branch.head.width=8"]
    return compose_config("train", [*TINY, *head, *words, "training.max_steps=2", *overrides])


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "skeletons"
    cfg = compose_skeletons(root, f"run_dir={run_dir}")
    metrics = train(cfg)
    assert cfg.num_keypoints == len(JOINTS)
    assert set(metrics) == {"box", "keypoint", "box_errors", "per_class"}
    return run_dir


def test_the_checkpoint_knows_its_keypoints_and_the_best_is_of_theirs(trained):
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    assert content["keypoint_names"] == list(JOINTS)
    assert content["skeleton"] == [list(pair) for pair in SKELETON]
    assert content["best"] == content["evaluation"]["metrics"]["keypoint"]["AP"]
    assert list((trained / "pictures").glob("*.jpg"))


def test_evaluation_and_its_files_give_the_same_numbers(trained, root, compose_tool, tmp_path):
    """The detections are those that pycocotools reads, with the data's own sigmas."""
    metrics = evaluate(
        compose_tool("evaluate", f"checkpoint={trained}/checkpoints/last.pt", f"output={tmp_path}")
    )
    assert metrics == json.loads((trained / "metrics.json").read_text())
    records = json.loads((tmp_path / "detections.json").read_text())
    assert all(len(record["keypoints"]) == 3 * len(JOINTS) for record in records)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "person_keypoints_val.json"))
        found = truth.loadRes([{k: v for k, v in r.items() if k != "bbox"} for r in records])
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = metrics["keypoint"]
    np.testing.assert_allclose(list(numbers.values()), evaluation.stats, atol=1e-12)


def test_several_looks_at_each_image(trained, compose_tool, tmp_path):
    """The same look twice is one look; other sizes and a mirror are not."""

    def run(tta):
        words = (f"checkpoint={trained}", f"output={tmp_path}", "evaluation.errors=false")
        evaluate(compose_tool("evaluate", *words, f"evaluation.tta={tta}"))
        return json.loads((tmp_path / "detections.json").read_text())

    plain, twice = run("null"), run("{scales: [1.0, 1.0]}")
    assert len(twice) == len(plain)
    for one, other in zip(plain, twice, strict=True):
        np.testing.assert_allclose(one["keypoints"], other["keypoints"], atol=2e-3)
    mirrored = run("{scales: [0.75, 1.0], flip: true}")
    assert mirrored and mirrored != plain
    assert all(len(record["keypoints"]) == 3 * len(JOINTS) for record in mirrored)


def test_predictions_have_keypoints_by_name(trained, root, compose_tool, tmp_path):
    model = detector.load(trained, device="cpu")
    assert model.keypoint_names == list(JOINTS)
    photo = sorted((root / "val").iterdir())[0]
    result = model.predict(photo, score_threshold=0.0)
    assert result.keypoints.shape == (len(result), len(JOINTS), 3) and len(result)
    assert result.keypoint_names == list(JOINTS) and result.skeleton == list(SKELETON)
    low, high = result.boxes[:, None, :2], result.boxes[:, None, 2:]
    assert ((result.keypoints[..., :2] >= low - 1) & (result.keypoints[..., :2] <= high + 1)).all()

    words = (f"checkpoint={trained}", f"input={photo}", f"output={tmp_path}", "score_threshold=0")
    records = predict(compose_tool("predict", *words))
    assert records == json.loads((tmp_path / "predictions.json").read_text())
    expected = result.keypoints - np.float32([0.5, 0.5, 0])  # COCO's pixels
    given = np.array([record["keypoints"] for record in records]).reshape(expected.shape)
    np.testing.assert_allclose(given, expected, atol=1e-3)
    assert (tmp_path / f"{photo.stem}.jpg").is_file()


def test_another_number_of_keypoints_is_refused(root, trained, compose_tool, tmp_path):
    with pytest.raises(ValueError, match=r"num_keypoints=17, but .* has 13; leave num_keypoints"):
        train(compose_skeletons(root, "num_keypoints=17", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()

    file = json.loads((root / "annotations" / "person_keypoints_val.json").read_text())
    [category] = file["categories"]
    category["keypoints"] = category["keypoints"][:1]
    category["keypoint_sigmas"] = category["keypoint_sigmas"][:1]
    category["skeleton"] = []
    for annotation in file["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:3]
        annotation["num_keypoints"] = int(annotation["keypoints"][2] > 0)
    (tmp_path / "heads.json").write_text(json.dumps(file))
    words = (f"checkpoint={trained}", f"data.val.annotations={tmp_path / 'heads.json'}")
    with pytest.raises(ValueError, match=r"finds 13 keypoints .*heads\.json has 1"):
        evaluate(compose_tool("evaluate", *words, f"output={tmp_path}"))


def test_data_without_keypoints_leave_their_number_open():
    cfg = compose_config("train", [])
    assembly.set_num_keypoints(cfg, 0, "boxes.json")
    assert cfg.num_keypoints is None
    assembly.set_num_keypoints(cfg, 13, "skeletons.json")
    assert cfg.num_keypoints == 13


def test_the_best_metric_is_that_of_keypoints_where_there_are_keypoints():
    limits = [1, 10, 100]
    assert best_metric(None, False, limits, has_keypoints=True) == ("keypoint", "AP")
    assert best_metric(None, True, limits, has_keypoints=True) == ("keypoint", "AP")
    assert best_metric("keypoint.AR75", False, limits, has_keypoints=True) == ("keypoint", "AR75")
    assert best_metric("box.AR10", False, limits, has_keypoints=True) == ("box", "AR10")
    for name in ("keypoint.APs", "keypoint.AR10", "mask.AP"):
        with pytest.raises(ValueError, match=rf"checkpoint\.metric={name}.* box, keypoint"):
            best_metric(name, False, limits, has_keypoints=True)
    with pytest.raises(ValueError, match=r"checkpoint\.metric=keypoint\.AP"):
        best_metric("keypoint.AP", True, limits)
