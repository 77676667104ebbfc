from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detector.data.transforms import ResizeShortestEdge
from detector.engine.runtime import Runtime
from detector.predictor import Detector, find_images, to_pixels
from detector.structures import Detections


class BrightBox(nn.Module):
    """Finds the bounding box of the bright pixels, with certainty .9, and a dubious whole image."""

    num_classes = 2

    def detect(self, images: torch.Tensor, image_sizes: torch.Tensor) -> Detections:
        boxes, (height, width) = torch.zeros(1, 3, 4), image_sizes[0].tolist()
        rows = (images[0, 0] > 127).any(dim=1).nonzero().flatten()
        columns = (images[0, 0] > 127).any(dim=0).nonzero().flatten()
        boxes[0, 0] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        boxes[0, 1] = torch.tensor([0, 0, width, height])
        return Detections(
            boxes=boxes,
            scores=torch.tensor([[0.9, 0.2, 0.0]]),
            labels=torch.tensor([[1, 0, 0]]),
            valid=torch.tensor([[True, True, False]]),
        )


@pytest.fixture
def detector() -> Detector:
    return Detector(
        BrightBox(), ["cat", "dog"], [3, 90], [ResizeShortestEdge(64, 128)], Runtime("cpu")
    )


def picture() -> np.ndarray:
    """32 x 48, with a white rectangle; a network's input of 64 x 96 is twice as large."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[10:20, 6:30] = 255
    return image


def test_results_are_in_the_pixels_of_the_image_and_above_the_threshold(detector) -> None:
    result = detector.predict(picture())
    np.testing.assert_allclose(result.boxes, [[6, 10, 30, 20]], atol=0.6)  # bilinear edges
    assert result.names == ["dog"] and result.to_coco(image_id=7)[0]["category_id"] == 90
    assert len(detector.predict(picture(), score_threshold=0.1)) == 2
    assert len(detector.predict(picture(), score_threshold=0.95)) == 0


def test_a_16_bit_image_is_the_same_opened_or_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = np.random.default_rng(0).integers(0, 65536, (9, 8), dtype=np.uint16)
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(to_pixels(Image.open(path))[0], to_pixels(path)[0])


def test_every_kind_of_input_gives_the_same(detector, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    expected = detector.predict(picture()).boxes
    for one in (path, str(path), Image.open(path), picture()[:, :, 0]):
        np.testing.assert_array_equal(detector.predict(one).boxes, expected)
    assert detector.predict(path).path == path
    for several in ([path, picture()], tmp_path, str(tmp_path / "*.png")):
        results = detector.predict(several)
        assert isinstance(results, list)
        np.testing.assert_array_equal(results[0].boxes, expected)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(3, 4, 4), "Tensor"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(image, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_pixels(image)


def test_find_images_sorts_and_knows_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "below/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in find_images(f"{tmp_path}/**/*.jpg")] == ["c.jpg"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        find_images(tmp_path / "gone.jpg")


def test_what_needs_proposals_finds_nothing_in_an_image_alone(detector):
    detector.model.needs_proposals = True
    with pytest.raises(ValueError, match=r"BrightBox classifies given proposals.*extract_features"):
        detector.predict(np.zeros((8, 8, 3), np.uint8))
    assert repr(Detector(BrightBox(), ["cat"], [3])).startswith("Detector(BrightBox, 1 class: cat;")
