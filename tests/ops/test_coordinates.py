"""The coordinate maps against round trips, RoIAlign's samples and rasterised masks."""

from __future__ import annotations

import pytest
import torch
import torchvision

from detector.ops.coordinates import feature_to_image, image_to_feature, roi_cell_to_image
from detector.ops.masks import paste_masks
from detector.ops.polygons import rasterize_polygons
from detector.structures import Polygons

BOXES = torch.tensor([[40.0, 24, 104, 88], [33.25, 50.5, 71.75, 64.125], [60, 60, 61.5, 90]])


@pytest.mark.parametrize("aligned", [True, False])
def test_maps_between_image_and_feature_invert_each_other(aligned):
    points = torch.linspace(-20, 90, 45, dtype=torch.float64).view(5, 9)
    there = image_to_feature(points, 16, aligned)
    torch.testing.assert_close(feature_to_image(there, 16, aligned), points)
    back = feature_to_image(points, 4, aligned)
    torch.testing.assert_close(image_to_feature(back, 4, aligned), points)


def test_integers_are_centres_of_cells():
    """Cell 3 of stride 8 covers the pixels 24 to 32."""
    assert image_to_feature(torch.tensor([24.0, 28, 32]), 8).tolist() == [2.5, 3, 3.5]
    assert feature_to_image(torch.tensor(3.0), 8).item() == 28
    assert image_to_feature(torch.tensor([24.0, 32]), 8, aligned=False).tolist() == [3, 4]
    assert feature_to_image(torch.tensor(3.0), 8, aligned=False).item() == 24


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("mask_size", [7, 28])
def test_cells_lie_where_roi_align_samples_them(stride, mask_size):
    """On a map whose cells hold the place of their centre, RoIAlign reads the place it samples."""
    side = 128 // stride
    place = feature_to_image(torch.arange(side, dtype=torch.float64), stride)
    ramps = torch.stack((place.expand(side, side), place[:, None].expand(side, side)))[None]
    boxes = BOXES.double()
    rois = torch.cat((torch.zeros(3, 1, dtype=torch.float64), boxes), 1)
    sampled = torchvision.ops.roi_align(ramps, rois, mask_size, 1 / stride, 2, aligned=True)

    cell = torch.arange(mask_size)
    predicted = roi_cell_to_image(boxes[:, None, None], cell[:, None], cell, mask_size)
    assert predicted.shape == (3, mask_size, mask_size, 2)
    torch.testing.assert_close(sampled.permute(0, 2, 3, 1), predicted)


def test_without_alignment_roi_align_samples_half_a_cell_beyond():
    place = feature_to_image(torch.arange(32, dtype=torch.float64), 4, aligned=False)
    ramp = place.expand(1, 1, 32, 32)
    rois = torch.cat((torch.zeros(1, 1, dtype=torch.float64), BOXES[:1].double()), 1)
    sampled = torchvision.ops.roi_align(ramp, rois, 7, 1 / 4, 2, aligned=False)
    predicted = roi_cell_to_image(BOXES[0].double(), 0, torch.arange(7), 7)[:, 0]
    torch.testing.assert_close(sampled[0, 0, 0], predicted)


@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_a_cell_of_a_mask_target_is_set_where_its_centre_is_inside(shift):
    """A rectangle up to just before, or just beyond, the centre of cell (9, 17)."""
    box = BOXES[1]
    x, y = (roi_cell_to_image(box, 9, 17, 28) + shift).tolist()
    corners = [(0.0, 0.0), (x, 0.0), (x, y), (0.0, y)]
    edges = torch.tensor([[(*corners[i - 1], *corners[i]) for i in range(4)]])
    polygons = Polygons(edges, torch.tensor([[0, 4]]), max_edges=4)
    zero = torch.zeros(1, dtype=torch.int64)
    mask = rasterize_polygons(polygons, box[None], zero, zero, 28)[0]
    expected = torch.zeros(28, 28)
    end = 0 if shift < 0 else 1
    expected[: 9 + end, : 17 + end] = 1
    assert mask.equal(expected)


def test_a_pasted_cell_lies_at_its_centre():
    """Cells of four pixels: the pixel whose centre is the cell's own has the cell's probability."""
    box = torch.tensor([3.5, 7.5, 115.5, 119.5])  # centres of cells are centres of pixels
    mask = torch.zeros(1, 28, 28)
    mask[0, 9, 17] = 1
    pasted = paste_masks(mask, box[None], 128, 128, threshold=0.999)
    x, y = roi_cell_to_image(box, 9, 17, 28).tolist()
    assert pasted[0].nonzero().tolist() == [[y - 0.5, x - 0.5]]


def test_the_cells_of_a_mask_divide_its_box():
    box = torch.tensor([10.0, 20, 38, 48])
    assert roi_cell_to_image(box, 0, 0, 28).tolist() == [10.5, 20.5]
    assert roi_cell_to_image(box, 27, 27, 28).tolist() == [37.5, 47.5]
    assert roi_cell_to_image(box, 1, 5, 28).tolist() == [15.5, 21.5]
    # Half a cell around the outermost centres: the corners of the box.
    assert roi_cell_to_image(box, -0.5, 27.5, 28).tolist() == [38, 20]


def test_gradients_reach_boxes_and_points():
    boxes = BOXES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_cell_to_image(x, 3, 5, 28), (boxes,))
    assert torch.autograd.gradcheck(lambda x: image_to_feature(x, 16), (boxes,))


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(ValueError, match="stride=0"):
        image_to_feature(BOXES, 0)
    with pytest.raises(ValueError, match="stride=nan"):
        feature_to_image(BOXES, float("nan"))
    with pytest.raises(ValueError, match="mask_size=0"):
        roi_cell_to_image(BOXES, 0, 0, 0)
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(\.\.\., 4\)"):
        roi_cell_to_image(BOXES[:, :3], 0, 0, 28)
