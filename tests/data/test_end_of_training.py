"""Mixes of images in a training: which partners, exact resume, and off at the end."""

import itertools

import albumentations as A
import numpy as np
import pytest
import torch

from detector.data.augmentation import Augmentation
from detector.data.copy_paste import SimpleCopyPaste
from detector.data.dataset import DetectionDataset
from detector.data.end_of_training import AFTER, Moment, OffAtTheEnd, SampleKey
from detector.data.loader import build_eval_loader, build_train_loader
from detector.data.mosaic import Mosaic
from tests.data.test_copy_paste import boxes_sample
from tests.data.test_loader import assert_same, take

MIXES = {
    "copy-paste": lambda: [A.HorizontalFlip(), SimpleCopyPaste(), A.RandomBrightnessContrast()],
    "mosaic": lambda: [A.HorizontalFlip(), Mosaic()],
    "both": lambda: [Mosaic(p=0.7), A.RandomRotate90(), SimpleCopyPaste(p=0.6)],
}


@pytest.fixture
def build_dataset(coco_folder):
    """``build_dataset(augment)``: ten images, four portrait, all but one with an object."""
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
    return lambda augment: DetectionDataset(
        "annotations.json", "images", augment, root=coco_folder.root
    )


def build_loader(dataset, num_workers: int = 0, batch_size: int = 4, **options):
    return build_train_loader(dataset, batch_size, num_workers=num_workers, seed=5, **options)


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_and_workers_do_not_change_mixed_batches(build_dataset, name, num_workers):
    dataset = build_dataset(MIXES[name]())
    whole = take(build_loader(dataset), 7)
    first = build_loader(dataset, num_workers)
    head = take(first, 4)  # workers have prepared more than that
    second = build_loader(build_dataset(MIXES[name]()), num_workers)
    second.load_state_dict(first.state_dict())
    for one, other in zip(whole, head + take(second, 3), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("mix", [SimpleCopyPaste, Mosaic])
def test_each_sample_has_its_own_partners_of_the_whole_dataset(build_dataset, mix):
    dataset = build_dataset([mix()])
    read = []
    plain = dataset.read
    dataset.read = lambda index: read.append(index) or plain(index)
    drawn = set()
    for epoch, index in itertools.product(range(20), range(10)):
        read.clear()
        dataset[epoch, index]
        assert read[0] == index and len(read) == 1 + mix.num_partners
        drawn.add(tuple(read))
        read_before = list(read)
        read.clear()
        dataset[epoch, index]
        assert read == read_before
    assert {index for pair in drawn for index in pair[1:]} == set(range(10))
    assert len(drawn) > 70  # of 100 pairs, 86.6 are expected in 200 draws; or of 10 000


def test_partners_go_through_what_comes_before():
    """The partner is mirrored too, by its own draw; what comes after sees the whole once."""

    class Images:
        def __len__(self):
            return 1

        def read(self, index):
            return boxes_sample((0, 0, 10, 10), value=200, first_label=100)

    augmentation = Augmentation([A.HorizontalFlip(p=0.5), SimpleCopyPaste(), A.VerticalFlip(p=1)])
    seen = set()
    for seed in range(200):
        sample = boxes_sample((0, 20, 10, 30))
        result = augmentation(sample, np.random.default_rng(seed), Images())
        boxes = dict(zip(result.labels.tolist(), result.boxes.tolist(), strict=True))
        assert boxes[0] in ([0, 50, 10, 60], [90, 50, 100, 60])
        if 100 in boxes:
            assert boxes[100] in ([0, 70, 10, 80], [90, 70, 100, 80])
            seen.add((boxes[0][0], boxes[100][0]))
    assert len(seen) == 4, "the two are mirrored independently"


def test_p_is_how_often(build_dataset):
    dataset = build_dataset([Mosaic(p=0.3)])
    plain = build_dataset([])
    changed = [
        not np.array_equal(dataset[epoch, 0].image, plain[epoch, 0].image) for epoch in range(200)
    ]
    assert abs(np.mean(changed) - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5


def test_batches_keep_their_bucket(build_dataset):
    """Landscape batches remain landscape, whatever the partners are."""
    for augment in (MIXES["copy-paste"](), [Mosaic()], [Mosaic(size=[20, 30])]):
        loader = build_loader(build_dataset(augment), batch_size=2, buckets=[[32, 64], [64, 32]])
        for batch in take(loader, 5):
            assert tuple(batch.images.shape[2:]) in ((32, 64), (64, 32))


@pytest.mark.parametrize("sampler", ["class_balanced", "repeat_factor"])
def test_samplers_work(build_dataset, sampler):
    loader = build_loader(build_dataset(MIXES["both"]()), sampler=sampler)
    for one, other in zip(
        take(loader, 4),
        take(build_loader(build_dataset(MIXES["both"]()), sampler=sampler), 4),
        strict=True,
    ):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("switch", "first_off"),
    [
        (OffAtTheEnd([], last_steps=3), 7),
        (OffAtTheEnd([], last_fraction=0.3), 7),
        (OffAtTheEnd([], last_fraction=1), 0),
        (OffAtTheEnd([], last_steps=0), 10),
        (OffAtTheEnd([], last_steps=50), 0),
    ],
)
def test_which_steps_are_off(switch, first_off):
    assert [switch.is_off(Moment(step, 10)) for step in range(10)] == [
        step >= first_off for step in range(10)
    ]
    assert not switch.is_off(Moment())


def is_plain(batch) -> bool:
    """Whether its images are as in the files, which show one square each at most."""
    return bool((batch.targets.valid.sum(1) <= 1).all())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_off_at_the_end_to_the_batch(build_dataset, num_workers, accumulate):
    """With batches prepared ahead, and after a resume on either side of the switch, exactly the
    last three steps are without it."""

    def build():
        augment = [OffAtTheEnd([Mosaic(min_scale=0.5, max_scale=0.5)], last_steps=3)]
        loader = build_loader(build_dataset(augment), num_workers, batches_per_step=accumulate)
        loader.plan(5)
        return loader

    total, switch = 5 * accumulate, 2 * accumulate
    whole = take(build(), total)
    assert [is_plain(batch) for batch in whole] == [place >= switch for place in range(total)]
    plain = build_loader(build_dataset([]), batches_per_step=accumulate)
    for one, other in zip(whole[switch:], take(plain, total)[switch:], strict=True):
        assert_same(one, other)
    for stop in (switch - accumulate, switch, switch + accumulate):
        first = build()
        head = take(first, stop)
        second = build()
        second.load_state_dict(first.state_dict())
        for one, other in zip(whole, head + take(second, total - stop), strict=True):
            assert_same(one, other)


def test_looking_ahead_sees_what_training_will(build_dataset):
    augment = [OffAtTheEnd([Mosaic(min_scale=0.5, max_scale=0.5)], last_steps=3)]
    loader = build_loader(build_dataset(augment))
    loader.plan(5)
    ahead = list(loader.batches_at((0, 1), 3))
    for one, other in zip(take(loader, 4)[1:], ahead, strict=True):
        assert_same(one, other)


def test_any_transform_can_be_off_at_the_end(build_dataset):
    augment = [
        OffAtTheEnd([A.VerticalFlip(p=1), A.Rotate((90, 90), p=1)], last_fraction=0.5),
        A.HorizontalFlip(p=1),
    ]
    dataset = build_dataset(augment)
    early, late = (dataset[SampleKey(0, 0, Moment(step, 10))] for step in (4, 5))
    file = dataset.read(0).image
    np.testing.assert_array_equal(late.image, file[:, ::-1])
    assert not np.array_equal(early.image, late.image)
    assert torch.equal(torch.tensor(late.boxes), torch.tensor([[24.0, 3, 30, 9]]))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"last_steps": 3, "last_fraction": 0.1},
        {"last_steps": -1},
        {"last_steps": 0.5},
        {"last_fraction": 3},
    ],
)
def test_impossible_switches(arguments):
    with pytest.raises(ValueError, match="OffAtTheEnd: last_"):
        OffAtTheEnd([A.HorizontalFlip()], **arguments)


