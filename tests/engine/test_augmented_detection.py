"""Several looks at an image, merged: a detector that sees colours stands for a real one."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detector.engine.augmented_detection import (
    AugmentedDetector,
    make_view,
    merge_detections,
    with_augmentation,
)
from detector.roi_heads.keypoint import read_keypoints
from detector.structures import Detections

SIDE = 4


class SeesColours(nn.Module):
    """Finds what is bright in red (class 0) and in green (class 1): box, mean brightness, mask.

    The masks' logits come from the blue in the box, so they need not be symmetric.
    """

    has_masks, has_keypoints, needs_proposals = True, False, False

    def __init__(self, slots=3):
        super().__init__()
        self.slots, self.seen = slots, []

    def detect(self, images, image_sizes):
        self.seen.append((images, image_sizes))
        shape = (len(images), self.slots)
        boxes, scores = torch.zeros(*shape, 4), torch.zeros(shape)
        labels, valid = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        for b, (height, width) in enumerate(image_sizes.tolist()):
            assert not images[b, :, height:].any() and not images[b, :, :, width:].any()
            for k in range(2):
                bright = images[b, k] > 100
                if bright.any():
                    y, x = bright.nonzero(as_tuple=True)
                    boxes[b, k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                    scores[b, k] = images[b, k][bright].float().mean() / 255
                    labels[b, k], valid[b, k] = k, True
        masks = torch.zeros(*shape, SIDE, SIDE)
        detections = Detections(boxes, scores, labels, valid, masks)
        found = self.extract_features(
            images, image_sizes, [o[v] for o, v in zip(boxes, valid, strict=True)], labels[valid]
        )
        masks[valid] = found.mask_logits.sigmoid()
        return detections

    def extract_features(self, images, image_sizes, boxes, labels):
        logits = []
        for image, own in zip(images, boxes, strict=True):
            for x1, y1, x2, y2 in own.round().long().tolist():
                blue = image[2, y1:y2, x1:x2].float()[None, None]
                cells = nn.functional.interpolate(blue, (SIDE, SIDE), mode="area")[0, 0]
                logits.append((cells - 128) / 32)
        logits = torch.stack(logits) if logits else torch.zeros(0, SIDE, SIDE)
        return SimpleNamespace(mask_logits=logits)


@pytest.fixture
def batch():
    """Two images of unlike size: a red box in both, a green one in the first; blue rises to the
    right."""
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    sizes = torch.tensor([[60, 90], [64, 70]])
    images[0, 0, 10:30, 8:40] = 200
    images[0, 1, 20:50, 50:86] = 150
    images[1, 0, 12:52, 20:60] = 240
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[2, :height, :width] = torch.linspace(0, 255, width).round().to(torch.uint8)
    return images, sizes


def assert_same(first, second, tolerance=0.0):
    for name in ("boxes", "scores", "labels", "valid", "masks"):
        mine, other = getattr(first, name).double(), getattr(second, name).double()
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance, msg=name)


def test_the_identity_is_no_augmentation(batch):
    model = SeesColours()
    assert_same(AugmentedDetector(model).detect(*batch), model.detect(*batch))
    assert with_augmentation(model, None) is model


def test_seen_twice_the_same_way_nothing_changes(batch):
    """The whole way of merging, with two views that are the batch itself."""
    model = SeesColours()
    assert_same(AugmentedDetector(model, [1.0, 1.0]).detect(*batch), model.detect(*batch), 1e-6)


def test_mirrored_views_agree_with_what_there_is(batch):
    model = SeesColours()
    plain = model.detect(*batch)
    both = AugmentedDetector(model, flip=True).detect(*batch)
    assert plain.masks[0, 0, 0, 0] < 0.2 < plain.masks[0, 0, 0, -1], "left and right differ"
    assert_same(both, plain, 1e-5)


def test_a_mirrored_image_gives_mirrored_detections(batch):
    images, sizes = batch
    # Noise, so that neither view is what the other is.
    noise = torch.randint(0, 30, images.shape, generator=torch.Generator().manual_seed(0))
    for image, own, (height, width) in zip(images, noise, sizes.tolist(), strict=True):
        image[:2, :height, :width] += own[:2, :height, :width].to(torch.uint8)
    detector = AugmentedDetector(SeesColours(), scales=[0.5, 1.0], flip=True)
    straight = detector.detect(images, sizes)
    mirror = make_view(images, sizes, 1.0, flipped=True)
    mirrored = detector.detect(mirror.images, mirror.image_sizes)
    boxes = mirror.boxes_to_batch(mirrored.boxes) * mirrored.valid[..., None]
    torch.testing.assert_close(boxes, straight.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(mirrored.scores, straight.scores, rtol=0, atol=1e-6)
    # A box between two cells may be cut a pixel further: the averages are over other pixels.
    torch.testing.assert_close(mirrored.masks.flip(3), straight.masks, rtol=0, atol=0.15)
    assert straight.valid.sum() == 3


def test_larger_and_smaller_views_find_the_same_places(batch):
    model = SeesColours()
    plain = model.detect(*batch)
    model.seen.clear()
    found = AugmentedDetector(model, scales=[0.5, 2.0]).detect(*batch)
    assert [tuple(images.shape) for images, _ in model.seen] == [(2, 3, 32, 64), (2, 3, 128, 192)]
    assert [sizes.tolist() for _, sizes in model.seen] == [
        [[30, 45], [32, 35]],
        [[120, 180], [128, 140]],
    ]
    assert found.valid.tolist() == plain.valid.tolist()
    torch.testing.assert_close(found.boxes, plain.boxes, rtol=0, atol=2.0)
    torch.testing.assert_close(found.masks, plain.masks, rtol=0, atol=0.15)


def test_masks_are_the_mean_of_the_views(batch):
    """In the second of two views the model sees masks everywhere."""

    class Sure(SeesColours):
        def extract_features(self, images, image_sizes, boxes, labels):
            found = super().extract_features(images, image_sizes, boxes, labels)
            if images.shape[2] > 64:
                found.mask_logits = torch.full_like(found.mask_logits, 50.0)
            return found

    model = Sure()
    plain = model.detect(*batch)
    found = AugmentedDetector(model, scales=[1.0, 2.0]).detect(*batch)
    expected = (plain.masks + 1) / 2 * plain.valid[..., None, None]
    torch.testing.assert_close(found.masks, expected, rtol=0, atol=0.1)


def test_merging_keeps_the_best_of_a_class_and_other_classes():
    def one(box, score, label):
        return Detections(
            torch.tensor([[box, [0.0] * 4]]),
            torch.tensor([[score, 0.0]]),
            torch.tensor([[label, 0]]),
            torch.tensor([[True, False]]),
        )

    box, near = [10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0]
    merged = merge_detections([one(box, 0.6, 0), one(near, 0.8, 0)], 0.5)
    assert merged.boxes[0].tolist() == [near, [0, 0, 0, 0]]
    assert merged.valid[0].tolist() == [True, False] and merged.scores[0, 1] == 0
    merged = merge_detections([one(box, 0.6, 0), one(near, 0.8, 1)], 0.5)
    assert merged.labels[0].tolist() == [1, 0] and merged.valid.all()
    third = one([50.0, 50.0, 60.0, 60.0], 0.7, 0)
    merged = merge_detections([one(box, 0.6, 0), one(near, 0.8, 1), third], 0.5)
    assert merged.scores[0].tolist() == pytest.approx([0.8, 0.7]), "as many slots as the model has"


@pytest.mark.parametrize(
    "tta, message",
    [
        (True, r"evaluation\.tta=True: .*scales: "),
        ({"scales": []}, "scales"),
        ({"scales": [0.0]}, "0.1 to 10"),
        ({"sizes": [800]}, r"sizes is not known; there are scales, flip"),
    ],
)
def test_what_makes_no_sense_is_refused(tta, message):
    with pytest.raises(ValueError, match=message):
        with_augmentation(SeesColours(), tta)


def test_models_that_cannot_be_merged_are_refused():
    model = SeesColours()
    model.needs_proposals = True
    with pytest.raises(ValueError, match=r"evaluation\.tta=null"):
        with_augmentation(model, {"flip": True})
    with pytest.raises(ValueError, match=r"which change places.*evaluation\.tta\.flip=false"):
        with_augmentation(SeesKeypoints("colour"), {"flip": True}, [])
    assert with_augmentation(SeesKeypoints("colour"), {"scales": [0.5, 1.0]}) is not None


class SeesKeypoints(SeesColours):
    """Two keypoints of each object: where it is bluest and least blue, which no mirror changes; or
    its leftmost and rightmost cell, which change places in one."""

    has_keypoints = True

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def detect(self, images, image_sizes):
        found = super().detect(images, image_sizes)
        own = [o[v] for o, v in zip(found.boxes, found.valid, strict=True)]
        features = self.extract_features(images, image_sizes, own, found.labels[found.valid])
        keypoints = torch.zeros(*found.valid.shape, 2, 3)
        keypoints[found.valid] = read_keypoints(features.keypoint_logits, torch.cat(own))
        return dataclasses.replace(found, keypoints=keypoints)

    def extract_features(self, images, image_sizes, boxes, labels):
        found = super().extract_features(images, image_sizes, boxes, labels)
        blue = found.mask_logits
        # Of one row alone, so that there is one highest place.
        bluest = torch.full((len(blue), 2, SIDE, SIDE), -9.0)
        bluest[:, :, 1] = torch.stack([blue[:, 1], -blue[:, 1]], dim=1)
        if self.kind == "side":
            bluest[:, :, 1] = torch.tensor([[3.0, 1.0, -1.0, -3.0], [-3.0, -1.0, 1.0, 3.0]])
        found.keypoint_logits = bluest
        return found


@pytest.mark.parametrize("kind, flip", [("colour", [0, 1]), ("side", [1, 0])])
def test_keypoints_are_merged_as_what_they_are_in_a_mirror(batch, kind, flip):
    model = SeesKeypoints(kind)
    plain = model.detect(*batch)
    same = AugmentedDetector(model, [1.0, 1.0]).detect(*batch)
    torch.testing.assert_close(same.keypoints, plain.keypoints, rtol=1e-5, atol=1e-5)
    both = AugmentedDetector(model, flip=True, keypoint_flip=flip).detect(*batch)
    # Of a mirrored box the highest pixel is that of the other side where two are equally high.
    torch.testing.assert_close(both.keypoints, plain.keypoints, rtol=1e-4, atol=1.0)
    assert (plain.keypoints[0, 0, 0, 0] - plain.keypoints[0, 0, 1, 0]).abs() > 10
    wrong = AugmentedDetector(model, flip=True, keypoint_flip=flip[::-1]).detect(*batch)
    assert (wrong.keypoints - plain.keypoints).abs().max() > 0.1
    assert_same(both, plain, 1e-5)
