"""The synthetic keypoint dataset: joints are where they are drawn, sides are where they belong."""

import contextlib
import copy
import hashlib
import io
import json
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.dataset import DetectionDataset
from detector.data.skeleton_figures import JOINTS, SIGMAS, SKELETON, capsule
from detector.data.skeleton_scenes import SkeletonScene, make_skeleton_scene
from detector.data.skeletons import ensure_skeletons

NUM_TRAIN, NUM_VAL = 50, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return ensure_skeletons(tmp_path_factory.mktemp("data") / "skeletons", NUM_TRAIN, NUM_VAL)


@pytest.fixture(scope="module")
def coco(root: Path) -> COCO:
    with quiet():
        return COCO(root / "annotations" / "person_keypoints_train.json")


@pytest.fixture(scope="module")
def scenes() -> list[SkeletonScene]:
    return [make_skeleton_scene(np.random.default_rng([3, index])) for index in range(60)]


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def make_dataset(root: Path, augment=()) -> DetectionDataset:
    return DetectionDataset(
        "annotations/person_keypoints_train.json", "train", augment, root=root, keep_empty=False
    )


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_same_bytes_and_counts_do_not_matter(root: Path, tmp_path: Path):
    again = digest(ensure_skeletons(tmp_path / "again", 4, 2))
    pictures = [name for name in again if name.endswith(".jpg")]
    assert len(pictures) == 6
    first = digest(root)
    assert all(first[name] == again[name] for name in pictures)
    assert digest(ensure_skeletons(tmp_path / "twice", 4, 2)) == again
    other = digest(ensure_skeletons(tmp_path / "other", 4, 2, seed=1))
    assert all(other[name] != again[name] for name in pictures)


