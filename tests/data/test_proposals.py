"""Files of proposals, and their way through augmentation and collation."""

import json
import pickle

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from detector.data.augmentation import Augmentation
from detector.data.coco import read_coco
from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.proposals import ProposalFile, write_proposals
from detector.data.transforms import ResizeShortestEdge

BOXES = {
    7: np.array([[0, 0, 40, 30], [5.5, 6, 20, 25], [1, 1, 2, 2]], np.float32),
    3: np.array([[10, 10, 30, 20]], np.float32),
    5: np.zeros((0, 4), np.float32),
}
SCORES = {7: [0.9, 0.5, 0.1], 3: [0.7], 5: []}


@pytest.fixture
def dataset_files(tmp_path):
    """Images 3, 5 and 7 of 40 x 30 pixels, each with one object."""
    images = []
    for image_id in (3, 5, 7):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 30, "width": 40})
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 10, 10]} for i in (3, 5, 7)
    ]
    categories = [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def write(path, image_ids=(7, 3, 5), boxes=BOXES):
    with open(path, "wb") as file:
        write_proposals(
            file,
            image_ids,
            [boxes[i] for i in image_ids],
            [np.array(SCORES[i], np.float32) for i in image_ids],
        )
    return path


def make_dataset(folder, augment=(), **settings) -> DetectionDataset:
    return DetectionDataset("instances.json", ".", augment, root=folder, **settings)


def test_round_trip_by_image_id(dataset_files):
    """The order of the file is its own; an image may have none."""
    index = read_coco(dataset_files / "instances.json", dataset_files)
    proposals = ProposalFile(write(dataset_files / "p.npz"), index, 2000)
    for each in (proposals, pickle.loads(pickle.dumps(proposals))):
        for position, image_id in enumerate((3, 5, 7)):
            boxes, scores = each(position)
            assert boxes.tolist() == BOXES[image_id].tolist()
            assert scores.tolist() == pytest.approx(SCORES[image_id])


def test_the_best_are_used(dataset_files):
    index = read_coco(dataset_files / "instances.json", dataset_files)
    boxes, scores = ProposalFile(write(dataset_files / "p.npz"), index, 2)(2)
    assert boxes.tolist() == BOXES[7][:2].tolist()
    assert scores.tolist() == pytest.approx([0.9, 0.5])


def test_images_of_other_datasets_are_passed_over(dataset_files):
    index = read_coco(dataset_files / "instances.json", dataset_files)
    far = BOXES | {99: np.array([[0, 0, 500, 500]], np.float32)}
    SCORES_OF_ALL = SCORES | {99: [0.5]}
    with open(dataset_files / "p.npz", "wb") as file:
        ids = (99, 3, 5, 7)
        write_proposals(
            file, ids, [far[i] for i in ids], [np.array(SCORES_OF_ALL[i], np.float32) for i in ids]
        )
    assert len(ProposalFile(dataset_files / "p.npz", index, 10)(2)[0]) == 3


def test_samples_and_batches_carry_them(dataset_files):
    """Scaled by two and padded."""
    path = write(dataset_files / "p.npz")
    dataset = make_dataset(dataset_files, [ResizeShortestEdge(60, 200)], proposals=path)
    assert dataset.has_proposals
    batch = Collate()([dataset[0], dataset[1], dataset[2]])
    assert batch.proposals.boxes.shape == (3, 64, 4)
    assert batch.proposals.valid.sum(1).tolist() == [1, 0, 3]
    torch.testing.assert_close(batch.proposals.boxes[2, :3], torch.from_numpy(BOXES[7]) * 2)
    torch.testing.assert_close(batch.proposals.scores[2, :3], torch.tensor(SCORES[7]))
    assert batch.proposals.boxes[~batch.proposals.valid].eq(0).all()
    torch.testing.assert_close(batch.targets.boxes[0, 0], torch.tensor([8.0, 8, 28, 28]))
    moved = batch.to("cpu")
    assert torch.equal(moved.proposals.boxes, batch.proposals.boxes)


def test_without_a_file_there_are_none(dataset_files):
    dataset = make_dataset(dataset_files)
    assert not dataset.has_proposals
    assert Collate()([dataset[0]]).proposals is None


def test_they_follow_a_flip_and_a_crop(dataset_files):
    dataset = make_dataset(dataset_files, proposals=write(dataset_files / "p.npz"))
    sample = dataset[2]
    rng = np.random.default_rng(0)
    flipped = Augmentation([albumentations.HorizontalFlip(p=1.0)])(sample, rng)
    assert flipped.proposals.tolist() == [[0, 0, 40, 30], [20, 6, 34.5, 25], [38, 1, 39, 2]]
    # What remains inside; the last one is outside and goes with its score.
    crop = Augmentation([albumentations.Crop(10, 10, 30, 30, p=1.0)])
    cropped = crop(sample, rng)
    assert cropped.proposals.tolist() == [[0, 0, 20, 20], [0, 0, 10, 15]]
    assert cropped.proposal_scores.tolist() == pytest.approx([0.9, 0.5])
    assert cropped.boxes.tolist() == [[0, 0, 4, 4]]


def test_images_without_proposals_are_named(dataset_files):
    path = write(dataset_files / "p.npz", image_ids=(3,))
    with pytest.raises(
        ValueError, match=r"p\.npz has no proposals for 2 of the 3 images .*\[5, 7\]"
    ):
        make_dataset(dataset_files, proposals=path)
    path = write(dataset_files / "none.npz", image_ids=())
    with pytest.raises(ValueError, match="for 3 of the 3 images"):
        make_dataset(dataset_files, proposals=path)


@pytest.mark.parametrize("box", [[10, 10, 41, 20], [-1, 0, 5, 5], [0, 0, np.nan, 5]])
def test_boxes_outside_their_image_are_refused(dataset_files, box):
    boxes = BOXES | {3: np.array([box], np.float32)}
    path = write(dataset_files / "p.npz", boxes=boxes)
    with pytest.raises(ValueError, match="of image 3 lies outside its 40x30 pixels"):
        make_dataset(dataset_files, proposals=path)


def test_what_is_no_such_file_is_refused(dataset_files):
    with pytest.raises(FileNotFoundError, match="no such file of proposals"):
        make_dataset(dataset_files, proposals=dataset_files / "absent.npz")
    (dataset_files / "text.npz").write_text("boxes")
    with pytest.raises(ValueError, match=r"text\.npz is no file of proposals"):
        make_dataset(dataset_files, proposals=dataset_files / "text.npz")
    np.savez(dataset_files / "other.npz", boxes=np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"lacks \['image_ids', 'offsets', 'scores'\]"):
        make_dataset(dataset_files, proposals=dataset_files / "other.npz")
    whole = write(dataset_files / "p.npz").read_bytes()
    (dataset_files / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz is no file of proposals"):
        make_dataset(dataset_files, proposals=dataset_files / "cut.npz")
    np.savez(
        dataset_files / "short.npz",
        image_ids=np.array([3, 5, 7]),
        offsets=np.array([0, 1, 2, 9]),
        boxes=np.zeros((2, 4), np.float32),
        scores=np.zeros(2, np.float32),
    )
    with pytest.raises(ValueError, match=r"short\.npz is damaged"):
        make_dataset(dataset_files, proposals=dataset_files / "short.npz")
    with pytest.raises(ValueError, match="max_proposals=0"):
        make_dataset(dataset_files, proposals=write(dataset_files / "p.npz"), max_proposals=0)


def test_another_image_of_the_same_id_is_refused(dataset_files):
    """Ids 3, 5, 7 of another dataset; folders do not matter, they differ between machines."""
    index = read_coco(dataset_files / "instances.json", dataset_files)
    for names, is_fine in ((["7.png", "a/3.png", "5.png"], True), (["7.png", "3.png", "b"], False)):
        with open(dataset_files / "p.npz", "wb") as file:
            write_proposals(
                *(file, (7, 3, 5)),
                [BOXES[i] for i in (7, 3, 5)],
                [np.array(SCORES[i], np.float32) for i in (7, 3, 5)],
                names,
            )
        if is_fine:
            assert len(ProposalFile(dataset_files / "p.npz", index, 10)(2)[0]) == 3
        else:
            with pytest.raises(
                ValueError, match=r"image id 5 is b, in .*instances.json it is 5.png"
            ):
                ProposalFile(dataset_files / "p.npz", index, 10)
