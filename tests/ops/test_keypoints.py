"""Keypoints and heatmaps against torchvision's functions."""

import pytest
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as their_keypoints
from torchvision.models.detection.roi_heads import keypoints_to_heatmap as their_cells

from detector.ops.keypoints import heatmaps_to_keypoints, keypoints_to_cells
from tests.ops.cases_keypoints import boxes_of_all_kinds, random_heatmaps


def real_boxes(number: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 100
    extents = 0.5 + torch.rand(number, 2, generator=generator) ** 3 * 180
    boxes = torch.cat((corners, corners + extents), dim=1)
    boxes[::5] = boxes[::5].round()
    return boxes


def test_heatmaps_are_read_as_torchvision_reads_them():
    """Bit for bit but for the place's sum, which is rounded in another order."""
    boxes, heatmaps = real_boxes(40, 0), random_heatmaps(40, 4, 56, 1)
    points, heights = their_keypoints(heatmaps, boxes)
    found = heatmaps_to_keypoints(heatmaps, boxes)
    torch.testing.assert_close(found[..., :2], points[..., :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[..., 2], heights, atol=0, rtol=0)


@pytest.mark.parametrize("side", [7, 56])
def test_cells_are_torchvisions(side):
    """On borders of cells too: the rounding is the same."""
    boxes = real_boxes(300, 2)
    generator = torch.Generator().manual_seed(3)
    share = torch.rand(300, 9, 2, generator=generator) * 1.4 - 0.2
    share[:100] = (share[:100] * side).round() / side
    share[:, 0] = 1.0
    corners, extents = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    visibility = torch.randint(3, (300, 9, 1), generator=generator)
    keypoints = torch.cat((corners + share * extents, visibility), dim=2)
    keypoints[:, 0, :2] = boxes[:, 2:]
    cells, inside = keypoints_to_cells(keypoints, boxes, side)
    their, valid = their_cells(keypoints, boxes, side)
    assert torch.equal(cells, their) and torch.equal(inside, valid.bool())
    assert 0.2 < inside.float().mean() < 0.8


def test_reading_is_the_inverse_of_writing():
    """A peak in a keypoint's cell is found within half a cell, and a pixel's half, of it."""
    generator = torch.Generator().manual_seed(4)
    boxes = real_boxes(30, 5)
    extents = (boxes[:, 2:] - boxes[:, :2])[:, None]
    points = boxes[:, None, :2] + torch.rand(30, 6, 2, generator=generator) * extents
    keypoints = torch.cat((points, torch.full((30, 6, 1), 2.0)), dim=2)
    cells, inside = keypoints_to_cells(keypoints, boxes, 56)
    assert inside.all()
    x, y = (cells % 56)[..., None, None], (cells // 56)[..., None, None]
    grid = torch.arange(56.0)
    heatmaps = -((grid - x) ** 2 + (grid[:, None] - y) ** 2)
    found = heatmaps_to_keypoints(heatmaps, boxes)[..., :2]
    error = (found - points).abs() / (
        extents / 56 + extents.clamp(min=1) / extents.clamp(min=1).ceil()
    )
    # Less than a pixel of a box is read at its middle.
    error = error.where(extents >= 1, 0)
    assert error.max() <= 0.5 + 1e-3


def test_boxes_that_no_image_has_give_finite_heights_and_disturb_no_other():
    boxes, heatmaps = boxes_of_all_kinds(), random_heatmaps(10, 3, 56, 6)
    found = heatmaps_to_keypoints(heatmaps, boxes)
    for i in range(10):
        alone = heatmaps_to_keypoints(heatmaps[i : i + 1], boxes[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, atol=0, rtol=0, equal_nan=True)
    assert found[..., 2].isfinite().all()


@pytest.mark.parametrize(
    ("heatmaps", "boxes", "message"),
    [
        (torch.zeros(2, 3, 5, 4), torch.zeros(2, 4), r"heatmaps must be \(N, J, S, S\)"),
        (torch.zeros(2, 3, 5, 5), torch.zeros(3, 4), r"boxes must be \(2, 4\)"),
        (torch.zeros(2, 3, 5, 5).half(), torch.zeros(2, 4), "heatmaps must be torch.float32"),
        (torch.zeros(2, 3, 5, 5), torch.zeros(2, 4).double(), "boxes must be torch.float32"),
        (torch.zeros(2, 3, 5, 5), torch.zeros(2, 4, device="meta"), "boxes on meta"),
    ],
)
def test_what_does_not_fit_is_refused(heatmaps, boxes, message):
    with pytest.raises(ValueError, match=message):
        heatmaps_to_keypoints(heatmaps, boxes)
