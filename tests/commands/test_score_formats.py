"""Detections of a dataset in each format that can be trained on: scored, compared, drawn."""

import json
import shlex
import shutil

import pytest

from detector.commands.data import data
from detector.commands.evaluate import evaluate
from detector.data.coco import read_coco
from detector.data.writers.formats import FORMATS
from tests.report.page_reader import check_page

SETTINGS = ("action=convert", "split=val", "data=shapes", "data.prepare=null", "images=copy")


@pytest.fixture(scope="module")
def truth(shapes_root):
    return read_coco(shapes_root / "annotations/instances_val.json", shapes_root / "val")


@pytest.fixture(scope="module")
def dataset(compose_tool, shapes_root, truth, tmp_path_factory):
    """``dataset(name)``: the words of a command line that read the shapes in a format."""
    root = tmp_path_factory.mktemp("formats")

    def make(name):
        folder = root / name
        if name == "concat":
            for part in ("first", "second"):
                (folder / part / "annotations").mkdir(parents=True)
                place = folder / part / "val"
                shutil.copytree(shapes_root / "val", place)
                content = json.loads((shapes_root / "annotations/instances_val.json").read_text())
                content["images"] = content["images"][part == "second" :: 2]
                kept = {image["id"] for image in content["images"]}
                own = [a for a in content["annotations"] if a["image_id"] in kept]
                content["annotations"] = own
                (folder / part / "annotations/val.json").write_text(json.dumps(content))
            return ["data=concat", f"data.root={folder}"]
        if not folder.exists():
            data(compose_tool("data", *SETTINGS, f"data.root={shapes_root}", f"to={name}",
                              f"output={folder}"))  # fmt: skip
        return shlex.split(FORMATS[name].read_with(truth, folder))

    return make


def records_of(truth, shift):
    """The truth itself, moved; images are told by the last part of their names."""
    records = []
    for i in range(len(truth)):
        for place in range(*truth.annotation_offsets[i : i + 2]):
            if truth.crowd[place]:
                continue
            x1, y1, x2, y2 = truth.boxes[place].tolist()
            records.append(
                {
                    "file_name": truth.file_name(i).rpartition("/")[2],
                    "category_id": int(truth.labels[place]) + 1,
                    "bbox": [x1 + shift, y1, x2 - x1, y2 - y1],
                    "score": 0.9,
                }
            )
    return records


@pytest.mark.parametrize("name", [*FORMATS, "concat"])
def test_detections_are_scored_and_drawn(name, dataset, truth, compose_tool, tmp_path, capsys):
    words = dataset(name)
    for shift, more in ((4.0, []), (0.0, [f"compare={tmp_path / '4.0' / 'evaluation.json'}"])):
        file = tmp_path / f"{shift}.json"
        file.write_text(json.dumps(records_of(truth, shift)))
        given = [f"detections={file}", f"output={tmp_path / str(shift)}", "report=true"]
        metrics = evaluate(compose_tool("evaluate", *given, *words, *more))
    numbers = metrics["voc" if name == "voc" else "box"]
    assert numbers["AP50"] == pytest.approx(1.0)
    page = check_page((tmp_path / "0.0" / "report.html").read_text())
    names = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    for side in ("ground truth", "found by 0.0.json", "found by 4.0"):
        assert any(alt.endswith(side) for alt in names), side
    assert "What the errors cost" in "".join(page.text)


def test_what_goes_together(dataset, truth, compose_tool, tmp_path):
    file = tmp_path / "found.json"
    file.write_text(json.dumps([*records_of(truth, 0.0)[:2], {"file_name": "gone.jpg"}]))
    given = [f"detections={file}", f"output={tmp_path}"]
    with pytest.raises(
        ValueError, match=r"record 2: file_name is 'gone.jpg', a name that no image"
    ):
        evaluate(compose_tool("evaluate", *given, *dataset("yolo")))
    with pytest.raises(ValueError, match=r"annotations=FILE\.json.*data=NAME.*not both"):
        evaluate(compose_tool("evaluate", *given, *dataset("yolo"), "annotations=a.json"))
    with pytest.raises(ValueError, match="images=somewhere goes with annotations="):
        evaluate(compose_tool("evaluate", *given, *dataset("yolo"), "images=somewhere"))
    with pytest.raises(ValueError, match="is not COCO JSON"):
        evaluate(compose_tool("evaluate", *given, *dataset("voc"), "evaluation.metric=coco"))