def test_it_is_not_made_twice_nor_mixed_with_another(root: Path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert ensure_skeletons(root, NUM_TRAIN, NUM_VAL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(
        ValueError,
        match=r"made with seed=0 not 3; .*data\.prepare\.seed=0; or delete",
    ):
        ensure_skeletons(root, NUM_TRAIN, NUM_VAL, seed=3)
    with pytest.raises(ValueError, match="skeletons: image_size=64 must be at least 128"):
        ensure_skeletons(root.parent / "small", image_size=64)


def test_the_reader_takes_every_record(root: Path, coco: COCO):
    index = make_dataset(root).index
    assert not index.skipped and index.has_masks and index.has_keypoints
    assert index.num_annotations == len(coco.dataset["annotations"])
    assert index.keypoint_names == list(JOINTS) and index.num_keypoints == 13
    for joint, other in enumerate(index.keypoint_flip):
        swapped = JOINTS[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        assert JOINTS[other] == swapped
    assert index.skeleton == list(SKELETON)
    assert index.keypoint_sigmas == list(SIGMAS) and len(SIGMAS) == 13
    order = np.argsort([r["image_id"] for r in coco.dataset["annotations"]], kind="stable")
    records = [coco.dataset["annotations"][position]["keypoints"] for position in order]
    points = np.array(records, float).reshape(-1, 13, 3)
    points[..., :2] += 0.5 * (points[..., 2:] > 0)
    np.testing.assert_allclose(index.keypoints, points, atol=1e-5)


def keypoint_evaluation(truth: COCO, records: list[dict]) -> np.ndarray:
    with quiet():
        found = truth.loadRes(records)
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_the_annotations_as_detections_are_perfect(coco: COCO):
    results = [
        {key: record[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 1.0}
        for record in coco.dataset["annotations"]
    ]
    assert keypoint_evaluation(coco, results)[0] == pytest.approx(1.0)
    # Sides exchanged, an OKS of .5 is out of reach: the measure notices what the set is about.
    swapped = copy.deepcopy(results)
    flip = [0, *(joint for pair in range(1, 13, 2) for joint in (pair + 1, pair))]
    for record in swapped:
        record["keypoints"] = np.reshape(record["keypoints"], (13, 3))[flip].ravel().tolist()
    assert keypoint_evaluation(coco, swapped)[1] < 0.1


def test_records_are_consistent(coco: COCO):
    for record in coco.dataset["annotations"]:
        mask = coco.annToMask(record).astype(bool)
        assert record["area"] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = record["bbox"]
        assert (x, y) == (columns[0], rows[0])
        assert (x + width, y + height) == (columns[-1] + 1, rows[-1] + 1)
        keypoints = np.reshape(record["keypoints"], (13, 3))
        labelled = keypoints[:, 2] > 0
        assert record["num_keypoints"] == labelled.sum() >= 9
        assert set(keypoints[:, 2]) <= {0, 1, 2}
        assert not keypoints[~labelled].any()
        assert (keypoints[:, :2] >= -0.5).all() and (keypoints[:, :2] <= 127.5).all()


def test_every_kind_of_image_exists(coco: COCO, scenes: list[SkeletonScene]):
    counts = [len(coco.getAnnIds(image)) for image in coco.getImgIds()]
    counts += [len(scene.figures) for scene in scenes]
    assert set(counts) == {0, 1, 2, 3, 4}
    records = coco.dataset["annotations"]
    visibility = np.array([record["keypoints"][2::3] for record in records])
    assert 0.01 < (visibility == 1).mean() < 0.15
    assert 0.002 < (visibility == 0).mean() < 0.1
    heights = np.array([record["bbox"][3] for record in records])
    assert heights.min() < 50 and heights.max() > 85


def test_a_joint_is_visible_where_its_own_limbs_are_on_top(scenes: list[SkeletonScene]):
    """Against the painter's algorithm: all parts filled back to front by another library."""
    fine, wrong, hidden_by_others, total = 8, 0, 0, 0
    for scene in scenes:
        parts = [
            (f, part) for f, placed in enumerate(scene.figures) for part in placed.figure.parts
        ]
        owner = Image.new("L", (128 * fine, 128 * fine))
        for number, (_, part) in enumerate(parts, start=1):
            for ring in part.region:
                points = ring * fine - 0.5  # Pillow names pixels by their centres
                ImageDraw.Draw(owner).polygon(list(map(tuple, points)), fill=number)
        owner = np.asarray(owner)
        for f, placed in enumerate(scene.figures):
            for joint, (point, seen) in enumerate(
                zip(placed.figure.joints, placed.visibility, strict=True)
            ):
                if seen == 0:
                    assert not ((point >= 0) & (point < 128)).all()
                    continue
                total += 1
                column, row = (point * fine).astype(int)
                figure, part = parts[owner[row, column] - 1]
                on_top = figure == f and joint in part.joints
                wrong += seen == 2 and not on_top
                hidden_by_others += seen == 1 and on_top  # by what is no figure
    # At the border of what covers it, half a pixel decides.
    assert total > 1000 and wrong < 0.01 * total
    assert hidden_by_others < 0.02 * total


def turning(keypoints: np.ndarray) -> np.ndarray:
    """Positive where left lies right of the spine, seen from the hips to the head, ``(n,)``."""
    place = {name: keypoints[:, JOINTS.index(name), :2] for name in JOINTS}
    across = place["left_shoulder"] - place["right_shoulder"]
    middles = [place[f"left_{name}"] + place[f"right_{name}"] for name in ("shoulder", "hip")]
    down = middles[1] - middles[0]
    return across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]


def test_all_figures_face_the_viewer_before_and_after_a_flip(root: Path):
    """So the mirror image of a figure, its sides exchanged, is a figure as any other."""
    for augment in ([], [A.HorizontalFlip(p=1)], [A.D4(p=1)]):
        dataset, seen = make_dataset(root, augment), 0
        for number in range(len(dataset)):
            keypoints = dataset[number].keypoints
            keypoints = keypoints[(keypoints[..., 2] > 0).all(axis=1)]
            assert (turning(keypoints) > 0).all()
            seen += len(keypoints)
        assert seen > 50


def test_colours_say_nothing_about_sides(scenes: list[SkeletonScene]):
    colours: dict[str, list[np.ndarray]] = {"left": [], "right": []}
    for scene in scenes:
        for placed in scene.figures:
            for side, found in colours.items():
                joint = JOINTS.index(f"{side}_elbow")
                if placed.visibility[joint] == 2:
                    column, row = placed.figure.joints[joint].astype(int)
                    found.append(scene.image[row, column].astype(float))
    both = np.concatenate(list(colours.values()))
    for found in colours.values():
        error = both.std(0) / len(found) ** 0.5
        assert len(found) > 80 and (np.abs(np.mean(found, 0) - both.mean(0)) < 3 * error).all()


def test_a_capsule_is_what_lies_near_a_line():
    start, end = np.array([3.0, 4.0]), np.array([9.0, 12.0])
    ring = capsule(start, end, 2.0)
    along = np.clip(((ring - start) @ (end - start)) / 100, 0, 1)[:, None]
    distances = np.linalg.norm(ring - start - along * (end - start), axis=1)
    np.testing.assert_allclose(distances, 2.0)


def test_the_record_names_the_parameters(root: Path):
    record = json.loads((root / "skeletons.json").read_text())
    assert record == {
        "format": 1, "num_train": NUM_TRAIN, "num_val": NUM_VAL, "image_size": 128, "seed": 0,
    }  # fmt: skip
