"""Anchors against published tables, torchvision and hand-computed shifts."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detector.rpn.anchors import AnchorGenerator, base_anchors, legacy_base_anchors

# detectron2 tests/modeling/test_anchor_generator.py: sizes 32 and 64, aspect ratios 1/4, 1 and 4,
# a map of 1 x 2 cells of stride 4.
CORNER = [
    [-32, -8, 32, 8],
    [-16, -16, 16, 16],
    [-8, -32, 8, 32],
    [-64, -16, 64, 16],
    [-32, -32, 32, 32],
    [-16, -64, 16, 64],
    [-28, -8, 36, 8],
    [-12, -16, 20, 16],
    [-4, -32, 12, 32],
    [-60, -16, 68, 16],
    [-28, -32, 36, 32],
    [-12, -64, 20, 64],
]
CENTERED = [
    [-30, -6, 34, 10],
    [-14, -14, 18, 18],
    [-6, -30, 10, 34],
    [-62, -14, 66, 18],
    [-30, -30, 34, 34],
    [-14, -62, 18, 66],
    [-26, -6, 38, 10],
    [-10, -14, 22, 18],
    [-2, -30, 14, 34],
    [-58, -14, 70, 18],
    [-26, -30, 38, 34],
    [-10, -62, 22, 66],
]


@pytest.mark.parametrize(("offset", "expected"), [(0.0, CORNER), (0.5, CENTERED)])
def test_published_case_of_detectron2(offset, expected):
    generator = AnchorGenerator([[32, 64]], [0.25, 1, 4], [4], offset)
    assert generator.num_anchors == 6
    (anchors,) = generator([torch.zeros(1, 3, 1, 2)])
    torch.testing.assert_close(anchors, torch.tensor(expected).float())


def test_table_of_the_2015_code():
    """py-faster-rcnn lib/rpn/generate_anchors.py; the comment there counts pixels from 1."""
    one_based = torch.tensor(
        [
            [-83, -39, 100, 56],
            [-175, -87, 192, 104],
            [-359, -183, 376, 200],
            [-55, -55, 72, 72],
            [-119, -119, 136, 136],
            [-247, -247, 264, 264],
            [-35, -79, 52, 96],
            [-79, -167, 96, 184],
            [-167, -343, 184, 360],
        ]
    ).float()
    # Scales 8, 16, 32 of a 16-pixel cell.
    anchors = legacy_base_anchors([128, 256, 512], [0.5, 1, 2], 16)
    assert torch.equal(anchors, one_based - 1)
    generator = AnchorGenerator([[128, 256, 512]], [0.5, 1, 2], [16], legacy=True)
    assert generator.num_anchors == 9
    (shifted,) = generator([torch.zeros(1, 1, 2, 3)])
    # Row 1, column 2; of an inclusive and of a continuous box with the same pixels, the latter
    # ends one further.
    shift = torch.tensor([32.0, 16, 32 + 1, 16 + 1])
    assert torch.equal(shifted[-9:], one_based - 1 + shift)


def test_equal_torchvisions_where_its_rounding_has_no_effect():
    """Sizes of 16 n and ratios of 1/4, 1, 4 have whole-numbered halves."""
    sizes = ((32,), (64,), (128,))
    features = [torch.zeros(2, 3, 64 // s, 96 // s) for s in (4, 8, 16)]
    ours = AnchorGenerator(sizes, (0.25, 1.0, 4.0), (4, 8, 16))
    theirs = TorchvisionAnchors(sizes, ((0.25, 1.0, 4.0),) * 3)
    expected = theirs(ImageList(torch.zeros(2, 3, 64, 96), [(64, 96)] * 2), features)
    assert torch.equal(torch.cat(ours(features)), expected[0])


def test_area_and_ratio_are_what_was_asked_for():
    anchors = base_anchors([32, 50], [0.5, 1.0, 2.0]).double()
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    torch.testing.assert_close(
        (width * height).sqrt(), torch.tensor([32.0] * 3 + [50] * 3).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        height / width, torch.tensor([0.5, 1, 2] * 2).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_one_list_of_sizes_serves_all_levels():
    generator = AnchorGenerator([[16, 32]], [1.0], (4, 8))
    fine, coarse = generator([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])
    assert fine.shape == (8, 4)
    assert torch.equal(coarse, fine[:2])


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="2 lists of sizes for 3 levels"):
        AnchorGenerator([[8], [16]], [1.0], (4, 8, 16))
    with pytest.raises(ValueError, match="same number of sizes"):
        AnchorGenerator([[8], [16, 32]], [1.0], (4, 8))
