"""The page holds the numbers of the evaluation, and nothing that names smuggle in."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from detector.commands.score import choose_evaluator
from detector.data.coco import read_coco
from detector.evaluation.results_file import read_results
from detector.report.evaluation_page import evaluation_page
from detector.report.scored import read_scored, scored
from tests.report.page_reader import check_page
from tests.report.test_html import HOSTILE

from omegaconf import OmegaConf  # isort: skip

SETTINGS = OmegaConf.create(
    dict.fromkeys(("metric", "backend", "errors", "score_threshold", "boundary", "max_detections"))
)
IMAGE = "a<b onclick=x>.jpg"


@pytest.fixture(scope="module")
def dataset(shapes_root, tmp_path_factory):
    """Four images, one of a hostile name and one that is gone; classes with hostile names."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(shapes_root / "val", root / "val")
    data = json.loads((shapes_root / "annotations/instances_val.json").read_text())
    (root / "val" / data["images"][0]["file_name"]).rename(root / "val" / IMAGE)
    data["images"][0]["file_name"] = IMAGE
    for category in data["categories"][:2]:
        category["name"] = f"{category['name']} {HOSTILE.encode('utf-8', 'replace').decode()}"
    annotations = root / "val.json"
    annotations.write_text(json.dumps(data))
    index = read_coco(annotations, root / "val")
    (root / "val" / data["images"][1]["file_name"]).unlink()
    return root, data, index


def evaluate(dataset, shift, name, metric="coco", **settings):
    """Detections made of the truth: every fifth is of another class, and all are moved."""
    root, data, index = dataset
    ids = [category["id"] for category in data["categories"]]
    rng = np.random.default_rng(0)
    records = []
    for place, truth in enumerate(a for a in data["annotations"] if not a["iscrowd"]):
        x, y, width, height = truth["bbox"]
        category = truth["category_id"]
        if place % 5 == 1:
            category = ids[(ids.index(category) + 1) % len(ids)]
        record = {"image_id": truth["image_id"], "category_id": category, "score": rng.random()}
        records.append(record | {"bbox": [x + shift, y, width, height],
                                 "segmentation": truth["segmentation"]})  # fmt: skip
    file = root / f"{name}.json"
    file.write_text(json.dumps(records))
    results = read_results(file, index)
    evaluator = choose_evaluator(OmegaConf.merge(SETTINGS, settings), metric, index, results)
    evaluator.merge(results.found)
    return evaluator.summarize()


@pytest.fixture(scope="module")
def found(dataset):
    return evaluate(dataset, 1.0, "one")


@pytest.fixture(scope="module")
def page(dataset, found):
    return check_page(evaluation_page(dataset[2], scored("<model>", found)))


def shown(value):
    return "-" if value < 0 else f"{value:.3f}"


def test_the_summary_is_the_evaluations(page, found):
    summary = {row[0]: row[1:] for row in page.cells[0][1:]}
    assert summary == {
        key: [shown(found.metrics["box"][key]), shown(found.metrics["mask"][key])]
        for key in found.metrics["box"]
    }


def test_the_class_table_is_the_evaluations(page, found):
    of_boxes, of_masks = (t for t in page.cells if t[0][:2] == ["class", "AP"])
    for table, kind in ((of_boxes, "box"), (of_masks, "mask")):
        for row, (name, numbers) in zip(table[1:], found.metrics["per_class"].items(), strict=True):
            values = dict(zip(table[0], row, strict=True))
            assert values["class"] == name
            assert values["AP"] == shown(numbers[f"{kind}_AP"])
            assert values["best F1"] == shown(numbers[f"{kind}_F1"])
            assert values["from"] == shown(numbers[f"{kind}_threshold"])


def test_the_errors_are_the_evaluations(page, found):
    text = "".join(page.text)
    for kind in ("box", "mask"):
        for name, count in found.errors[kind].counts.items():
            assert f"+{found.errors[kind].gains[name]:.3f} ({count})" in text


def test_the_confusion_matrix_is_the_evaluations(page, found):
    [table, _] = [t for t in page.cells if t[0] and t[0][0] == "" and t[0][-1] == "not found"]
    for row, expected in zip(table[1:], found.errors["box"].confusion, strict=True):
        assert [int(cell or 0) for cell in row[1:]] == expected


def test_images_show_truth_beside_finding(page):
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert f"{IMAGE}, ground truth" in names and f"{IMAGE}, found" in names
    assert names.count(f"{IMAGE}, found") == names.count(f"{IMAGE}, ground truth")
    assert any("no such image" in text for text in page.text)  # the one that is gone


def test_two_on_one_page(dataset, found, tmp_path):
    from detector.commands.score import write_evaluation

    _, _, index = dataset
    other = evaluate(dataset, 6.0, "two")
    write_evaluation(other, tmp_path / "second" / "evaluation")
    read = read_scored(tmp_path / "second/evaluation/evaluation.json", index)
    assert read.name == "second" and read.metrics == other.metrics
    assert list(read.results) == list(other.results)
    page = check_page(evaluation_page(index, scored("first", found), read))
    rows = {row[0]: row for row in page.cells[0][1:]}
    now, then = found.metrics["box"]["AP75"], other.metrics["box"]["AP75"]
    assert now > then
    assert rows["AP75"][1:4] == [shown(now), shown(then), f"{now - then:+.3f}"]
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert f"{IMAGE}, found by second" in names


def test_vocs_numbers_have_their_errors_too(dataset):
    """A fifth is of another class, so the curves' own AP50, read in another way, is not shown."""
    found = evaluate(dataset, 1.0, "voc", "voc")
    page = check_page(evaluation_page(dataset[2], scored("<model>", found)))
    text = "".join(page.text)
    assert "Boxes by VOC's rules" in text and "area under the precision-recall curve" in text
    analysis = found.errors["voc"]
    assert analysis.counts["classification"] > 0
    name = "classification"
    assert f"+{analysis.gains[name]:.3f} ({analysis.counts[name]})" in text
    [head] = [t[0] for t in page.cells if t[0][:2] == ["class", "AP50"]]
    assert head.count("AP50") == 1 and "best F1" in head
    assert f"{IMAGE}, found" in [value for _, name, value in page.attributes if name == "alt"]


def test_a_page_without_errors_says_why(dataset):
    found = evaluate(dataset, 1.0, "plain", errors=False)
    page = check_page(evaluation_page(dataset[2], scored("<model>", found)))
    assert "evaluation.errors=false" in "".join(page.text)
    assert "What the errors cost" not in "".join(page.text)


def test_evaluations_of_other_classes_are_not_compared(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json.*compare=PATH"):
        read_scored(tmp_path / "evaluation.json", dataset[2])
    (tmp_path / "evaluation.json").write_text('{"per_class": {"cat": {}}}')
    with pytest.raises(ValueError, match="its classes are not those of"):
        read_scored(tmp_path, dataset[2])
    (tmp_path / "evaluation.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an evaluation"):
        read_scored(tmp_path, dataset[2])


def test_a_browser_lays_it_out(page, dataset, found, tmp_path, browser):
    file = tmp_path / "report.html"
    file.write_text(evaluation_page(dataset[2], scored("<model>", found)))
    wide = browser(file, 1200)
    dark = browser(file, 1200, dark=True)
    narrow = browser(file, 390)
    assert wide.mean() > 200 and dark.mean() < 80
    # Nothing sticks out on a phone: the page's margin is empty from top to bottom.
    assert (narrow[:, -8:] == narrow[0, 0]).all()
    for picture in (wide, narrow):
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
