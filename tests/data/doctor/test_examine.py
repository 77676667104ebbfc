"""A set with planted defects: each is found, and nothing else; the set without them is clean."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detector.data.dataset import DetectionDataset
from detector.data.doctor.examine import examine
from detector.data.doctor.fingerprints import fingerprint, near_pairs
from detector.data.shapes import ensure_shapes


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor") / "shapes"
    return ensure_shapes(root, num_train=48, num_val=12, image_size=128, seed=3)


class Planted:
    """A copy of the clean set whose records and files can be changed."""

    def __init__(self, clean, root):
        shutil.copytree(clean, root)
        self.root = root
        self.data = {
            split: json.loads((root / f"annotations/instances_{split}.json").read_text())
            for split in ("train", "val")
        }

    def annotation(self, split, place):
        return self.data[split]["annotations"][place]

    def add_annotation(self, split, place, **changes):
        record = copy.deepcopy(self.annotation(split, place)) | changes
        record["id"] = 10_000 + len(self.data[split]["annotations"])
        self.data[split]["annotations"].append(record)
        return record["id"]

    def add_image(self, split, name, source, change=None):
        """A new image record with a file made of another; with one object in a free place."""
        target = self.root / split / name
        if change is None:
            shutil.copy(source, target)
        else:
            change(Image.open(source)).save(target, quality=70)
        identifier = 90_000 + len(self.data[split]["images"])
        self.data[split]["images"].append(
            {"id": identifier, "file_name": name, "width": 128, "height": 128}
        )
        return identifier

    def examine(self, splits=("train", "val")):
        datasets = {}
        for split, data in self.data.items():
            file = self.root / f"annotations/instances_{split}.json"
            file.write_text(json.dumps(data))
            if split in splits:
                datasets[split] = DetectionDataset(file, self.root / split, on_error="skip")
        return examine(datasets, None, lambda items, count, what: items)


@pytest.fixture
def planted(clean, tmp_path):
    return Planted(clean, tmp_path / "planted")


def found(diagnosis):
    """By kind, for each record the images' and annotations' ids that it points at."""
    content = json.loads(json.dumps(diagnosis.to_json()))
    return {
        finding["kind"]: [
            [(spot["split"], spot["image_id"], spot["annotation_ids"]) for spot in record["spots"]]
            for record in finding["records"]
        ]
        for finding in content["findings"]
    }


def test_a_clean_set_is_clean(planted):
    assert found(planted.examine()) == {}


def test_every_planted_defect_is_found_and_nothing_else(planted):
    root = planted.root

    def smaller(image):
        return image.resize((64, 64)).resize((128, 128))

    images = {split: [i["id"] for i in planted.data[split]["images"]] for split in planted.data}
    files = {
        split: [root / split / i["file_name"] for i in planted.data[split]["images"]]
        for split in planted.data
    }
    flat = planted.annotation("train", 0)
    flat["bbox"][2] = 0
    flat["segmentation"] = []
    # Big ones, so that a pixel is little of them.
    big = [
        place
        for place, record in enumerate(planted.data["train"]["annotations"])
        if place and min(record["bbox"][2:]) > 25
    ]
    twice, two_names, off = big[0], big[1], big[2]
    x, y, width, height = planted.annotation("train", twice)["bbox"]
    copied = planted.add_annotation("train", twice, bbox=[x, y, width - 1, height])
    former = planted.annotation("train", two_names)["category_id"]
    ids = [category["id"] for category in planted.data["train"]["categories"]]
    wrong = planted.add_annotation(
        "train", two_names, category_id=next(i for i in ids if i != former)
    )
    record = planted.annotation("train", off)
    record["bbox"][2:] = [side / 2 for side in record["bbox"][2:]]
    same = planted.add_image("train", "again.jpg", files["train"][5])
    brighter = planted.add_image(
        "train", "brighter.jpg", files["train"][6], lambda image: image.point(lambda v: v * 0.9)
    )
    leaked = planted.add_image("val", "innocent.jpg", files["train"][7])
    shrunk = planted.add_image(
        "val",
        "small.jpg",
        files["train"][8],
        smaller,
    )
    for split in ("train", "val"):
        categories = planted.data[split]["categories"]
        categories.append({"id": 500, "name": f"{categories[0]['name'].title()}s "})
        categories.append({"id": 501, "name": "unicorn"})
        moved = [a for a in planted.data[split]["annotations"] if a["category_id"] == ids[0]]
        for annotation in moved[: 12 if split == "train" else 1]:
            if annotation["id"] not in (copied, wrong):
                annotation["category_id"] = 500
    of = {
        place: (
            planted.annotation("train", place)["image_id"],
            planted.annotation("train", place)["id"],
        )
        for place in (twice, two_names, off)
    }
    # Both of a pair must have kept their classes.
    planted.annotation("train", twice)["category_id"] = 501
    planted.data["train"]["annotations"][-2]["category_id"] = 501
    result = found(planted.examine())
    result.pop("rare_class", None)
    expected = {
        "damaged_record": [[("train", flat["image_id"], [])]],
        "leakage": [
            [("train", images["train"][7], []), ("val", leaked, [])],
            [("train", images["train"][8], []), ("val", shrunk, [])],
        ],
        "duplicate_image": [[("train", images["train"][5], []), ("train", same, [])]],
        "near_duplicate_image": [[("train", images["train"][6], []), ("train", brighter, [])]],
        "duplicate_annotation": [[("train", of[twice][0], [of[twice][1], copied])]],
        "conflicting_classes": [[("train", of[two_names][0], [of[two_names][1], wrong])]],
        "mask_off_box": [[("train", of[off][0], [of[off][1]])]],
        "class_name_variants": [[]],
    }
    assert result.pop("class_not_measured", [[]]) == [[]]
    assert result == expected


def test_classes_that_nobody_can_learn(planted):
    for split in ("train", "val"):
        planted.data[split]["categories"].append({"id": 501, "name": "unicorn"})
    planted.add_annotation("val", 0, category_id=501)
    planted.data["val"]["annotations"].pop(0)
    [finding] = [f for f in planted.examine().findings if f.kind == "class_never_learnt"]
    assert [record.what for record in finding.records] == ['"unicorn": no object, 1 in val']


def test_splits_with_other_classes(planted):
    planted.data["val"]["categories"].append({"id": 501, "name": "unicorn"})
    [finding] = planted.examine().findings
    assert (finding.kind, finding.level) == ("classes_differ", "error")
    assert [record.what for record in finding.records] == ['only here: "unicorn"']
    assert planted.examine(["val"]).findings == []


def test_crossing_sticks_are_two_objects(planted):
    first = planted.annotation("val", 0)
    x, y, side = 20.0, 20.0, 60.0
    down = [x, y, x + 5, y, x + side, y + side, x + side - 5, y + side]
    up = [x, y + side, x + side - 5, y, x + side, y, x + 5, y + side]
    planted.data["val"]["annotations"] = [
        first | {"id": 1, "bbox": [x, y, side, side], "segmentation": [down]},
        first | {"id": 2, "bbox": [x, y, side, side], "segmentation": [up]},
    ]
    assert planted.examine(["val"]).findings == []
    planted.annotation("val", 1)["segmentation"] = [down]
    assert [f.kind for f in planted.examine(["val"]).findings] == ["duplicate_annotation"]


def test_blank_pages_are_not_alike(planted):
    rng = np.random.default_rng(0)
    for number in range(3):
        page = np.full((128, 128, 3), 250, np.uint8) - rng.integers(0, 3, (128, 128, 1), np.uint8)
        Image.fromarray(page).save(planted.root / f"blank{number}.png")
        planted.add_image("train", f"blank{number}.png", planted.root / f"blank{number}.png")
    assert found(planted.examine(["train"])) == {}


def test_numbers_of_a_split(planted):
    statistics = planted.examine(["val"]).statistics["val"]
    records = planted.data["val"]["annotations"]
    names = {c["id"]: c["name"] for c in planted.data["val"]["categories"]}
    objects = [names[record["category_id"]] for record in records if not record["iscrowd"]]
    assert statistics.objects == {name: objects.count(name) for name in names.values()}
    assert statistics.num_objects == len(objects)
    assert sum(statistics.sizes) == sum(statistics.aspects) == len(objects)
    assert sum(statistics.per_image) == statistics.num_images == 12
    areas = [r["bbox"][2] * r["bbox"][3] for r in records if not r["iscrowd"]]
    medium = [area for area in areas if 32**2 <= area < 64**2]
    assert statistics.sizes[3] == len(medium)


def test_real_photos_are_all_different(test_data):
    file = test_data / "coco_mini/annotations/instances_val2017.json"
    dataset = DetectionDataset(file, test_data / "coco_mini/val2017", on_error="skip")
    assert near_pairs(fingerprint(dataset.index)) == []
