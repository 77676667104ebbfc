"""The synthetic dataset: what is annotated is what is drawn, every time the same."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from detector.data import generated, shapes
from detector.data.generated import Parameters, write_dataset
from detector.data.polygon_clipping import region_area
from detector.data.shape_painting import coverage
from detector.data.shape_scenes import CLASS_NAMES, Scene, make_scene

NUM_TRAIN, NUM_VAL = 60, 12


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return shapes.ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", NUM_TRAIN, NUM_VAL)


@pytest.fixture(scope="module")
def coco(root: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(root / "annotations" / "instances_train.json")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(np.random.default_rng([7, index])) for index in range(150)]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_layout_and_counts(root: Path):
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        document = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        assert len(document["images"]) == count == len(list((root / split).glob("*.jpg")))
        assert [entry["name"] for entry in document["categories"]] == list(CLASS_NAMES)
        ids = [entry["id"] for entry in document["annotations"]]
        assert len(set(ids)) == len(ids)
        for entry in document["images"]:
            with Image.open(root / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"]) == (128, 128)
                assert image.mode == "RGB"


def test_same_seed_same_bytes_and_counts_do_not_matter(root: Path, tmp_path: Path):
    write_dataset(tmp_path / "again", shapes.SHAPES, Parameters(4, 2, 128, 0))
    first, again = digest(root), digest(tmp_path / "again")
    pictures = [name for name in again if name.endswith(".jpg")]
    assert len(pictures) == 6
    assert all(first[name] == again[name] for name in pictures)

    write_dataset(tmp_path / "twice", shapes.SHAPES, Parameters(4, 2, 128, 0))
    assert digest(tmp_path / "twice") == again

    write_dataset(tmp_path / "other", shapes.SHAPES, Parameters(4, 2, 128, 1))
    other = digest(tmp_path / "other")
    assert all(other[name] != again[name] for name in pictures)
    assert len({first[name] for name in first if name.endswith(".jpg")}) == NUM_TRAIN + NUM_VAL


def test_records_are_consistent(coco: COCO):
    for record in coco.dataset["annotations"]:
        x, y, width, height = record["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 128.001 and y + height <= 128.001
        assert width > 2 and height > 2
        if record["iscrowd"]:
            continue
        vertices = np.concatenate([np.reshape(part, (-1, 2)) for part in record["segmentation"]])
        assert vertices.min(0) == pytest.approx((x, y), abs=1e-6)
        assert vertices.max(0) == pytest.approx((x + width, y + height), abs=0.011)
        rings = [np.reshape(part, (-1, 2)) for part in record["segmentation"]]
        assert record["area"] == pytest.approx(region_area(rings), abs=0.01)
        # pycocotools fills polygons by its own rule, half a pixel generous along the outline.
        too_much = abs(coco.annToMask(record).sum() - record["area"])
        assert too_much < 0.4 * perimeter(record) + 2


def perimeter(record: dict) -> float:
    rings = [np.reshape(part, (-1, 2)) for part in record["segmentation"]]
    return sum(np.linalg.norm(ring - np.roll(ring, -1, 0), axis=1).sum() for ring in rings)


def test_annotations_are_the_visible_parts(scenes: list[Scene]):
    """Against the painter's algorithm: whole outlines filled back to front by another library."""
    fine = 8
    for scene in scenes[:40]:
        owner = Image.new("L", (128 * fine, 128 * fine))
        for number, shape in enumerate(scene.shapes, start=1):
            # Pillow names pixels by their centres.
            points = shape.outline * fine - 0.5
            ImageDraw.Draw(owner).polygon(list(map(tuple, points)), fill=number)
        owner = np.asarray(owner)
        for number, record in enumerate(scene.annotations()[: len(scene.shapes)], start=1):
            mask = Image.new("1", (128 * fine, 128 * fine))
            for part in record["segmentation"]:
                points = np.reshape(part, (-1, 2)) * fine - 0.5
                ImageDraw.Draw(mask).polygon(list(map(tuple, points)), fill=1)
            drawn, annotated = owner == number, np.asarray(mask)
            # Pillow draws outlines half a fine pixel too wide, and fragments go unannotated.
            allowed = 0.15 * perimeter(record) + 3
            assert (drawn != annotated).sum() / fine**2 < allowed


