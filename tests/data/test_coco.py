"""The COCO reader: what it reads, and everything it refuses."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from detector.data.coco import read_coco


def test_labels_are_ranks_of_sparse_category_ids(coco_folder):
    index = coco_folder.read()
    assert index.category_ids.tolist() == [3, 90]
    assert index.category_names == ["dog", "cat"]
    assert index.num_classes == 2
    assert index.image_ids.tolist() == [1, 7, 4]
    assert [index.file_name(i) for i in range(3)] == ["1.png", "7.png", "4.png"]
    assert index.annotation_ids[index.annotations(0)].tolist() == [11, 12]
    assert index.labels[index.annotations(0)].tolist() == [1, 0]
    assert index.annotation_ids[index.annotations(1)].tolist() == [15, 19]
    assert index.crowd.tolist() == [False, False, False, True]
    assert index.annotations(2) == slice(4, 4)
    assert index.has_masks


def test_boxes_and_rings(coco_folder):
    index = coco_folder.read()
    assert index.boxes[0].tolist() == [5, 6, 15, 14]
    assert index.boxes.dtype == np.float32
    rings_per_annotation = np.diff(index.ring_offsets)
    assert rings_per_annotation.tolist() == [1, 2, 1, 1]
    start, stop = index.vertex_offsets[index.ring_offsets[2 : 2 + 2]]
    # The run-length encoding: rows 0-2 of column 2, rows 0-1 of column 3.
    corners = {tuple(vertex) for vertex in index.vertices[start:stop].tolist()}
    assert corners == {(2, 0), (4, 0), (4, 2), (3, 2), (3, 3), (2, 3)}


def test_boxes_without_masks(coco_folder):
    coco_folder.data["annotations"][0]["segmentation"] = []
    del coco_folder.data["annotations"][2]["segmentation"]
    index = coco_folder.read()
    assert not index.has_masks
    assert index.first_without_mask() == 11


def test_a_crowd_region_needs_no_mask(coco_folder):
    del coco_folder.data["annotations"][3]["segmentation"]
    assert coco_folder.read().has_masks


def test_a_box_ends_within_rounding_of_the_border_is_clipped(coco_folder):
    coco_folder.data["annotations"][0]["bbox"] = [-0.4, 6, 40.9, 24.5]
    assert coco_folder.read().boxes[0].tolist() == [0, 6, 40, 30]


def change(kind: str, position: int, **values):
    def damage(data):
        data[kind][position].update(values)

    return damage


def remove(kind: str, position: int, key: str):
    def damage(data):
        del data[kind][position][key]

    return damage


def duplicate(kind: str, position: int):
    def damage(data):
        data[kind].append(dict(data[kind][position]))

    return damage


_RLE = {"size": [30, 40], "counts": [100, 5, 1095]}

# What is done to the file, what the message says beside the file's name.
DAMAGED_ANNOTATIONS = {
    "no area": (change("annotations", 0, bbox=[5, 6, 0, 8]), "no area"),
    "negative width": (change("annotations", 0, bbox=[5, 6, -3, 8]), "negative"),
    "NaN": (change("annotations", 0, bbox=[5, math.nan, 3, 8]), "not finite"),
    "infinite": (change("annotations", 0, bbox=[5, 6, math.inf, 8]), "not finite"),
    "beyond any float": (change("annotations", 0, bbox=[5, 6, 10**400, 8]), "not finite"),
    "partly outside": (change("annotations", 0, bbox=[30, 6, 20, 8]), "outside the 40x30 image"),
    "wholly outside": (change("annotations", 0, bbox=[90, 6, 20, 8]), "outside the 40x30 image"),
    "three numbers": (change("annotations", 0, bbox=[5, 6, 3]), "not a list"),
    "text in the box": (change("annotations", 0, bbox=[5, 6, "3", 8]), "not made of numbers"),
    "no box": (remove("annotations", 0, "bbox"), "bbox None"),
    "two vertices": (change("annotations", 0, segmentation=[[5, 6, 9, 9]]), "2 vertices"),
    "odd coordinates": (
        change("annotations", 0, segmentation=[[5, 6, 9, 9, 7, 8, 1]]),
        "7 numbers",
    ),
    "flat polygon": (change("annotations", 0, segmentation=[[5, 6, 9, 6, 7, 6]]), "no area"),
    "NaN vertex": (
        change("annotations", 0, segmentation=[[5, 6, 9, math.nan, 7, 8]]),
        "polygon is not finite",
    ),
    "vertex beyond float32": (
        change("annotations", 0, segmentation=[[5, 6, 9, 1e39, 7, 8]]),
        "polygon is not finite",
    ),
    "text vertex": (change("annotations", 0, segmentation=[[5, "6", 9, 6, 7, 8]]), "numbers"),
    "flat list": (change("annotations", 0, segmentation=[5, 6, 9, 6, 7, 8]), "not a list"),
    "text as mask": (change("annotations", 0, segmentation="polygon"), "segmentation is a str"),
    "mask beside the box": (
        change("annotations", 0, segmentation=[[25, 20, 30, 20, 30, 25]]),
        "do not overlap",
    ),
    "RLE of another size": (
        change("annotations", 0, segmentation=_RLE | {"size": [40, 30]}),
        r"size \[40, 30\]",
    ),
    "RLE too short": (
        change("annotations", 0, segmentation=_RLE | {"counts": [100, 5, 1000]}),
        "do not add up",
    ),
    "RLE negative": (
        change("annotations", 0, segmentation=_RLE | {"counts": [100, -5, 1105]}),
        "counts are damaged",
    ),
    "RLE empty": (
        change("annotations", 0, segmentation=_RLE | {"counts": [1200]}),
        "mask is empty",
    ),
    "RLE without counts": (change("annotations", 0, segmentation={"size": [30, 40]}), "no counts"),
    "RLE with text": (
        change("annotations", 0, segmentation=_RLE | {"counts": ["1", 2]}),
        "not integers",
    ),
    "RLE string of noise": (
        change("annotations", 0, segmentation=_RLE | {"counts": "hello world"}),
        "counts",
    ),
    "duplicate id": (duplicate("annotations", 0), "duplicate annotation id"),
    "no id": (remove("annotations", 0, "id"), "not an integer"),
    "unknown image": (change("annotations", 0, image_id=999), "unknown image 999"),
    "image id of another type": (change("annotations", 0, image_id=[1]), r"unknown image \[1\]"),
    "unknown category": (change("annotations", 0, category_id=5), "unknown category 5"),
    "crowd flag": (change("annotations", 0, iscrowd=2), "iscrowd is 2"),
}


@pytest.mark.parametrize("case", DAMAGED_ANNOTATIONS)
def test_a_damaged_annotation_is_refused_with_file_id_and_remedy(coco_folder, case):
    damage, said = DAMAGED_ANNOTATIONS[case]
    damage(coco_folder.data)
    name = "annotation record 0" if case == "no id" else "annotation 11"
    with pytest.raises(ValueError, match=said) as error:
        coco_folder.read()
    message = str(error.value)
    assert str(coco_folder.json) in message
    assert name in message
    assert "; " in message and "data.on_error=skip" in message


@pytest.mark.parametrize("case", DAMAGED_ANNOTATIONS)
def test_a_damaged_annotation_is_skipped_on_request(coco_folder, case, caplog):
    DAMAGED_ANNOTATIONS[case][0](coco_folder.data)
    index = coco_folder.read("skip")
    expected = [11, 12, 15, 19] if case == "duplicate id" else [12, 15, 19]
    assert index.annotation_ids.tolist() == expected
    assert len(index.skipped) == 1
    assert caplog.text.count(str(index.skipped[0])) == 1
    # What is left reads as it did.
    whole = read_coco_without_damage(coco_folder)
    positions = np.searchsorted(whole.annotation_ids, index.annotation_ids)
    np.testing.assert_array_equal(index.boxes, whole.boxes[positions])
    np.testing.assert_array_equal(
        np.diff(index.ring_offsets), np.diff(whole.ring_offsets)[positions]
    )


def read_coco_without_damage(coco_folder):
    return type(coco_folder)(coco_folder.root / "undamaged").read()


DAMAGED_IMAGES = {
    "no such file": (change("images", 1, file_name="gone.png"), "no file .*gone.png"),
    "no file name": (remove("images", 1, "file_name"), "no file_name"),
    "width and height swapped": (
        change("images", 2, width=17),
        "16x16 but the annotations say 17x16",
    ),
    "no width": (remove("images", 1, "width"), "not positive integers"),
    "zero height": (change("images", 1, height=0), "not positive integers"),
    "text as id": (change("images", 1, id="seven"), "'seven' is not an integer"),
    "duplicate id": (duplicate("images", 1), "duplicate image id"),
}


@pytest.mark.parametrize("case", DAMAGED_IMAGES)
def test_a_damaged_image_record_is_refused(coco_folder, case):
    damage, said = DAMAGED_IMAGES[case]
    damage(coco_folder.data)
    with pytest.raises(ValueError, match=said) as error:
        coco_folder.read()
    assert str(coco_folder.json) in str(error.value)
    assert "image " in str(error.value)


@pytest.mark.parametrize("case", ["no such file", "no width", "zero height", "no file name"])
def test_a_damaged_image_takes_its_annotations_along(coco_folder, case):
    DAMAGED_IMAGES[case][0](coco_folder.data)
    index = coco_folder.read("skip")
    assert index.image_ids.tolist() == [1, 4]
    assert index.annotation_ids.tolist() == [11, 12]
    assert np.diff(index.ring_offsets).tolist() == [1, 2]
    assert len(index.vertices) == index.vertex_offsets[-1] == 4 + 8
    assert len(index.skipped) == 1, "annotations of a bad image are not problems of their own"


def test_a_truncated_image_is_refused(coco_folder):
    path = coco_folder.images / "7.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"image 7 \(7\.png\).*\n*.*restore the file"):
        coco_folder.read()
    assert coco_folder.read("skip").image_ids.tolist() == [1, 4]


def test_a_file_that_is_no_image_is_refused(coco_folder):
    (coco_folder.images / "7.png").write_text("hello")
    with pytest.raises(ValueError, match=r"7\.png is not a readable image"):
        coco_folder.read()


def test_an_image_that_breaks_after_it_was_checked_is_found(coco_folder):
    coco_folder.read()
    path = coco_folder.images / "7.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="image 7"):
        coco_folder.read()


def test_sizes_are_meant_after_exif_rotation(coco_folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray(np.zeros((20, 32, 3), np.uint8))
    sideways.save(coco_folder.images / "7.png", exif=exif.tobytes())
    assert coco_folder.read().widths.tolist() == [40, 20, 16]
    coco_folder.data["images"][1].update(width=32, height=20)
    coco_folder.data["annotations"] = coco_folder.data["annotations"][:1]
    with pytest.raises(ValueError, match="EXIF rotation"):
        coco_folder.read()


def test_all_damaged_records_are_listed_together(coco_folder):
    first = coco_folder.data["annotations"][0]
    for number in range(30):
        coco_folder.data["annotations"].append(first | {"id": 100 + number, "bbox": [0, 0, 0, 0]})
    coco_folder.data["images"][2]["file_name"] = "gone.png"
    with pytest.raises(ValueError) as error:
        coco_folder.read()
    message = str(error.value)
    assert "30 damaged annotation records and 1 damaged image record" in message
    assert message.count("has no area") == 20 and "... and 11 more" in message
    assert len(coco_folder.read("skip").skipped) == 31


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON file"),
        ("[1, 2]", 'no list "images"'),
        ('{"images": []}', 'no list "annotations"'),
        ('{"shapes": [], "imagePath": "a.jpg"}', 'no list "images"'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "empty"),
        ('{"images": [{}], "annotations": [], "categories": []}', "empty dataset"),
        ('{"images": [3], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "object"),
    ],
)
def test_files_that_are_not_usable_coco(coco_folder, content, said):
    coco_folder.json.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        read_coco(coco_folder.json, coco_folder.images)
    assert str(coco_folder.json) in str(error.value)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_nothing_annotated_is_an_empty_dataset(coco_folder, on_error):
    coco_folder.data["annotations"] = coco_folder.data["annotations"][3:]
    with pytest.raises(ValueError, match="empty dataset"):
        coco_folder.read(on_error)


def test_nothing_left_after_skipping_is_an_empty_dataset(coco_folder):
    for image in coco_folder.data["images"]:
        image["file_name"] = "gone.png"
    with pytest.raises(ValueError, match="empty dataset"):
        coco_folder.read("skip")


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}], "duplicate category id 3"),
        ([{"id": 3, "name": "a"}, {"id": 4, "name": "a"}], 'named "a"'),
        ([{"id": "x", "name": "a"}], "no integer id"),
        ([{"id": 3}], "category 3 has no name"),
    ],
)
def test_contradicting_categories(coco_folder, categories, said):
    coco_folder.data["categories"] = categories
    with pytest.raises(ValueError, match=said):
        coco_folder.read("skip")


def test_missing_paths(coco_folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json.*data\.root"):
        read_coco(coco_folder.root / "nowhere.json", coco_folder.images)
    coco_folder.write()
    with pytest.raises(FileNotFoundError, match=r"nowhere.*data\.root"):
        read_coco(coco_folder.json, coco_folder.root / "nowhere")


def test_an_unknown_way_to_treat_errors(coco_folder):
    with pytest.raises(ValueError, match='"raise" or "skip"'):
        coco_folder.read("ignore")


def test_json_with_nan_is_read_as_python_writes_it(coco_folder):
    coco_folder.write()
    assert json.loads(coco_folder.json.read_text()) == coco_folder.data
