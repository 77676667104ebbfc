"""Training and evaluation on a VOC folder, and VOC's numbers of a COCO dataset."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detector.commands.evaluate import evaluate
from detector.commands.train import train
from detector.data.coco import read_coco
from detector.engine.assembly import build_dataset, build_evaluator, choose_metric
from detector.engine.checkpoint import best_metric, load_checkpoint
from detector.evaluation.coco import CocoEvaluator
from detector.evaluation.voc import NUMBERS
from detector.structures import Batch, Detections
from tests.report.page_reader import check_page


@pytest.fixture(scope="session")
def voc_root(shapes_root: Path, tmp_path_factory) -> Path:
    """The synthetic shapes in VOC's layout, splits ``train`` and ``val``; read only."""
    root = tmp_path_factory.mktemp("voc")
    folder = root / "Shapes"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        index = read_coco(
            shapes_root / "annotations" / f"instances_{split}.json", shapes_root / split
        )
        names = []
        for i in range(len(index)):
            source = index.path(i)
            names.append(f"{split}_{source.stem}")
            file_name = names[-1] + source.suffix
            shutil.copy(source, folder / "JPEGImages" / file_name)
            size = f"<width>{index.widths[i]}</width><height>{index.heights[i]}</height>"
            objects = ""
            for row in range(*index.annotation_offsets[i : i + 2]):
                x1, y1, x2, y2 = index.boxes[row].tolist()
                objects += (
                    f"<object><name>{index.category_names[index.labels[row]]}</name><bndbox>"
                    f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                    "</bndbox></object>"
                )
            text = f"<annotation><filename>{file_name}</filename><size>{size}</size>{objects}"
            (folder / "Annotations" / f"{names[-1]}.xml").write_text(f"{text}</annotation>")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    return root


@pytest.fixture(scope="session")
def compose_voc(compose_tiny, voc_root: Path, shapes_root: Path):
    """``compose_voc("key=value", ...)``: the recipe for blood cells on shapes, from nothing."""
    names = read_coco(
        shapes_root / "annotations" / "instances_val.json", shapes_root / "val"
    ).category_names
    recipe = [
        "experiment=bccd",
        "model=faster_rcnn_fpn",
        "model.backbone.norm=bn",
        "model.backbone.freeze_at=0",
        "augment.train.0.shortest=128",
        "augment.val.0.shortest=128",
        f"data.root={voc_root}",
        f"data.classes=[{','.join(names)}]",
        "data.train.splits=[[Shapes,train]]",
        "data.val.splits=[[Shapes,val]]",
    ]
    return lambda *overrides: compose_tiny(*recipe, *overrides)


@pytest.fixture(scope="session")
def trained_on_voc(compose_voc, tmp_path_factory) -> Path:
    """The run directory of a finished tiny training; read only."""
    run_dir = tmp_path_factory.mktemp("runs") / "voc"
    train(compose_voc(f"run_dir={run_dir}", "training.max_steps=4", "evaluation.every=2"))
    return run_dir


def test_training_measures_voc_and_keeps_the_best_by_it(trained_on_voc: Path) -> None:
    metrics = json.loads((trained_on_voc / "metrics.json").read_text())
    assert set(metrics) == {"voc", "voc_errors", "per_class"} and set(metrics["voc"]) == set(
        NUMBERS
    )
    lines = (trained_on_voc / "metrics.jsonl").read_text().splitlines()
    evaluations = [line for line in map(json.loads, lines) if line["kind"] == "evaluation"]
    values = [line["voc"]["AP50"] for line in evaluations]
    assert len(values) == 2
    best = load_checkpoint(trained_on_voc / "checkpoints" / "best.pt")
    assert best["best"] == max(values) == best["evaluation"]["metrics"]["voc"]["AP50"]
    assert list((trained_on_voc / "pictures").glob("JPEGImages_val_*.jpg"))


