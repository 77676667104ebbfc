"""VOC folders become the index: boxes, ids, classes, and every kind of damage."""

import hashlib
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detector.data.voc as voc
from detector.data.loader import build_eval_loader, build_train_loader
from detector.data.voc import VOC_CLASSES, VOCDataset, read_voc
from detector.data.voc_records import image_id_of
from detector.engine.assembly import describe_dataset

CLASSES = ["cat", "dog"]
# An object: name, (xmin, ymin, xmax, ymax), difficult.
CAT = ("cat", (6, 7, 15, 14), 0)
DOG = ("dog", (1, 1, 40, 30), 0)
DIFFICULT_DOG = ("dog", (20, 3, 32, 12), 1)


def object_xml(name, box, difficult, extra="") -> str:
    ends = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{extra}"
        f"<bndbox>{ends}</bndbox></object>"
    )


class VOCFolder:
    """A VOC folder that a test can damage before reading it: two images of 40x30, split ``all``."""

    def __init__(self, root: Path, names=("000005", "2008_000002")):
        self.root = root
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / folder).mkdir(parents=True)
        self.write(names[0], [CAT, DIFFICULT_DOG])
        self.write(names[1], [DOG])
        self.split("all", names)

    def write(self, name, objects, size=(40, 30), file_name=None) -> None:
        file_name = file_name or f"{name}.jpg"
        Image.new("RGB", (40, 30), (90, 20, 200)).save(self.root / "JPEGImages" / file_name)
        self.write_xml(
            name,
            f"<annotation><folder>x</folder><filename>{file_name}</filename>"
            f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
            + "".join(each if isinstance(each, str) else object_xml(*each) for each in objects)
            + "</annotation>",
        )

    def write_xml(self, name, text) -> None:
        (self.root / "Annotations" / f"{name}.xml").write_text(text)

    def split(self, name, names) -> None:
        path = self.root / "ImageSets" / "Main" / f"{name}.txt"
        path.write_text("".join(f"{each}\n" for each in names))

    def read(self, on_error="raise", split="all", classes=CLASSES):
        return read_voc([(self.root, split)], classes, on_error)


@pytest.fixture
def folder(tmp_path) -> VOCFolder:
    return VOCFolder(tmp_path / "VOC2007")


def test_inclusive_pixels_from_1_become_continuous(folder):
    index = folder.read()
    assert index.boxes.tolist() == [[5, 6, 15, 14], [19, 2, 32, 12], [0, 0, 40, 30]]
    assert index.labels.tolist() == [0, 1, 1]
    assert index.annotation_offsets.tolist() == [0, 2, 3]
    assert index.crowd.tolist() == [False, True, False]
    assert (index.widths.tolist(), index.heights.tolist()) == ([40, 40], [30, 30])
    assert index.category_names == CLASSES and index.category_ids.tolist() == [1, 2]
    assert not index.has_masks and not index.skipped


def test_a_sample_has_no_difficult_targets(folder):
    dataset = VOCDataset([["VOC2007", "all"]], CLASSES, root=folder.root.parent)
    sample = dataset[0]
    assert sample.boxes.tolist() == [[5, 6, 15, 14]] and sample.labels.tolist() == [0]
    assert sample.image.shape == (30, 40, 3) and sample.original_size == (30, 40)
    assert dataset.metric == "voc"


def test_difficult_objects_are_told(folder):
    dataset = VOCDataset([["VOC2007", "all"]], CLASSES, root=folder.root.parent)
    assert describe_dataset(dataset).endswith("all.txt: 2 images, 2 objects, 1 difficult")


def test_an_image_of_difficult_objects_only_counts_as_empty(folder):
    folder.write("000005", [DIFFICULT_DOG])
    arguments = ([["VOC2007", "all"]], CLASSES)
    assert len(VOCDataset(*arguments, root=folder.root.parent)[0]) == 0
    dataset = VOCDataset(*arguments, root=folder.root.parent, keep_empty=False)
    assert dataset.index.image_ids.tolist() == [2008000002]


def test_parts_of_objects_are_no_objects(folder):
    head = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax>"
    head += "<ymax>4</ymax></bndbox></part>"
    folder.write("000005", [object_xml(*CAT, extra=head)])
    assert folder.read().boxes.tolist()[0] == [5, 6, 15, 14]


