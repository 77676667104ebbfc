import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detector.commands.predict import image_ids, picture_names, predict


def test_a_folder_gives_pictures_and_coco_results(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    output = tmp_path / "found"
    predict(
        compose_tool(
            "predict",
            f"checkpoint={trained}",
            f"input={shapes_root / 'val'}",
            f"output={output}",
            "score_threshold=0.0",
        )
    )
    records = json.loads((output / "predictions.json").read_text())
    images = sorted((shapes_root / "val").iterdir())
    assert {record["file_name"] for record in records} == {str(path) for path in images}
    assert {record["category_id"] for record in records} <= {1, 2, 3, 4, 5, 6}
    for record in records:
        mask = coco_mask.decode(record["segmentation"])
        assert mask.shape == (128, 128)
        x, y, width, height = record["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 128.001 and y + height <= 128.001
    assert {path.stem for path in output.glob("*.jpg")} == {path.stem for path in images}
    assert Image.open(output / f"{images[0].stem}.jpg").width >= 128


def test_unreadable_images_are_named_and_the_others_done(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(shapes_root / "val", folder)
    (folder / "a_text.png").write_text("no image")
    first = sorted((shapes_root / "val").iterdir())[0]
    (folder / "b_cut.jpg").write_bytes(first.read_bytes()[:300])
    config = compose_tool(
        "predict",
        f"checkpoint={trained}",
        f"input={folder}",
        f"output={tmp_path / 'out'}",
        "pictures=false",
        "score_threshold=0",
    )
    with pytest.raises(ValueError, match=r"(?s)2 of 6 images.*a_text\.png.*b_cut\.jpg"):
        predict(config)
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len({record["file_name"] for record in records}) == 4
    assert not list((tmp_path / "out").glob("*.jpg"))


def test_finding_nothing_says_how_far_the_threshold_is(
    compose_tool, trained: Path, tmp_path: Path, shapes_root: Path, capsys
) -> None:
    config = compose_tool(
        "predict",
        f"checkpoint={trained}",
        f"input={shapes_root / 'val'}",
        f"output={tmp_path}",
        "pictures=false",
        "score_threshold=1.0",
    )
    assert predict(config) == []
    said = capsys.readouterr().out
    assert "0 objects" in said and "below score_threshold=1.0; lower it" in said


def test_input_without_images_is_refused(compose_tool, trained: Path, tmp_path: Path) -> None:
    for where, said in ((tmp_path, "holds no image"), (tmp_path / "*.jpg", "no such image")):
        with pytest.raises(FileNotFoundError, match=said):
            predict(compose_tool("predict", f"checkpoint={trained}", f"input='{where}'"))


def test_numbers_in_file_names_are_the_image_ids_where_they_all_are() -> None:
    assert image_ids([Path("000000000139.jpg"), Path("285.jpg")]) == [139, 285]
    assert image_ids([Path("a/7.jpg"), Path("b/7.jpg")]) == [1, 2]
    assert image_ids([Path("7.jpg"), Path("cat.jpg")]) == [1, 2]


def test_pictures_of_equal_stems_do_not_overwrite_each_other() -> None:
    paths = [Path("a/x.jpg"), Path("a/x.png"), Path("b/x.png"), Path("a/y.png")]
    names = picture_names(paths)
    assert len(set(names.values())) == 4 and names[paths[3]] == "y.jpg"
