"""The pooler's choice of level and of features."""

import pytest
import torch
import torchvision

from detector.roi_heads.pooler import RoIAlignPooler


@pytest.mark.parametrize("aligned", [True, False])
def test_equals_torchvision_and_leaves_the_last_level_to_the_rpn(aligned):
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, 4, 128 // s, 128 // s, generator=generator) for s in (4, 8, 16, 32, 64)
    ]
    boxes = torch.tensor([[1.0, 2, 14, 12], [3, 5, 40, 45], [10, 10, 80, 70], [0, 0, 128, 128]])
    images = torch.tensor([0, 1, 0, 1])
    pooler = RoIAlignPooler(7, (4, 8, 16, 32), 2, aligned, canonical_size=56.0)
    pooled = pooler(features, boxes, images)
    for row, (level, stride) in enumerate(zip((0, 1, 2, 3), (4, 8, 16, 32), strict=True)):
        roi = torch.cat((images[row : row + 1, None].float(), boxes[row : row + 1]), 1)
        expected = torchvision.ops.roi_align(features[level], roi, 7, 1 / stride, 2, aligned)
        torch.testing.assert_close(pooled[row : row + 1], expected, atol=1e-5, rtol=1e-4)


def test_a_pyramid_may_start_elsewhere():
    """Over P3 and P4 a box of P2 is read from P3, the finest there is."""
    features = [torch.full((1, 1, 16, 16), 3.0), torch.full((1, 1, 8, 8), 4.0)]
    boxes = torch.tensor([[40.0, 40, 60, 60], [30, 30, 72, 72], [20, 20, 104, 104]])
    pooled = RoIAlignPooler(2, (8, 16), canonical_size=80.0)(features, boxes, torch.zeros(3).long())
    assert [row.unique().tolist() for row in pooled] == [[3], [3], [4]]


def test_sampling_must_not_depend_on_the_box():
    with pytest.raises(ValueError, match="sampling_ratio=0"):
        RoIAlignPooler(sampling_ratio=0)