@pytest.mark.parametrize("place", ["transforms", "replaced_by"])
def test_a_switch_in_a_switch_is_refused(place):
    inside = {"transforms": [], place: [OffAtTheEnd([], last_steps=1)]}
    with pytest.raises(ValueError, match="inside another"):
        Augmentation([OffAtTheEnd(**inside, last_steps=2)])


@pytest.mark.parametrize("mixed", [False, True])
def test_something_else_stands_in_its_place(build_dataset, mixed):
    # Each of the two at its place in the list, for the sample and for partners.
    scaled = OffAtTheEnd([A.Resize(40, 64)], last_steps=3, replaced_by=[A.Resize(10, 16)])
    dataset = build_dataset([A.HorizontalFlip(p=1), scaled, *([Mosaic()] if mixed else [])])
    for step in range(10):
        sample = dataset[SampleKey(0, 0, Moment(step, 10))]
        assert sample.image.shape == ((40, 64, 3) if step < 7 else (10, 16, 3))
        if not mixed:
            factor = 2 if step < 7 else 0.5
            np.testing.assert_allclose(sample.boxes, factor * np.array([[24, 3, 30, 9]]))
    assert dataset[SampleKey(0, 0, AFTER)].image.shape == (10, 16, 3)
    assert dataset[0].image.shape == (40, 64, 3)


