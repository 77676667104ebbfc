"""Loaders: order, grouping, resume, workers."""

import itertools
import multiprocessing
import signal
import subprocess
import sys
from collections import Counter

import albumentations as A
import numpy as np
import pytest
import torch

from detector.data.batches import TrainBatches
from detector.data.dataset import DetectionDataset
from detector.data.loader import build_eval_loader, build_train_loader


@pytest.fixture
def dataset(coco_folder) -> DetectionDataset:
    """Ten images, four of them portrait, all but one with an object."""
    data = coco_folder.data
    data["images"] = [
        coco_folder.image(100 + i, *((20, 32) if i in (1, 4, 5, 8) else (32, 20)))
        for i in range(10)
    ]
    square = [[2, 3, 8, 3, 8, 9, 2, 9]]
    data["annotations"] = [
        coco_folder.annotation(i + 1, 100 + i, 3, [2, 3, 6, 6], square) for i in range(9)
    ]
    coco_folder.write()
    augment = [A.HorizontalFlip(), A.RandomBrightnessContrast()]
    return DetectionDataset("annotations.json", "images", augment, root=coco_folder.root)


def take(loader, count: int) -> list:
    return list(itertools.islice(loader, count))


def assert_same(one, other) -> None:
    assert torch.equal(one.image_ids, other.image_ids)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.targets.boxes, other.targets.boxes)
    assert torch.equal(one.targets.polygons.edges, other.targets.polygons.edges)


def test_every_epoch_has_every_image_and_its_own_order():
    batches = TrainBatches(num_images=12, batch_size=4, seed=0)
    orders = []
    for epoch in range(3):
        order = [index for batch in batches.epoch(epoch) for _, index in batch]
        assert sorted(order) == list(range(12))
        assert {number for batch in batches.epoch(epoch) for number, _ in batch} == {epoch}
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert batches.epoch(1) == TrainBatches(12, 4, 0).epoch(1)
    assert batches.epoch(1) != TrainBatches(12, 4, 1).epoch(1)


@pytest.mark.parametrize("landscape", [None, np.arange(10) % 3 > 0])
def test_the_last_batch_is_filled_from_the_first_images(landscape):
    batches = TrainBatches(10, 4, 0, landscape)
    epoch = batches.epoch(0)
    assert [len(batch) for batch in epoch] == [4] * len(batches) == [4, 4, 4]
    counts = Counter(index for batch in epoch for _, index in batch)
    assert set(counts) == set(range(10)) and sorted(counts.values()) == [1] * 8 + [2] * 2


def test_a_dataset_smaller_than_a_batch():
    (batch,) = TrainBatches(3, 8, 0).epoch(0)
    assert len(batch) == 8 and {index for _, index in batch} == {0, 1, 2}