def test_what_annotation_tools_leave_out_or_round(folder):
    bare = "<object><name> cat </name><bndbox><xmin>2.5</xmin><ymin>0</ymin><xmax>41</xmax>"
    bare += "<ymax>12.25</ymax></bndbox></object>"
    folder.write("000005", [bare])
    index = folder.read()
    assert index.boxes[0].tolist() == [1.5, 0, 40, 12.25]  # clipped by at most a pixel
    assert not index.crowd[0]


def test_ids_are_spelled_by_names_and_the_same_in_every_split(folder):
    folder.write("blood 1", [CAT])
    folder.split("other", ["blood 1", "000005"])
    folder.split("all", ["000005", "2008_000002", "blood 1"])
    made = 2**52 + int.from_bytes(hashlib.sha256(b"blood 1").digest()[:8], "big") % 2**52
    assert folder.read().image_ids.tolist() == [5, 2008000002, made]
    assert folder.read(split="other").image_ids.tolist() == [made, 5]
    assert made == int(float(made)), "exact in JSON, whose readers may use doubles"
    assert image_id_of("999999999999999") < 2**52 <= image_id_of("1000000000000000")


def test_the_suffix_is_the_annotations_but_the_name_the_splits(folder):
    folder.write("000005", [CAT], file_name="000005.png")
    (folder.root / "JPEGImages" / "000005.jpg").unlink()
    assert folder.read().file_name(0) == "JPEGImages/000005.png"
    folder.write("2008_000002", [DOG], file_name="before_renaming.png")
    index = folder.read()
    assert index.file_name(1) == "JPEGImages/2008_000002.jpg"
    assert index.path(1).is_file()


def test_splits_are_read_one_after_another(folder, tmp_path):
    other = VOCFolder(tmp_path / "VOC2012", names=("2012_000001", "2012_000002"))
    other.write("2012_000001", [CAT, CAT])
    dataset = VOCDataset([["VOC2007", "all"], ["VOC2012", "all"]], CLASSES, root=tmp_path)
    index = dataset.index
    assert index.image_ids.tolist() == [5, 2008000002, 2012000001, 2012000002]
    assert np.diff(index.annotation_offsets).tolist() == [2, 1, 2, 1]
    assert index.file_name(2) == "VOC2012/JPEGImages/2012_000001.jpg"
    assert str(index.source_file) == (
        f"{folder.root}/ImageSets/Main/all.txt + {other.root}/ImageSets/Main/all.txt"
    )
    assert [dataset[i].image_id for i in range(4)] == index.image_ids.tolist()
    swapped = read_voc([(other.root, "all"), (folder.root, "all")], CLASSES)
    assert swapped.image_ids.tolist() == [2012000001, 2012000002, 5, 2008000002]


def test_the_classes_of_the_challenge_are_the_default(folder):
    index = folder.read(classes=None)
    assert index.category_names == list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert index.num_classes == 20 and index.labels.tolist() == [7, 11, 11]


# Damage.

DAMAGED_OBJECTS = {
    "no area": (("cat", (9, 7, 9, 14), 0), r"bndbox \(9, 7, 9, 14\) has no area; correct"),
    "swapped": (("cat", (15, 7, 6, 14), 0), "has no area"),
    "outside": (("cat", (6, 7, 15, 32), 0), "reaches outside the 40x30 image"),
    "before the first pixel": (("cat", (-1, 7, 15, 14), 0), "reaches outside"),
    "beyond the last pixel": (("cat", (39, 7, 41.5, 14), 0), "reaches outside"),
    "NaN": (("cat", ("nan", 7, 15, 14), 0), "is not finite"),
    "infinite": (("cat", (6, 7, "1e999", 14), 0), "is not finite"),
    "words": (("cat", (6, 7, "wide", 14), 0), r"\(6, 7, wide, 14\) is not four numbers"),
    "a number is missing": (("cat", (6, 7, "", 14), 0), r"\(6, 7, nothing, 14\) is not four"),
    "no box": ("<object><name>cat</name></object>", "is not four numbers"),
    "unknown class": (("Cat", (6, 7, 15, 14), 0), r'\("Cat"\): no such class; .*now cat, dog'),
    "no name": (("", (6, 7, 15, 14), 0), "it has no name"),
    "difficult": (("cat", (6, 7, 15, 14), "yes"), 'difficult is "yes"; set it to 0 or 1'),
}