def test_edges_in_the_picture_lie_on_the_polygons(root: Path, coco: COCO):
    """Colour changes fastest exactly on the outlines; half a pixel aside it already does less."""
    steps = [-1.0, -0.5, 0.0, 0.5, 1.0]
    strength = {(dx, dy): 0.0 for dx in steps for dy in steps}
    for image_id in coco.getImgIds():
        name = coco.loadImgs(image_id)[0]["file_name"]
        with Image.open(root / "train" / name) as image:
            pixels = np.asarray(image, float)
        slope = np.hypot(np.gradient(pixels, axis=0), np.gradient(pixels, axis=1)).sum(2)
        for record in coco.loadAnns(coco.getAnnIds(image_id, iscrowd=False)):
            for part in record["segmentation"]:
                ring = np.reshape(part, (-1, 2))
                ends = np.roll(ring, -1, 0)
                for fraction in np.linspace(0.1, 0.9, 5):
                    points = ring + fraction * (ends - ring)
                    points = points[(points > 3).all(1) & (points < 125).all(1)]
                    for dx, dy in strength:
                        strength[dx, dy] += sample(slope, points + (dx, dy)).sum()
    assert max(strength, key=strength.get) == (0.0, 0.0)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear, where pixel ``(i, j)`` has its centre at ``(j + .5, i + .5)``."""
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.5
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - column, y - row
    top = field[row, column] * (1 - fx) + field[row, column + 1] * fx
    bottom = field[row + 1, column] * (1 - fx) + field[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy


def test_every_kind_of_image_and_annotation_exists(scenes: list[Scene]):
    records = [scene.annotations() for scene in scenes]
    assert any(not found for found in records), "images without objects"
    assert max(map(len, records)) >= 6
    instances = [record for found in records for record in found if not record["iscrowd"]]
    assert any(record["iscrowd"] for found in records for record in found)
    assert sum(len(record["segmentation"]) > 1 for record in instances) > 0.03 * len(instances)
    areas = np.array([record["area"] for record in instances])
    small, large = areas < 32**2, areas > 96**2
    assert 0.4 < small.mean() < 0.8
    assert 0.2 < (~small & ~large).mean() < 0.5
    assert large.sum() >= 2


def test_classes_are_balanced_and_colour_says_nothing(scenes: list[Scene]):
    counts = Counter(shape.label for scene in scenes for shape in scene.shapes)
    mean = sum(counts.values()) / len(CLASS_NAMES)
    assert len(counts) == len(CLASS_NAMES) >= 5
    assert all(0.7 * mean < count < 1.3 * mean for count in counts.values())

    colours: dict[int, list[np.ndarray]] = {label: [] for label in counts}
    for scene in scenes:
        for shape in scene.shapes:
            inside = coverage(shape.visible, 128) == 1
            if inside.any():
                colours[shape.label].append(scene.image[inside].mean(0))
    overall = np.concatenate(list(colours.values()))
    for found in colours.values():
        error = overall.std(0) / len(found) ** 0.5
        assert (np.abs(np.mean(found, 0) - overall.mean(0)) < 4 * error).all()


def test_crowds_are_run_lengths_of_tiny_shapes(scenes: list[Scene]):
    found = [scene for scene in scenes if scene.crowd_mask is not None]
    assert found
    for scene in found:
        record = scene.annotations()[-1]
        assert record["iscrowd"] == 1
        coco = COCO()
        coco.imgs = {1: {"height": 128, "width": 128}}
        mask = coco.annToMask({**record, "image_id": 1}).astype(bool)
        assert (mask == scene.crowd_mask).all()
        assert record["area"] == mask.sum() > 100
        x, y, width, height = record["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()


def test_coverage_is_area():
    triangle = np.array([(10.25, 20.5), (90.75, 31.0), (40.1, 99.3)])
    alpha = coverage([triangle], 128)
    assert alpha.sum() == pytest.approx(region_area([triangle]), rel=1e-3)
    assert alpha[50, 45] == 1 and alpha[5, 5] == 0
    square = np.array([(-5.0, -5.0), (2.5, -5.0), (2.5, 1.0), (-5.0, 1.0)])
    assert coverage([square], 128)[0, :4].tolist() == [1, 1, 0.5, 0]


def test_larger_images_are_allowed_and_smaller_refused():
    scene = make_scene(np.random.default_rng(3), 200)
    assert scene.image.shape == (200, 200, 3)
    with pytest.raises(ValueError, match="image_size=96 must be at least 128"):
        shapes.ensure_shapes("unused", image_size=96)


def test_second_use_changes_nothing(root: Path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    shapes.ensure_shapes(root, NUM_TRAIN, NUM_VAL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_parameters_and_other_folders_are_refused(root: Path, tmp_path: Path):
    (root.parent / "shapes-2").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="num_train=60 not 61") as error:
        shapes.ensure_shapes(root, NUM_TRAIN + 1, NUM_VAL, seed=3)
    message = str(error.value)
    assert "take them as they are: data.prepare.num_train=60 data.prepare.seed=0;" in message
    assert f"delete the folder {root} " in message and f"data.root={root}-3" in message
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="not a folder of generated shapes"):
        shapes.ensure_shapes(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_shapes_of_an_older_version_are_only_replaced(tmp_path: Path):
    (tmp_path / "shapes.json").write_text('{"format": 1, "num_train": 5}')
    with pytest.raises(ValueError, match=r"format=1 not 2.* delete the folder") as error:
        shapes.ensure_shapes(tmp_path)
    assert "as they are" not in str(error.value)
    (tmp_path / "shapes.json").write_text("[]")
    with pytest.raises(ValueError, match="no record of parameters"):
        shapes.ensure_shapes(tmp_path)


def test_the_named_remedy_is_one(root: Path):
    """What the message says to write on the command line is a setting of the data's config."""
    folder = Path(__file__).parents[2] / "configs" / "data"
    for name in ("shapes", "skeletons"):
        prepare = yaml.safe_load((folder / f"{name}.yaml").read_text())["prepare"]
        assert {"num_train", "num_val", "image_size", "seed"} <= prepare.keys()


def test_the_first_of_two_processes_wins(tmp_path: Path, monkeypatch):
    target = tmp_path / "shapes"
    write = generated.write_dataset

    def overtaken(*arguments) -> None:
        write(*arguments)
        monkeypatch.setattr(generated, "write_dataset", write)
        shapes.ensure_shapes(target, 2, 1)
        winner.update(digest(target))

    winner: dict[str, str] = {}
    monkeypatch.setattr(generated, "write_dataset", overtaken)
    assert shapes.ensure_shapes(target, 2, 1) == target
    assert digest(target) == winner
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"], "nothing is left over"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    def fail(root: Path, *others) -> None:
        root.mkdir()
        (root / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(generated, "write_dataset", fail)
    with pytest.raises(OSError, match="disk full"):
        shapes.ensure_shapes(tmp_path / "shapes", 2, 1)
    assert list(tmp_path.iterdir()) == []
