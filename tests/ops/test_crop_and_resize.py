"""Crop-and-resize against TensorFlow's published values, its formula, and numerical gradients."""

import numpy as np
import pytest
import torch

from detector.ops.crop_and_resize import crop_and_resize
from detector.ops.reference import crop_and_resize as reference

TWO = [[1.0, 2], [3, 4]]
THREE = [[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]


# The expected values of tensorflow/core/kernels/image/crop_and_resize_op_test.cc; the one with
# extrapolation has -1 there, and boxes are (y1, x1, y2, x2), which for these is the same.
@pytest.mark.parametrize(
    ("feature", "box", "size", "expected"),
    [
        (TWO, [0, 0, 1, 1], 1, [[2.5]]),
        (TWO, [1, 1, 0, 0], 1, [[2.5]]),
        (TWO, [0, 0, 1, 1], 3, [[1, 1.5, 2], [2, 2.5, 3], [3, 3.5, 4]]),
        (TWO, [1, 1, 0, 0], 3, [[4, 3.5, 3], [3, 2.5, 2], [2, 1.5, 1]]),
        (THREE, [0, 0, 1, 1], 2, [[1, 3], [7, 9]]),
        (THREE, [0, 0, 0.5, 0.5], 2, [[1, 2], [4, 5]]),
        (THREE, [1, 1, 0, 0], 2, [[9, 7], [3, 1]]),
        (THREE, [0.5, 0.5, 0, 0], 2, [[5, 4], [2, 1]]),
        (TWO, [-1, -1, 1, 1], 3, [[0, 0, 0], [0, 1, 2], [0, 3, 4]]),
    ],
)
@pytest.mark.parametrize("function", [crop_and_resize, reference.crop_and_resize])
def test_values_of_tensorflows_tests(function, feature, box, size, expected):
    features = torch.tensor(feature)[None, None]
    crop = function(features, [torch.tensor([box], dtype=torch.float32)], size)
    assert crop[0, 0].tolist() == expected


def test_columns_are_x_and_rows_are_y():
    """The left half of the lower row: TensorFlow would call this box (1, 0, 1, 0.5)."""
    features = torch.tensor(THREE)[None, None]
    crop = crop_and_resize(features, torch.tensor([[0, 0.0, 1, 0.5, 1]]), (1, 3))
    assert crop[0, 0].tolist() == [[7, 7.5, 8]]
    crop = crop_and_resize(features, torch.tensor([[0, 0.25, 0.5, 0.75, 1]]), (2, 1))
    assert crop[0, 0].tolist() == [[5], [8]]


def formula(features: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """As the documentation of ``tf.image.crop_and_resize`` has it, point by point."""
    num_channels, rows, columns = features.shape[1:]
    crops = np.zeros((len(boxes), num_channels, height, width))
    for n, (image, x1, y1, x2, y2) in enumerate(boxes):
        for i in range(height):
            for j in range(width):
                if height > 1:
                    y = y1 * (rows - 1) + i * (y2 - y1) * (rows - 1) / (height - 1)
                else:
                    y = 0.5 * (y1 + y2) * (rows - 1)
                if width > 1:
                    x = x1 * (columns - 1) + j * (x2 - x1) * (columns - 1) / (width - 1)
                else:
                    x = 0.5 * (x1 + x2) * (columns - 1)
                if not (0 <= y <= rows - 1 and 0 <= x <= columns - 1):
                    continue
                top, left = int(np.floor(y)), int(np.floor(x))
                bottom, right = int(np.ceil(y)), int(np.ceil(x))
                feature = features[int(image)]
                upper = feature[:, top, left] * (1 - x + left) + feature[:, top, right] * (x - left)
                lower = feature[:, bottom, left] * (1 - x + left)
                lower = lower + feature[:, bottom, right] * (x - left)
                crops[n, :, i, j] = upper * (1 - y + top) + lower * (y - top)
    return crops


def random_inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes inside, across the border, outside, flipped on either axis, and without extent."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 6, 9, generator=generator, dtype=torch.float64)
    boxes = torch.rand(60, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    boxes[0] = torch.tensor([0.3, 0.4, 0.3, 0.4])
    boxes[1] = torch.tensor([1.5, 0, 2, 1])
    images = torch.randint(0, 2, (60, 1), generator=generator)
    return features.to(dtype), torch.cat((images, boxes), 1).to(dtype)


@pytest.mark.parametrize("size", [(4, 3), (1, 5), (2, 1), (1, 1), (13, 17)])
def test_equals_the_formula(size):
    features, boxes = random_inputs()
    expected = torch.from_numpy(formula(features.numpy(), boxes.numpy(), *size))
    assert (expected == 0).any() and (expected != 0).any()
    torch.testing.assert_close(crop_and_resize(features, boxes, size), expected)
    torch.testing.assert_close(reference.crop_and_resize(features, boxes, size), expected)


def test_the_whole_map_resized_to_itself_is_itself():
    features, _ = random_inputs(torch.float32)
    whole = torch.tensor([[0, 0.0, 0, 1, 1], [1, 0, 0, 1, 1]])
    torch.testing.assert_close(crop_and_resize(features, whole, (6, 9)), features)
    flipped = whole[:, [0, 3, 2, 1, 4]]
    torch.testing.assert_close(crop_and_resize(features, flipped, (6, 9)), features.flip(3))


def test_numerical_gradient():
    features, boxes = random_inputs()
    features = features[:, :2].requires_grad_()
    torch.autograd.gradcheck(lambda x: crop_and_resize(x, boxes[:12], (3, 2)), features)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 3])
def test_boxes_that_are_not_finite_crop_nothing(size, value, column):
    features, _ = random_inputs(torch.float32)
    features.requires_grad_()
    boxes = torch.tensor([[0, 0.1, 0.1, 0.8, 0.9]])
    assert crop_and_resize(features, boxes, size).ne(0).all()
    boxes[0, column] = value
    crop = crop_and_resize(features, boxes, size)
    assert not crop.any()
    crop.sum().backward()
    assert not features.grad.any()


def test_layouts_agree_and_no_boxes_give_no_rows():
    features, boxes = random_inputs(torch.float32)
    last = features.to(memory_format=torch.channels_last)
    crop = crop_and_resize(last, boxes, 3)
    assert crop.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop, crop_and_resize(features, boxes, 3))
    features.requires_grad_()
    nothing = crop_and_resize(features, boxes[:0], (3, 2))
    assert nothing.shape == (0, 3, 3, 2)
    nothing.sum().backward()
    assert features.grad.eq(0).all()


def test_wrong_arguments_are_named():
    features, boxes = random_inputs()
    with pytest.raises(ValueError, match="output_size must be"):
        crop_and_resize(features, boxes, (3, 0))
    with pytest.raises(ValueError, match="boxes must be"):
        crop_and_resize(features, boxes[:, 1:], 3)
    with pytest.raises(ValueError, match=r"boxes\[0, 0\] is not one of the 2 images"):
        crop_and_resize(features, torch.tensor([[2, 0, 0, 1, 1.0]]), 3)
