"""A results file of whatever framework, scored without a model."""

import json

import pytest

from detector.commands.evaluate import evaluate
from tests.evaluation.random_truth import random_case


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    truth, table = random_case(8, num_images=6, crowded_image=20)
    truth["annotations"] = [a for a in truth["annotations"] if sum(a["bbox"]) > 0]
    truth["images"] = [i | {"file_name": f"{i['id']}.png"} for i in truth["images"]]
    (folder / "truth.json").write_text(json.dumps(truth))
    records = [{k: v for k, v in record.items() if k != "keypoints"} for record in table]
    (folder / "found.json").write_text(json.dumps(records))
    lvis = truth | {
        "images": [
            i | {"neg_category_ids": [], "not_exhaustive_category_ids": []} for i in truth["images"]
        ],
        "annotations": [a | {"iscrowd": 0} for a in truth["annotations"]],
    }
    (folder / "lvis.json").write_text(json.dumps(lvis))
    return folder, records


def tool(compose_tool, folder, *more, annotations="truth.json"):
    given = (f"detections={folder / 'found.json'}", f"annotations={folder / annotations}")
    return evaluate(compose_tool("evaluate", *given, f"output={folder / 'out'}", *more))


def test_it_writes_what_a_checkpoint_would(compose_tool, files, capsys):
    folder, records = files
    metrics = tool(compose_tool, folder)
    assert set(metrics) == {"box", "mask", "box_errors", "mask_errors", "per_class"}
    assert 0.05 < metrics["mask"]["AP"] < metrics["box"]["AP"] < 0.9
    assert json.loads((folder / "out" / "evaluation.json").read_text()) == metrics
    assert json.loads((folder / "out" / "detections.json").read_text()) == records
    errors = json.loads((folder / "out" / "errors.json").read_text())
    assert errors["box"]["gains"] == metrics["box_errors"]
    # Ground truth has an empty mask now and then: a damaged record.
    assert "1 of 6 images have no detections" in capsys.readouterr().out
    slow = tool(compose_tool, folder, "evaluation.backend=pycocotools", "evaluation.errors=false")
    for kind in ("box", "mask"):
        assert slow[kind] == pytest.approx(metrics[kind], abs=1e-12)
    assert set(slow) == {"box", "mask", "per_class"}


def test_lvis_is_known_by_its_file_and_others_by_choice(compose_tool, files):
    folder, _ = files
    assert "AR300" in tool(compose_tool, folder, annotations="lvis.json")["box"]
    assert "voc" in tool(compose_tool, folder, "evaluation.metric=voc")
    found = tool(compose_tool, folder, "evaluation.boundary=true", "evaluation.errors=false")
    assert 0 < found["boundary"]["AP"] < found["mask"]["AP"]
    with pytest.raises(ValueError, match="neg_category_ids"):
        tool(compose_tool, folder, "evaluation.metric=lvis")


def test_what_does_not_go_together_is_refused(compose_tool, files):
    folder, _ = files
    with pytest.raises(ValueError, match=r"annotations=FILE\.json"):
        evaluate(compose_tool("evaluate", f"detections={folder / 'found.json'}"))
    with pytest.raises(ValueError, match="checkpoint="):
        tool(compose_tool, folder, "evaluation.tta={flip: true}")
    with pytest.raises(ValueError, match="coco, lvis, voc"):
        tool(compose_tool, folder, "evaluation.metric=f1")
    with pytest.raises(ValueError, match="no boundary AP"):
        tool(compose_tool, folder, "evaluation.backend=pycocotools", "evaluation.boundary=true")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        tool(compose_tool, folder, annotations="none.json")
