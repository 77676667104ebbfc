"""Samples of a dataset: targets, determinism, messages."""

import pickle

import albumentations as A
import numpy as np
import pytest
from PIL import Image

from detector.data.dataset import DetectionDataset


def make_dataset(folder, augment=None, **options) -> DetectionDataset:
    folder.write()
    return DetectionDataset("annotations.json", "images", augment, root=folder.root, **options)


def test_a_sample_is_what_the_files_say(coco_folder):
    dataset = make_dataset(coco_folder)
    assert len(dataset) == 3
    sample = dataset[0]
    with Image.open(coco_folder.images / "1.png") as image:
        np.testing.assert_array_equal(sample.image, np.array(image))
    assert sample.boxes.tolist() == [[5, 6, 15, 14], [20, 2, 32, 12]]
    assert sample.labels.tolist() == [1, 0] and sample.labels.dtype == np.int64
    assert (sample.image_id, sample.original_size) == (1, (30, 40))
    assert [len(sample.rings(g)) for g in range(2)] == [1, 2]
    assert {tuple(v) for v in sample.rings(1)[1].tolist()} == {(28, 2), (32, 2), (32, 8), (28, 8)}


def test_crowd_regions_are_no_targets(coco_folder):
    sample = make_dataset(coco_folder)[1]
    assert len(sample) == 1
    assert sample.boxes.tolist() == [[2, 0, 4, 3]]
    assert sample.ring_offsets.tolist() == [0, 1]
    assert len(sample.vertices) == sample.vertex_offsets[-1] == 6


def test_an_image_without_objects(coco_folder):
    sample = make_dataset(coco_folder, [A.HorizontalFlip(p=1)])[2]
    assert len(sample) == 0
    assert sample.boxes.shape == (0, 4) and sample.vertices.shape == (0, 2)


def test_empty_images_can_be_left_out(coco_folder):
    coco_folder.data["annotations"][1]["iscrowd"] = 1  # only crowd regions are left on image 7
    dataset = make_dataset(coco_folder, keep_empty=False)
    assert dataset.index.image_ids.tolist() == [1]
    assert len(dataset[0]) == 2


def test_augmentation_depends_on_seed_epoch_and_index_only(coco_folder):
    augment = [A.HorizontalFlip(), A.Affine(rotate=(-30, 30)), A.ColorJitter()]
    dataset = make_dataset(coco_folder, augment, seed=3)
    first = {key: dataset[key] for key in [(0, 0), (0, 1), (1, 0), (7, 1)]}
    same_seed = make_dataset(coco_folder, augment, seed=3)
    for key in [(7, 1), (1, 0), (0, 0), (0, 1)]:
        again = same_seed[key]
        np.testing.assert_array_equal(again.image, first[key].image)
        np.testing.assert_array_equal(again.boxes, first[key].boxes)
    assert not np.array_equal(first[0, 0].image, first[1, 0].image)
    other_seed = make_dataset(coco_folder, augment, seed=4)
    assert not np.array_equal(other_seed[0, 0].image, first[0, 0].image)
    np.testing.assert_array_equal(dataset[0].image, first[0, 0].image)


def test_a_pickled_dataset_gives_the_same_samples(coco_folder):
    augment = [A.RandomScale((0.2, 0.5), p=1), A.ElasticTransform(p=1), A.Resize(40, 50)]
    dataset = make_dataset(coco_folder, augment)
    data = pickle.dumps(dataset)
    assert len(data) < 20_000, "workers map the arrays, they are not sent"
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy[0].image, dataset[0].image)
    np.testing.assert_array_equal(copy[0].vertices, dataset[0].vertices)


def test_a_dataset_does_not_touch_global_randomness(coco_folder):
    dataset = make_dataset(coco_folder, [A.HorizontalFlip(), A.RandomCrop(8, 8)])
    np.random.seed(0)
    expected = np.random.random(3)
    np.random.seed(0)
    for index in range(3):
        dataset[index]
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_a_file_that_changes_during_training(coco_folder):
    dataset = make_dataset(coco_folder)
    Image.new("RGB", (8, 8)).save(coco_folder.images / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is 8x8.*40x30"):
        dataset[0]
    (coco_folder.images / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        dataset[0]


def test_an_index_out_of_range(coco_folder):
    with pytest.raises(IndexError):
        make_dataset(coco_folder)[3]


def test_masks_of_the_reference_survive_a_flip(coco_folder, rasterize):
    plain, flipped = (make_dataset(coco_folder, [A.HorizontalFlip(p=p)]) for p in (0, 1))
    for index in range(2):
        one, other = plain[index], flipped[index]
        height, width = one.image.shape[:2]
        for g in range(len(one)):
            mask = rasterize(one.rings(g), height, width)
            np.testing.assert_array_equal(
                rasterize(other.rings(g), height, width), mask[:, ::-1]
            )  # fmt: skip