def test_what_a_time_limit_may_leave_no_time_for_is_said():
    augmentation = Augmentation(
        [
            OffAtTheEnd([Mosaic(), A.Transpose()], last_fraction=0.1),
            OffAtTheEnd([A.VerticalFlip()], last_steps=0),
            OffAtTheEnd([A.HorizontalFlip()], last_fraction=1),
        ]
    )
    (said,) = augmentation.late_switches(200)
    assert "Mosaic, Transpose will be off from step 181 on" in said
    assert "training.time_limit" in said and "training.max_steps" in said


def test_several_cuts_in_one_container_are_refused():
    with pytest.raises(ValueError, match=r"Sequential holds several .* one by one"):
        Augmentation([A.Sequential([A.RandomCrop(8, 8), A.PadIfNeeded(20, 20)])])
    Augmentation([A.OneOf([A.RandomCrop(8, 8), A.PadIfNeeded(20, 20)])])


def test_what_was_cut_off_does_not_come_back_in_a_border():
    """A crop, and later a border: what lay outside the crop is not in the border."""
    sample = boxes_sample((10, 10, 90, 70))
    augmentation = Augmentation([A.Crop(40, 30, 60, 50), A.Pad(20)])
    result = augmentation(sample, np.random.default_rng(0))
    assert result.boxes.tolist() == [[20, 20, 40, 40]]
    ring = result.rings(0)[0]
    assert [*ring.min(axis=0), *ring.max(axis=0)] == [20, 20, 40, 40]


def test_how_large_an_object_is_counts_after_it_is_scaled():
    """Half a pixel high beside one that sticks out; enlarged it is large enough."""
    sample = boxes_sample((10, 10, 90, 10.5), (60, 50, 200, 70))
    augmentation = Augmentation(
        [A.RandomResizedCrop((800, 1000), scale=(1, 1), ratio=(1.25, 1.25))]
    )
    result = augmentation(sample, np.random.default_rng(0))
    np.testing.assert_allclose(
        result.boxes, [[100, 100, 900, 105], [600, 500, 1000, 700]], atol=1e-3
    )


def test_evaluation_does_not_mix(build_dataset):
    with pytest.raises(ValueError, match=r"augment\.val: Mosaic mixes images"):
        build_eval_loader(build_dataset([Mosaic()]))
    with pytest.raises(ValueError, match=r"Mosaic .* belongs in augment\.train only"):
        Augmentation([Mosaic()])(boxes_sample(), np.random.default_rng(0))


def test_copy_paste_needs_masks(coco_folder, build_dataset):
    coco_folder.data["annotations"][4].pop("segmentation")
    coco_folder.write()
    with pytest.raises(ValueError, match="annotation 5 has no segmentation, which SimpleCopyPaste"):
        build_dataset([SimpleCopyPaste()])
    assert len(build_dataset([Mosaic()])) == 10
