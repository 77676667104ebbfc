"""Heads of convolutions and of more layers, against torchvision's and their formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from detector.roi_heads.box import ConvFCHead
from detector.roi_heads.mask_heads import MLPMaskHead


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_the_conv_head_is_torchvisions(norm):
    """The same weights, which stand in the same order, give the same vectors and gradients."""
    torch.manual_seed(0)
    ours = ConvFCHead(6, 5, num_convs=3, conv_width=8, num_fcs=2, width=12, norm=norm)
    layer = nn.BatchNorm2d if norm == "bn" else None
    theirs = FastRCNNConvFCHead((6, 5, 5), [8, 8, 8], [12, 12], norm_layer=layer)
    state = ours.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    pooled = torch.randn(7, 6, 5, 5)
    found, expected = ours(pooled), theirs(pooled)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert (ours.num_bins, ours.out_channels) == (25, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_convs": 0}, "num_convs=0 and num_fcs=1"),
        ({"num_fcs": 0}, "num_convs=4 and num_fcs=0"),
        ({"pooled_size": [1, 2]}, r"pooled_size=\[1, 2\]: convolutions need a square"),
    ],
)
def test_impossible_conv_heads(options, message):
    with pytest.raises(ValueError, match=message):
        ConvFCHead(4, **options)


@pytest.mark.parametrize("num_fcs", [1, 2, 3])
def test_mlp_masks_of_as_many_layers_as_the_table_has(num_fcs):
    torch.manual_seed(0)
    head = MLPMaskHead(4, 3, pooled_size=2, width=6, mask_size=5, num_fcs=num_fcs)
    pooled = torch.randn(7, 4, 2, 2)
    x = pooled.reshape(7, 16)
    for number in range(1, num_fcs + 1):
        layer = getattr(head, f"fc{number}")
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    expected = F.linear(x, head.logits.weight, head.logits.bias).reshape(7, 3, 5, 5)
    torch.testing.assert_close(head(pooled), expected)
    with pytest.raises(ValueError, match="num_fcs=0"):
        MLPMaskHead(num_fcs=0)
