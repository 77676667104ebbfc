"""Features of given boxes, as a user asks for them: of an image, in its own pixels."""

import numpy as np
import pytest
import torch

from detector.data.transforms import ResizeShortestEdge
from detector.engine.runtime import Runtime
from detector.ops import feature_to_image
from detector.predictor import Detector

BOXES = torch.tensor([[8.0, 4.0, 30.0, 28.0], [10.5, 20.0, 50.5, 60.0], [0.0, 0.0, 96.0, 90.0]])


@pytest.fixture
def user(make_model) -> Detector:
    """Takes images of 64 pixels at twice their size."""
    names = ["cat", "dog", "hen"]
    return Detector(make_model(), names, [1, 2, 3], [ResizeShortestEdge(128, 256)], Runtime("cpu"))


def small_picture(make_batch, seed: int = 0, width: int = 64) -> np.ndarray:
    pixels = make_batch(seed=seed).images[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[:64, :width])


def test_a_users_boxes_are_in_the_pixels_of_the_image(user, make_batch):
    image = small_picture(make_batch, width=80)
    result = user.predict(image, score_threshold=0.2)
    assert len(result) > 5
    found = user.extract_features(image, result.boxes, result.labels)
    np.testing.assert_array_equal(found.boxes.numpy(), result.boxes)
    np.testing.assert_array_equal(found.labels.numpy(), result.labels)
    # Boxes were scaled forth and back, which moves what is pooled by less than 1e-5 pixels.
    np.testing.assert_allclose(found.mask_logits.sigmoid().numpy(), result.box_masks, atol=1e-3)
    assert found.scale.tolist() == [0.5, 0.5]
    assert found.levels[0].shape == (1, 16, 32, 40)
    # The last cell of the finest level, whose stride is 4, ends where the image does.
    corner = feature_to_image(torch.tensor([39.5, 31.5]), 4) * found.scale
    assert corner.tolist() == [80.0, 64.0]
    centers = found.cell_centers()
    x1, _, x2, _ = result.boxes[0]
    assert centers[0, 0, :, 0].mean().item() == pytest.approx((x1 + x2) / 2, abs=1e-3)


def test_a_list_of_images_and_names_of_classes(user, make_batch):
    images = [small_picture(make_batch), small_picture(make_batch, 3)]
    boxes = [[[4, 4, 20, 30], [0, 0, 64, 64]], []]
    found = user.extract_features(images, boxes, [["hen", np.int64(0)], []])
    assert [each.labels.tolist() for each in found] == [[2, 0], []]
    alone = user.extract_features(images[0], np.array(boxes[0]), torch.tensor([2, 0]))
    torch.testing.assert_close(found[0], alone)
    assert found[1].box_vectors.shape == (0, 32)
    unnamed = user.extract_features(images, boxes)[0]
    assert torch.equal(unnamed.labels, unnamed.scores[:, :-1].argmax(1))
    moved = found[0].to("meta")
    assert {moved.levels[4].device.type, moved.scores.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([1, 2, 3, 4], None, r"boxes of shape \(4,\); give \(L, 4\)"),
        ([[1, 2, 3]], None, r"boxes of shape \(1, 3\)"),
        ([["a", 2, 3, 4]], None, "boxes are no"),
        ([[0, 0, 9, 9], [30, 20, 10, 50]], None, r"boxes\[1\] is \[30.*x1 < x2"),
        ([[0, 0, float("nan"), 9]], None, r"boxes\[0\] is"),
        ([[70, 0, 90, 9]], None, r"boxes\[0\].* outside the image, whose width is 64"),
        ([[0, 0, 9, 9]], [0, 1], "2 labels for 1 boxes"),
        ([[0, 0, 9, 9]], [3], "label 3 is no class of the model; give a number from 0 to 2"),
        ([[0, 0, 9, 9]], ["cow"], "label 'cow' .* such as 'cat'"),
    ],
)
def test_what_a_user_can_get_wrong_is_explained(user, make_batch, boxes, labels, message):
    with pytest.raises(ValueError, match=message):
        user.extract_features(small_picture(make_batch), boxes, labels)


def test_in_half_precision_features_are_half_and_predictions_whole(make_model, make_batch):
    model = make_model()
    image = small_picture(make_batch)
    exact, half = (
        Detector(
            model, ["a", "b", "c"], [1, 2, 3], runtime=Runtime("cpu", precision)
        ).extract_features(image, BOXES * 0.6, [0, 1, 2])
        for precision in ("float32", "bf16")
    )
    for name in ("levels", "box_features", "box_vectors", "mask_features"):
        for value in (getattr(half, name)[0], getattr(half, name)[-1]):
            assert value.dtype == torch.bfloat16, name
    for name in ("boxes", "scale", "scores", "mask_logits"):
        assert getattr(half, name).dtype == torch.float32, name
    # 8 bits of mantissa through some thirty layers.
    torch.testing.assert_close(half.scores, exact.scores, atol=0.05, rtol=0)
    assert (half.scores - exact.scores).abs().max() > 0


def test_as_many_boxes_as_images(user, make_batch):
    with pytest.raises(ValueError, match="2 images, boxes for 1"):
        user.extract_features([small_picture(make_batch)] * 2, [BOXES])


def test_an_rpn_alone_has_no_features_of_boxes(compose_model, make_batch):
    model = compose_model(
        "model=rpn_fpn", "backbone=resnet18_fpn", "model.backbone.out_channels=16"
    )
    user = Detector(model, ["object"], [1], runtime=Runtime("cpu"))
    with pytest.raises(ValueError, match="ProposalNetwork has no second stage"):
        user.extract_features(small_picture(make_batch), [[0, 0, 9, 9]])
