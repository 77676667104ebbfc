"""The report through the tool: beside the other files, compared with what another run wrote."""

from __future__ import annotations

import json

import hydra
import pytest

from detector.commands.evaluate import evaluate
from detector.config_files import find_configs
from tests.report.page_reader import check_page


@pytest.fixture
def score(shapes_root, tmp_path):
    """Scores the truth itself, moved by some pixels; gives the folder and the metrics."""
    truth = json.loads((shapes_root / "annotations/instances_val.json").read_text())

    def score(name, shift, *words):
        records = [
            {
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "bbox": [record["bbox"][0] + shift, *record["bbox"][1:]],
                "score": 0.9,
            }
            for record in truth["annotations"]
            if not record["iscrowd"]
        ]
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(records))
        output = tmp_path / name
        given = [
            f"detections={file}",
            f"annotations={shapes_root / 'annotations/instances_val.json'}",
            f"images={shapes_root / 'val'}",
            f"output={output}",
            "report=true",
        ]
        with hydra.initialize_config_dir(str(find_configs()), version_base="1.3"):
            return output, evaluate(hydra.compose("evaluate", [*given, *words]))

    return score


def test_a_report_compares_with_the_files_of_another(score, capsys):
    first, _ = score("first", 6.0)
    folder, metrics = score("second", 0.0, f"compare={first / 'evaluation.json'}")
    page = check_page((folder / "report.html").read_text())
    rows = {row[0]: row[1:] for row in page.cells[0][1:]}
    former = json.loads((first / "evaluation.json").read_text())["box"]["AP"]
    assert metrics["box"]["AP"] == pytest.approx(1.0)
    assert rows["AP"] == ["1.000", f"{former:.3f}", f"{1 - former:+.3f}"]
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert any(name.endswith("found by first") for name in names)
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [("gone.json", FileNotFoundError, "gone.json: there is none"),
     ("first.json/..", ValueError, "is compared with the evaluation.json")],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(score, tmp_path, path, error, message):
    (tmp_path / "first.json").mkdir()
    with pytest.raises(error, match=message):
        score("second", 0.0, f"compare={tmp_path / path}")