def test_a_checkpoint_alone_gives_the_metrics_again(
    compose_tool, trained_on_voc: Path, tmp_path: Path, voc_root: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(voc_root, moved)
    at = (f"checkpoint={trained_on_voc}", f"output={tmp_path}", f"data.root={moved}")
    expected = json.loads((trained_on_voc / "metrics.json").read_text())
    assert evaluate(compose_tool("evaluate", *at)) == expected
    found = json.loads((tmp_path / "detections.json").read_text())
    assert {record["file_name"].split("_")[0] for record in found} == {"JPEGImages/val"}

    evaluate(compose_tool("evaluate", *at, "data.val.splits=[[Shapes,train]]"))
    found = json.loads((tmp_path / "detections.json").read_text())
    assert {record["file_name"].split("_")[0] for record in found} == {"JPEGImages/train"}


def test_two_checkpoints_are_drawn_beside_each_other(
    compose_tool, trained_on_voc: Path, tmp_path: Path
) -> None:
    words = (f"checkpoint={trained_on_voc}", f"output={tmp_path}", "report=true")
    settings = ("evaluation.score_threshold=0.05", "data.num_workers=0")
    evaluate(compose_tool("evaluate", *words, *settings, f"compare={trained_on_voc}"))
    page = check_page((tmp_path / "report.html").read_text())
    names = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    found_by = [name for name in names if "found by" in name]
    assert found_by and len(found_by) == 2 * len([n for n in names if n.endswith("ground truth")])
    assert any(name.endswith("found by voc") for name in found_by), "the other's folder"
    assert "Boxes by VOC's rules" in "".join(page.text)


def test_what_cannot_be_measured_is_refused(compose_tool, trained_on_voc: Path) -> None:
    at = f"checkpoint={trained_on_voc}"
    with pytest.raises(ValueError, match=r"evaluation\.metric=coco, but .*val\.txt is not COCO"):
        evaluate(compose_tool("evaluate", at, "evaluation.metric=coco"))
    with pytest.raises(ValueError, match=r"evaluation\.metric=pascal.*coco, lvis, voc or null"):
        evaluate(compose_tool("evaluate", at, "evaluation.metric=pascal"))


def test_a_coco_dataset_can_be_measured_as_voc(compose_tool, trained: Path, tmp_path: Path) -> None:
    metrics = evaluate(
        compose_tool(
            "evaluate", f"checkpoint={trained}", f"output={tmp_path}", "evaluation.metric=voc"
        )
    )
    assert set(metrics) == {"voc", "voc_errors", "per_class"}


def test_the_best_metric_of_voc() -> None:
    limits = [1, 10, 100]
    assert best_metric(None, False, limits, "voc") == ("voc", "AP50")
    assert best_metric(None, True, limits, "voc") == ("voc", "AP50")
    assert best_metric("voc.AP50_11point", False, limits, "voc") == ("voc", "AP50_11point")
    for name, metric in (("box.AP", "voc"), ("voc.AP50", "coco"), ("voc.AR10", "voc")):
        with pytest.raises(ValueError, match=rf"checkpoint\.metric={name} is not known"):
            best_metric(name, False, limits, metric)


def test_the_recipe_starts_on_blood_cells(compose_tiny, test_data: Path, tmp_path: Path) -> None:
    weights = test_data / "weights" / "resnet18_imagenet_without_layer4.safetensors"
    config = compose_tiny(
        "experiment=bccd",
        "model=faster_rcnn_fpn",
        f"data.root={test_data / 'bccd'}",
        f"model.backbone.weights={weights}",
        f"run_dir={tmp_path}",
        "training.max_steps=1",
        "augment.train.0.shortest=64",
        "augment.val.0.shortest=64",
    )
    assert set(train(config)["per_class"]) == {"RBC", "WBC", "Platelets"}


def test_proposals_on_voc_data_are_measured_by_average_recall(compose_voc) -> None:
    """Also there a model without classes has no AP that says what it is good for."""
    cfg = compose_voc()
    dataset = build_dataset(cfg.data, "val")
    rpn = SimpleNamespace(has_classes=False, has_masks=False, has_keypoints=False)
    assert choose_metric(cfg.evaluation, dataset, rpn) == "coco"
    evaluator = build_evaluator(cfg.evaluation, dataset, rpn)
    assert isinstance(evaluator, CocoEvaluator)
    for i in range(len(dataset)):  # what is there, as boxes of one class
        sample = dataset.read(i)
        count = len(sample)
        boxes = torch.from_numpy(sample.boxes)[None]
        size = torch.tensor([sample.original_size])
        batch = Batch(torch.zeros(1, 3, 1, 1), size, size, torch.tensor([sample.image_id]))
        labels, valid = torch.zeros(1, count).long(), torch.ones(1, count).bool()
        evaluator.update(batch, Detections(boxes, torch.ones(1, count), labels, valid))
    metrics = evaluator.summarize().metrics["box"]
    limit = list(cfg.evaluation.max_detections)[-1]
    assert metrics[f"AR{limit}"] == pytest.approx(1)
    detector = SimpleNamespace(has_classes=True)
    assert choose_metric(cfg.evaluation, dataset, detector) == "voc"
