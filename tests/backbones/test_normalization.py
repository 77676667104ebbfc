"""Normalisation of pixels and layers."""

import pytest
import torch
from torch import nn

from detector.backbones.normalization import PixelNormalizer, conv_norm, norm_layer

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


def test_pixels_by_hand():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images[0, :, 0, 1] = torch.tensor([12, 12, 255], dtype=torch.uint8)
    pixels = PixelNormalizer(MEAN, STD)(images, torch.tensor([[2, 2]]))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, :, 0, 1], torch.tensor([1.0, -2.0, 45.0]))
    torch.testing.assert_close(pixels[0, :, 1, 0], torch.tensor([-5.0, -5.0, -6.0]))


def test_padding_is_zero_whatever_it_held():
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    sizes = torch.tensor([[5, 7], [8, 3]])
    pixels = PixelNormalizer(MEAN, STD)(images, sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        filled = torch.zeros(8, 8).bool()
        filled[:height, :width] = True
        assert pixels[image, :, filled].ne(0).all()
        assert pixels[image, :, ~filled].eq(0).all()


def test_pixel_statistics_are_configuration_not_weights():
    assert not PixelNormalizer(MEAN, STD).state_dict()


@pytest.mark.parametrize("channels", [256, 48, 7])
def test_groups_divide_the_channels(channels):
    norm = norm_layer("gn")(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == {256: 32, 48: 16, 7: 1}[channels]


def test_names():
    assert isinstance(norm_layer(None)(4), nn.Identity)
    with pytest.raises(ValueError, match=r"norm='layer'.*sync_bn"):
        norm_layer("layer")


def test_convolution_keeps_the_size_and_is_biased_only_without_norm():
    image = torch.zeros(1, 4, 9, 5)
    for kernel_size in (1, 3):
        assert conv_norm(4, 6, kernel_size)(image).shape == (1, 6, 9, 5)
    assert conv_norm(4, 6, 3)[0].bias is not None
    normed = conv_norm(4, 6, 3, "bn", activation=True)
    assert normed[0].bias is None
    assert [type(layer) for layer in normed[1:]] == [nn.BatchNorm2d, nn.ReLU]
