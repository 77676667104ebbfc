"""YOLO folders become the index: the YAML file, label lines, and every kind of damage."""

from __future__ import annotations

import pytest

from detector.data.yolo import YOLODataset, label_file, read_yolo
from tests.data.photos import objects, write_photo


class YOLOFolder:
    """A YOLO dataset that a test can damage: two images of 40x30, the second without labels."""

    def __init__(self, root):
        self.root = root
        self.settings = "path: .\ntrain: images/train\nval: images/train\nnames: [cat, dog]\n"
        for name in ("a", "b"):
            write_photo(root / f"images/train/{name}.jpg")
        self.labels("1 .5 .5 .5 .2\n0 .125 .2 .375 .2 .375 .5\n")

    def labels(self, text, name="a"):
        path = self.root / f"labels/train/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, on_error="raise", split="train"):
        (self.root / "data.yaml").write_text(self.settings)
        return read_yolo(self.root / "data.yaml", split, on_error)


@pytest.fixture
def folder(tmp_path):
    return YOLOFolder(tmp_path / "set")


def test_fractions_become_pixels(folder):
    index = folder.read()
    assert objects(index, 0) == [
        ("dog", [10, 12, 30, 18], [], False),
        ("cat", [5, 6, 15, 15], [[[5, 6], [15, 6], [15, 15]]], False),
    ]
    assert objects(index, 1) == [] and index.file_name(1) == "b.jpg"
    assert index.category_names == ["cat", "dog"] and index.category_ids.tolist() == [1, 2]
    assert index.source_format == "yolo"


def test_a_sample_has_the_targets(folder):
    folder.read()
    dataset = YOLODataset("data.yaml", "train", root=folder.root)
    assert dataset[0].boxes.tolist() == [[10, 12, 30, 18], [5, 6, 15, 15]]
    assert dataset[0].labels.tolist() == [1, 0] and dataset.metric == "coco"
    assert len(YOLODataset("data.yaml", "train", root=folder.root, keep_empty=False)) == 1


def test_ways_to_list_images(folder, tmp_path):
    write_photo(folder.root / "more/images/c.png")
    (folder.root / "more/labels").mkdir()
    (folder.root / "more/labels/c.txt").write_text("0 .5 .5 1 1\n")
    (folder.root / "list.txt").write_text("./images/train/a.jpg\nmore/images/c.png\n\n")
    folder.settings = "train: [list.txt, images/train]\nnames: {0: cat, 1: dog}\nnc: 2\n"
    index = folder.read()
    names = [index.file_name(image) for image in range(3)]
    assert names == ["images/train/a.jpg", "more/images/c.png", "images/train/b.jpg"]
    assert objects(index, 1)[0][1] == [0, 0, 40, 30]


def test_the_last_folder_called_images_becomes_labels(tmp_path):
    path = label_file(tmp_path / "images/x/images/y/a.b.jpg")
    assert path == tmp_path / "images/x/labels/y/a.b.txt"
    assert label_file(tmp_path / "flat/a.jpg") == tmp_path / "flat/a.txt"


def test_a_second_reading_parses_nothing_until_something_changes(folder, monkeypatch):
    import detector.data.yolo as yolo

    folder.read()
    calls = []
    parse = yolo.parse_images
    monkeypatch.setattr(yolo, "parse_images", lambda *a: calls.append(1) or parse(*a))
    folder.read()
    assert not calls
    folder.labels("0 .5 .5 .5 .5\n", "b")
    assert folder.read().num_annotations == 3 and calls == [1]
    write_photo(folder.root / "images/train/b.jpg", (80, 60))  # sizes come from the images
    assert folder.read().widths.tolist() == [40, 80]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .5 .5", r"a.txt, line 1: no class 2; number the classes from 0 to 1"),
        ("-1 .5 .5 .5 .5", "no class -1"),
        ("0.5 .5 .5 .5 .5", "no class 0.5"),
        ("0 .5 .5 .5", "it has 4 numbers; write class cx cy w h, or"),
        ("0 .5 .5 .5 .5 .9", "it has 6 numbers"),
        ("cat .5 .5 .5 .5", "it is not made of numbers"),
        ("0 .5 .5 0 .5", r"box \(20, 7.5, 20, 22.5\) has no area"),
        ("0 .5 .5 -1 .5", "has no area"),
        ("0 nan .5 .5 .5", "is not finite"),
        ("0 20 15 10 10", "reaches outside the 40x30 image"),
        ("0 .9 .5 .5 .5", "reaches outside the 40x30 image"),
        ("0 .1 .1 .2 .2 .3 .3", "a degenerate polygon, it has no area"),
        ("0 .1 .1 .2 .2 inf .3", "its polygon is not finite"),
        ("0 .1 .1 .2 .2 1.5 .3", "its polygon from .* reaches outside"),
    ],
)
def test_damaged_lines_are_refused_or_skipped(folder, line, message):
    folder.labels(f"{line}\n0 .5 .5 .5 .5\n")
    with pytest.raises(ValueError, match=message):
        folder.read()
    index = folder.read("skip")
    assert index.num_annotations == 1 and len(index.skipped) == 1


def test_damaged_images_and_label_files(folder):
    (folder.root / "images/train/b.jpg").write_bytes(b"no image")
    folder.labels("", "b")
    with pytest.raises(ValueError, match=r"image b\.jpg: .* is not a readable image"):
        folder.read()
    index = folder.read("skip")
    assert len(index) == 1 and len(index.skipped) == 1
    write_photo(folder.root / "images/train/b.jpg")
    (folder.root / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.txt is not a text file"):
        folder.read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("train: [", "not a YAML file"),
        ("- a", "holds no settings"),
        ("train: images/train", "there is no list names"),
        ("train: images/train\nnames: [cat, cat]", 'names: classes holds "cat" twice'),
        ("train: images/train\nnames: []", "names no class"),
        ("train: images/train\nnames: {1: cat}", "number the classes from 0 on"),
        ("train: images/train\nnames: [cat]\nnc: 2", "nc is 2 but there are 1 names"),
        ("val: images/train\nnames: [cat]", "there is no train; it has val"),
        ("train: 3\nnames: [cat]", "train is 3; name a folder of images"),
        ("train: images/train\nnames: [cat]\nkpt_shape: [17, 3]", "has keypoints"),
        ("train: images/train\nnames: [cat]\npath: 3", "path is 3"),
        ("train: labels\nnames: [cat]", "empty dataset, train has no image"),
    ],
)
def test_a_wrong_yaml_file_is_refused(folder, settings, message):
    folder.settings = settings
    with pytest.raises(ValueError, match=message):
        folder.read()


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such YAML file"):
        read_yolo(folder.root / "none.yaml", "train")
    folder.settings = "train: images/none\nnames: [cat]"
    with pytest.raises(FileNotFoundError, match="none: no such folder or list of images"):
        folder.read()
    folder.settings = "train: images/train\nnames: [cat]"
    (folder.root / "labels/train/a.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.txt: no such label file, nor one for any"):
        folder.read()