@pytest.mark.parametrize("case", DAMAGED_OBJECTS)
def test_a_damaged_object_is_refused_with_file_number_and_remedy(folder, case):
    damaged, said = DAMAGED_OBJECTS[case]
    folder.write("000005", [CAT, damaged])
    said = rf"1 damaged annotation record\n  image Annotations/000005\.xml, object 2 .*{said}"
    with pytest.raises(ValueError, match=said):
        folder.read()
    index = folder.read("skip")
    assert len(index) == 2 and len(index.skipped) == 1
    assert index.boxes.tolist() == [[5, 6, 15, 14], [0, 0, 40, 30]]


DAMAGED_FILES = {
    "missing": (None, "there is no such file; add it, or take its name out of the split"),
    "empty": ("", "it is no XML .*; restore it"),
    "cut": ("<annotation><size><width>40</width>", "it is no XML"),
    "something else": ("<html></html>", "it holds <html>, not <annotation>"),
    "no size": ("<annotation></annotation>", "its size is nothing by nothing; set width"),
    "size 0": (
        "<annotation><size><width>0</width><height>0</height></size></annotation>",
        "its size is 0 by 0",
    ),
    "another size": (
        "<annotation><size><width>30</width><height>40</height></size></annotation>",
        "is 40x30 but the annotations say 30x40",
    ),
}


@pytest.mark.parametrize("case", DAMAGED_FILES)
def test_a_damaged_file_is_refused_and_can_be_left_out(folder, case):
    text, said = DAMAGED_FILES[case]
    if text is None:
        (folder.root / "Annotations" / "000005.xml").unlink()
    else:
        folder.write_xml("000005", text)
    with pytest.raises(ValueError, match=rf"1 damaged image record\n  image .*000005.*{said}"):
        folder.read()
    assert folder.read("skip").image_ids.tolist() == [2008000002]


def test_a_missing_image_is_refused(folder):
    (folder.root / "JPEGImages" / "000005.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 5 \(JPEGImages/000005\.jpg\): no file"):
        folder.read()


def test_all_damage_is_listed_together(folder, caplog):
    folder.write("000005", [("cow", (6, 7, 15, 14), 0), ("cat", (6, 7, 6, 14), 0)])
    folder.split("all", ["000005", "2008_000002", "lost"])
    with pytest.raises(ValueError) as refused:
        folder.read()
    lines = str(refused.value).splitlines()
    assert "2 damaged annotation records and 1 damaged image record" in lines[0]
    for line, said in zip(lines[1:4], ("object 1", "object 2", r"lost\.xml"), strict=True):
        assert re.search(said, line)
    assert "data.on_error=skip" in lines[4]
    index = folder.read("skip")
    assert index.num_annotations == 1 and len(index) == 2
    assert "object 2" in caplog.text and "left out" in caplog.text


def test_classes_left_out_are_counted_by_name(folder, caplog):
    folder.write("000005", [CAT, DOG, DOG, ("cow", (1, 1, 9, 9), 0), ("cat", (9, 9, 2, 2), 0)])
    with pytest.raises(ValueError, match=r"4 objects of classes not in data\.classes: dog \(3\)"):
        VOCDataset([(str(folder.root), "all")], ["cat"])
    for _ in range(2):  # read, and then from the cache
        caplog.clear()
        dataset = VOCDataset([(str(folder.root), "all")], ["cat"], on_error="skip")
        assert "4 objects of classes not in data.classes: dog (3), cow (1)" in caplog.text
        assert describe_dataset(dataset).endswith(
            "2 images, 1 objects, 1 damaged records skipped, "
            "left out 4 objects of classes not in data.classes: dog (3), cow (1)"
        )


def test_an_image_that_is_listed_twice_or_whose_id_is_taken(folder):
    with pytest.raises(ValueError, match=r"000005\.xml: the splits list it twice; list it once"):
        read_voc([(folder.root, "all"), (folder.root, "all")], CLASSES)
    folder.write("5", [CAT])
    folder.split("all", ["000005", "5"])
    with pytest.raises(ValueError, match=r"its id 5 is that of Annotations/000005\.xml too"):
        folder.read()


@pytest.mark.parametrize("lost", ["Annotations", "JPEGImages", ""])
def test_a_missing_folder_is_named(folder, lost):
    shutil.rmtree(folder.root / lost)
    with pytest.raises(FileNotFoundError, match=f"VOC2007.*{lost}: no such folder.*data.root"):
        folder.read()


def test_a_missing_split_is_refused_with_those_there_are(folder):
    folder.split("test", [])
    with pytest.raises(
        FileNotFoundError, match=r'val\.txt: no such split; "VOC2007" has all, test'
    ):
        folder.read(split="val")
    with pytest.raises(ValueError, match=r"test\.txt: empty split"):
        folder.read(split="test")