def test_aspect_ratios_do_not_mix_but_in_the_rest():
    landscape = np.random.default_rng(0).random(101) < 0.6
    batches = TrainBatches(101, 4, 0, landscape)
    for epoch in range(3):
        mixed = [
            len({bool(landscape[index]) for _, index in batch}) > 1
            for batch in batches.epoch(epoch)
        ]
        assert sum(mixed) <= 2 and not any(mixed[:-2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_continues_with_exactly_the_next_batch(dataset, num_workers):
    def build():
        return build_train_loader(dataset, batch_size=4, num_workers=num_workers, seed=5)

    whole = take(build(), 8)
    first = build()
    assert first.steps_per_epoch == 3
    head = take(first, 4)  # workers have prepared more than that
    assert first.state_dict()["epoch"] == 1 and first.state_dict()["batch"] == 1
    second = build()
    second.load_state_dict(first.state_dict())
    for one, other in zip(whole, head + take(second, 4), strict=True):
        assert_same(one, other)


def test_iterating_again_continues(dataset):
    whole = take(build_train_loader(dataset, 4), 6)
    loader = build_train_loader(dataset, 4)
    for one, other in zip(whole, take(loader, 2) + take(loader, 4), strict=True):
        assert_same(one, other)


def test_workers_do_not_change_the_batches(dataset):
    for one, other in zip(
        take(build_train_loader(dataset, 3, num_workers=0), 7),
        take(build_train_loader(dataset, 3, num_workers=2), 7),
        strict=True,
    ):
        assert_same(one, other)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="SIGTERM's sender is unknown here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_workers_outlive_the_signals_that_stop_a_training(dataset, number):
    """The process group gets them; the main process goes on until it has saved."""
    alone = take(build_train_loader(dataset, 3), 12)
    before = set(multiprocessing.active_children())
    batches = iter(build_train_loader(dataset, 3, num_workers=2))
    together = [next(batches), next(batches)]  # both workers have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    send = f"import os; [os.kill(pid, {int(number)}) for pid in {[w.pid for w in workers]}]"
    subprocess.run([sys.executable, "-c", send], check=True)
    together += [next(batches) for _ in range(10)]
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    for worker in workers:  # as multiprocessing does where the main process ends with them open
        worker.terminate()
        worker.join()


def test_an_epoch_differs_in_augmentation_too(dataset):
    batches = take(build_train_loader(dataset, 10, aspect_ratio_grouping=False), 2)
    order = [batch.image_ids.argsort() for batch in batches]
    images = [batch.images[o] for batch, o in zip(batches, order, strict=True)]
    assert not torch.equal(*images)


def test_a_state_of_other_batches_is_refused(dataset):
    state = build_train_loader(dataset, 4).state_dict()
    with pytest.raises(ValueError, match="batch_size 4, now it is 2"):
        build_train_loader(dataset, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="seed"):
        build_train_loader(dataset, 4, seed=1).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_sees_every_image_once(dataset, num_workers):
    loader = build_eval_loader(dataset, batch_size=4, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    ids = torch.cat([batch.image_ids for batch in batches]).tolist()
    assert ids == [100, 102, 103, 106, 107, 109, 101, 104, 105, 108]
    assert [len(batch.images) for batch in batches] == [4, 2, 4]
    again = torch.cat([batch.image_ids for batch in loader]).tolist()
    assert again == ids


def test_masks_are_asked_of_a_dataset_that_has_none(coco_folder):
    coco_folder.data["annotations"][2]["segmentation"] = []
    coco_folder.write()
    dataset = DetectionDataset("annotations.json", "images", root=coco_folder.root)
    with pytest.raises(ValueError, match=r"annotations\.json: annotation 12 has no segmentation"):
        build_train_loader(dataset, 2)
    batch = next(iter(build_train_loader(dataset, 2, with_masks=False)))
    assert batch.targets.polygons is None
    assert next(iter(build_eval_loader(dataset, 2))).targets.polygons is None


def test_keypoints_are_asked_of_a_dataset_that_has_none(coco_folder):
    def make():
        coco_folder.write()
        return DetectionDataset("annotations.json", "images", root=coco_folder.root)

    dataset = make()
    for build in (build_train_loader, build_eval_loader):
        with pytest.raises(
            ValueError, match=r"annotations\.json: its categories name no keypoints"
        ):
            build(dataset, 2, with_keypoints=True)
    assert next(iter(build_eval_loader(dataset, 2))).targets.keypoints is None

    coco_folder.data["categories"][1]["keypoints"] = ["nose", "tail"]
    coco_folder.data["annotations"][2]["keypoints"] = [25, 4, 2, 30, 6, 1]
    dataset = make()
    batch = next(iter(build_eval_loader(dataset, 2)))  # images 1 and 4
    assert batch.targets.keypoints.shape == (2, 8, 2, 3)
    assert batch.targets.keypoints[0, 1].tolist() == [[25.5, 4.5, 2], [30.5, 6.5, 1]]
    assert batch.targets.keypoints.count_nonzero() == 6
    assert next(iter(build_train_loader(dataset, 2))).targets.keypoints is None
    batch = next(iter(build_train_loader(dataset, 2, with_keypoints=True, num_workers=1)))
    assert batch.targets.keypoints.shape == (2, 8, 2, 3)


def test_batches_without_any_object(coco_folder):
    coco_folder.data["annotations"] = coco_folder.data["annotations"][:1]
    coco_folder.write()
    dataset = DetectionDataset("annotations.json", "images", root=coco_folder.root)
    loader = build_train_loader(dataset, 1)
    counts = sorted(int(batch.targets.valid.sum()) for batch in take(loader, 3))
    assert counts == [0, 0, 1]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_sizes_that_make_no_sense(dataset, batch_size):
    with pytest.raises(ValueError, match="batch"):
        build_train_loader(dataset, batch_size)
    with pytest.raises(ValueError, match="batch"):
        build_eval_loader(dataset, batch_size)
