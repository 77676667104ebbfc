"""R-CNN: proposals warped from the image, through the whole trunk."""

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align
from torchvision.transforms.functional import InterpolationMode, resize

from detector.backbones.single_level import SingleLevel
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.roi_ops import RoIAlign, SpatialPyramid
from detector.roi_heads.warped_trunk import Pixels, WarpedTrunk, with_context


class Trunk(nn.Module):
    """Keeps what it was given; a convolution of stride 4."""

    strides, out_channels = (4,), (5,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return [self.conv(images)]


def make(size: int = 16, context: float = 2.0, **options) -> WarpedTrunk:
    torch.manual_seed(0)
    warped = WarpedTrunk(RoIPooler(size, [1], RoIAlign(2)), context=context, **options)
    warped.run(SingleLevel(Trunk()))
    return warped.eval()


IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[8.0, 12, 56, 36], [3.5, 2.25, 20, 9], [0, 0, 64, 48]])
INDEX = torch.tensor([1, 0, 0])


def test_a_crop_shows_the_box_and_context_around_it():
    """Appendix A: in the warped square, 16 pixels of context on each side of the box."""
    [grown] = with_context(torch.tensor([[100.0, 50, 292, 146]]), 16, 224)
    # The box takes 192 of 224 pixels: one pixel of the square is 1 pixel wide and half a one high.
    assert grown.tolist() == [84, 42, 308, 154]
    assert torch.equal(with_context(BOXES, 0, 224), BOXES)


def test_crops_are_torchvisions_roi_align_of_the_grown_boxes():
    warped = make()
    warped([IMAGES], BOXES, INDEX)
    scale = 16 / 12
    centre, half = (BOXES[:, :2] + BOXES[:, 2:]) / 2, (BOXES[:, 2:] - BOXES[:, :2]) / 2 * scale
    rois = torch.cat((INDEX[:, None].float(), centre - half, centre + half), 1)
    expected = roi_align(IMAGES, rois, 16, 1.0, sampling_ratio=2, aligned=True)
    [seen] = warped.trunk.trunk.seen
    torch.testing.assert_close(seen, expected)
    # Beyond the image there is nothing but the mean pixel.
    assert seen[2, :, 0].eq(0).all() and seen[2, :, 8, 8].ne(0).all()


def test_an_enlarged_box_is_the_resized_piece_of_the_image():
    """With one sample of each cell a crop is bilinear interpolation between pixel centres."""
    warped = WarpedTrunk(RoIPooler(32, [1], RoIAlign(1)), context=0.0)
    warped.run(SingleLevel(Trunk()))
    warped.eval()([IMAGES], torch.tensor([[8.0, 12, 24, 28]]), torch.tensor([1]))
    piece = resize(IMAGES[1:, :, 12:28, 8:24], [32, 32], InterpolationMode.BILINEAR)
    # At the piece's border the crop sees what lies beside it, the resized piece does not.
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(warped.trunk.trunk.seen[0][inside], piece[inside])


def test_the_map_is_max_pooled_in_squares():
    """A map of 4 x 4 to 2 x 2, as conv5_3's 14 x 14 to the 7 x 7 of pool5."""
    warped = make(output_size=2)
    found = warped([IMAGES], BOXES, INDEX)
    [seen] = warped.trunk.trunk.seen
    assert torch.equal(found, nn.functional.max_pool2d(warped.trunk(seen)[0], 2))


def test_portions_at_inference_change_nothing():
    together, apart = make(), make(crops_at_once=2)
    torch.testing.assert_close(
        apart([IMAGES], BOXES, INDEX), together([IMAGES], BOXES, INDEX), atol=1e-6, rtol=1e-6
    )
    assert [len(seen) for seen in apart.trunk.trunk.seen] == [2, 1]
    apart.train()([IMAGES], BOXES, INDEX)
    assert len(apart.trunk.trunk.seen[-1]) == 3
    assert apart.eval()([IMAGES], BOXES[:0], INDEX[:0]).shape == (0, 5, 7, 7)


def test_the_backbone_of_rcnn_is_the_image():
    assert Pixels()(IMAGES)[0] is IMAGES and Pixels.strides == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 8.0}, "context=8.0"),
        ({"context": -1.0}, "context=-1.0"),
        ({"crops_at_once": 0}, "crops_at_once=0"),
        ({"output_size": 0}, "output_size=0"),
    ],
)
def test_impossible_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_cannot_be_put_together():
    with pytest.raises(ValueError, match="gives vectors"):
        WarpedTrunk(RoIPooler(16, [1], SpatialPyramid()))
    pyramid = Trunk()
    pyramid.strides = (4, 8)
    with pytest.raises(ValueError, match="one feature map, this one has 2"):
        make().run(pyramid)