def test_nothing_to_learn_from_is_an_empty_dataset(folder):
    folder.write("000005", [DIFFICULT_DOG])
    folder.split("all", ["000005"])
    with pytest.raises(ValueError, match="empty dataset, no usable annotation"):
        folder.read()
    folder.write("000005", [("cow", (6, 7, 15, 14), 0)])
    with pytest.raises(ValueError, match="empty dataset"):
        folder.read("skip")


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([], "splits is"),
        ("VOC2007", "splits is 'VOC2007'; write for example"),
        (["VOC2007"], r"'VOC2007', which is no \[folder, split\]"),
        ([["VOC2007", "all", "test"]], r"no \[folder, split\]"),
        ([[2007, "all"]], r"no \[folder, split\]"),
    ],
)
def test_splits_that_make_no_sense(folder, splits, said):
    with pytest.raises(ValueError, match=said):
        VOCDataset(splits, CLASSES, root=folder.root.parent)


@pytest.mark.parametrize(
    ("classes", "said"),
    [([], "list the names"), ("cat", "list the names"), ([1], "no name"), (["a", "a"], "twice")],
)
def test_classes_that_make_no_sense(folder, classes, said):
    with pytest.raises(ValueError, match=said):
        folder.read(classes=classes)


# The cache.


def test_a_second_reading_parses_nothing_wherever_the_folder_is(folder, tmp_path, monkeypatch):
    first = folder.read()
    moved = tmp_path / "moved"
    shutil.move(folder.root, moved)
    monkeypatch.setattr(voc, "parse_entries", lambda *_: pytest.fail("parsed again"))
    index = read_voc([(moved, "all")], CLASSES)
    assert index.boxes.tolist() == first.boxes.tolist()
    assert index.path(0) == moved / "JPEGImages" / "000005.jpg" and index.path(0).is_file()


@pytest.mark.parametrize("change", ["annotation", "split", "classes", "damage"])
def test_whatever_changes_is_read_anew(folder, change):
    classes = CLASSES
    before = folder.read()
    if change == "annotation":
        folder.write("2008_000002", [("dog", (2, 1, 40, 30), 0)])
    elif change == "split":
        folder.split("all", ["2008_000002"])
    elif change == "classes":
        classes = CLASSES[::-1]
    else:
        (folder.root / "Annotations" / "000005.xml").unlink()
        with pytest.raises(ValueError, match="no such file"):
            folder.read()
        return
    after = folder.read(classes=classes)
    assert (after.boxes.tolist(), after.labels.tolist()) != (
        before.boxes.tolist(),
        before.labels.tolist(),
    )


# Real data.


def test_blood_cells_are_read_as_their_files_say(test_data, caplog):
    root = test_data / "bccd" / "BCCD"
    classes = ["RBC", "WBC", "Platelets"]
    with pytest.raises(ValueError) as refused:
        read_voc([(root, "trainval")], classes)
    message = str(refused.value)
    assert "2 damaged annotation records" in message
    assert "BloodImage_00338.xml, object 13" in message
    assert "BloodImage_00343.xml, object 4" in message

    index = read_voc([(root, "trainval"), (root, "test")], classes, "skip")
    assert (len(index), index.num_annotations) == (364, 4886)
    assert np.bincount(index.labels).tolist() == [4153, 372, 361]
    for i in range(0, len(index), 20):
        name = Path(index.file_name(i)).stem
        tree = ElementTree.parse(root / "Annotations" / f"{name}.xml")
        expected = [
            [float(box.findtext(key)) - shift for key, shift in
             (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))]
            for box in tree.iter("bndbox")
        ]  # fmt: skip
        expected = [box for box in expected if box[2] - box[0] > 1]
        assert index.boxes[index.annotations(i)].tolist() == np.maximum(expected, 0).tolist()


def test_blood_cells_make_batches(test_data):
    dataset = VOCDataset(
        [["BCCD", "test"]], ["RBC", "WBC", "Platelets"], root=test_data / "bccd"
    )  # fmt: skip
    loader = build_train_loader(dataset, batch_size=2, with_masks=False)
    batch = next(iter(loader))
    assert batch.images.shape == (2, 3, 480, 640)
    assert batch.targets.valid.any(1).all() and batch.targets.polygons is None
    batches = build_eval_loader(dataset, batch_size=30)
    seen = [image_id for batch in batches for image_id in batch.image_ids.tolist()]
    assert sorted(seen) == sorted(dataset.index.image_ids.tolist())
