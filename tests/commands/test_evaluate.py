import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.commands.evaluate import evaluate


def average_precision(annotations: Path, detections: Path, kind: str) -> float:
    """pycocotools' AP, called as its users do, at 5 detections per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
        evaluation.params.maxDets = [1, 2, 5]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    return precision[precision > -1].mean()


def test_a_checkpoint_alone_gives_the_metrics_of_training_again(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    alone = tmp_path / "alone.pt"  # away from its run directory
    shutil.copy(trained / "checkpoints" / "last.pt", alone)
    metrics = evaluate(compose_tool("evaluate", f"checkpoint={alone}"))
    assert metrics == json.loads((trained / "metrics.json").read_text())
    assert metrics == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    truth = shapes_root / "annotations" / "instances_val.json"
    detections = tmp_path / "evaluation" / "detections.json"
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        assert average_precision(truth, detections, kind) == pytest.approx(metrics[name]["AP"])


def test_the_dataset_can_lie_elsewhere_or_be_another(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shapes_root, moved)
    at = (f"checkpoint={trained}", f"output={tmp_path / 'out'}", f"data.root={moved}")
    expected = json.loads((trained / "metrics.json").read_text())
    assert evaluate(compose_tool("evaluate", *at)) == expected

    annotations = json.loads((moved / "annotations" / "instances_val.json").read_text())
    fewer = {**annotations, "images": annotations["images"][:2]}
    kept = {image["id"] for image in fewer["images"]}
    fewer["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
    (moved / "annotations" / "val.json").write_text(json.dumps(fewer))
    evaluate(compose_tool("evaluate", *at, "data=custom", "data.num_workers=0"))
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["image_id"] for record in found} == kept


def test_detection_limits_can_be_changed(compose_tool, trained: Path, tmp_path: Path) -> None:
    metrics = evaluate(
        compose_tool(
            "evaluate",
            f"checkpoint={trained}",
            f"output={tmp_path}",
            "evaluation.max_detections=[1,2,3]",
        )
    )
    assert "AR3" in metrics["box"] and "AR5" not in metrics["box"]


def test_a_dataset_that_is_not_there_is_refused_and_not_generated(
    compose_tool, trained: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match=r"gone.*data\.root"):
        evaluate(compose_tool("evaluate", f"checkpoint={trained}", f"data.root={gone}"))
    assert not gone.exists()


def test_a_dataset_of_other_classes_is_refused(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    file = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    file["categories"].append({"id": 99, "name": "hexagon"})
    (tmp_path / "val.json").write_text(json.dumps(file))
    overrides = f"data.val.annotations={tmp_path / 'val.json'}"
    with pytest.raises(ValueError, match=r"last\.pt was trained on 5 classes.*val\.json has 6"):
        evaluate(compose_tool("evaluate", f"checkpoint={trained}", overrides))


def test_several_looks_at_each_image(compose_tool, trained: Path, tmp_path: Path) -> None:
    def run(*more: str) -> list[dict]:
        given = (f"checkpoint={trained}", f"output={tmp_path}", "evaluation.errors=false")
        evaluate(compose_tool("evaluate", *given, *more))
        return json.loads((tmp_path / "detections.json").read_text())

    plain = run()
    assert run("evaluation.tta={scales: [1.0]}") == plain
    found = run("evaluation.tta={scales: [0.8, 1.0], flip: true}")
    assert found != plain
    assert all(record.keys() == plain[0].keys() for record in found) and len(found) > 4
    with pytest.raises(ValueError, match=r"evaluation\.tta\.scales"):
        run("evaluation.tta={scales: [-1]}")
