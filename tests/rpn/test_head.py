"""The RPN's head: one output for each anchor, or the paper's two."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead
from torchvision.models.detection.rpn import concat_box_prediction_layers

from detector.rpn.anchors import AnchorGenerator
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.rpn.rpn import RPN
from detector.structures import Targets


def test_head_equals_torchvisions_with_the_same_weights():
    theirs = TorchvisionHead(8, 3)
    ours = RPNHead(8, 3)
    names = {"conv.0.0": "convs.0.0", "cls_logits": "objectness", "bbox_pred": "deltas"}
    state = {}
    for name, value in theirs.state_dict().items():
        module, kind = name.rsplit(".", 1)
        state[f"{names[module]}.{kind}"] = torch.randn_like(value) * 0.1
    ours.load_state_dict(state)
    theirs.load_state_dict(
        {
            k: state[f"{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}"]
            for k in theirs.state_dict()
        }
    )
    features = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    logits, deltas = ours(features)
    expected_logits, expected_deltas = concat_box_prediction_layers(*theirs(features))
    torch.testing.assert_close(torch.cat(logits, 1).flatten(), expected_logits.flatten())
    torch.testing.assert_close(torch.cat(deltas, 1).flatten(0, 1), expected_deltas)


def test_two_outputs_by_hand():
    """Two anchors: background outputs 1 and 0, foreground 2 and ln 3."""
    head = RPNHead(4, 2, objectness="softmax")
    assert head.objectness.weight.shape == (4, 4, 1, 1)
    torch.nn.init.zeros_(head.objectness.weight)
    head.objectness.bias.data = torch.tensor([1.0, 0.0, 2.0, math.log(3)])
    (logits,), _ = head([torch.randn(1, 4, 1, 2)])
    # e^2 / (e^1 + e^2) and 3 / (1 + 3), at both cells.
    expected = torch.tensor([[0.7310586, 0.75, 0.7310586, 0.75]])
    torch.testing.assert_close(logits.sigmoid(), expected)


def test_softmax_gives_the_probabilities_and_the_order_of_the_2015_layout():
    """There the map of 2k channels is seen as ``(2, k * H, W)`` and softmax taken over the 2."""
    torch.manual_seed(0)
    head = RPNHead(8, 3, conv_channels=16, objectness="softmax")
    assert head.convs[0][0].out_channels == 16
    torch.nn.init.normal_(head.objectness.weight)
    feature = torch.randn(2, 8, 5, 7)
    (logits,), _ = head([feature])
    raw = head.objectness(head.convs(feature))
    probability = raw.view(2, 2, 3 * 5, 7).softmax(1).view(2, 6, 5, 7)[:, 3:]
    probability = probability.permute(0, 2, 3, 1).reshape(2, -1)
    torch.testing.assert_close(logits.sigmoid(), probability)
    distinct = probability.sort(descending=True).values.diff().lt(-1e-6).all()
    assert distinct
    assert torch.equal(logits.argsort(descending=True), probability.argsort(descending=True))


def test_the_loss_is_cross_entropy_over_the_two_outputs():
    """With its gradients."""
    torch.manual_seed(0)
    head = RPNHead(8, 3, objectness="softmax")
    torch.nn.init.normal_(head.objectness.weight)
    anchors = AnchorGenerator([[16]], [0.5, 1.0, 2.0], [16])
    rpn = RPN(anchors, head, ProposalLayer(), ProposalLayer(), num_samples=1000)
    targets = Targets(
        torch.tensor([[[18.0, 20, 40, 52]]]), torch.zeros(1, 1).long(), torch.ones(1, 1).bool()
    )
    feature, sizes = torch.randn(1, 8, 4, 6), torch.tensor([[64, 96]])
    _, losses = rpn([feature], sizes, targets)
    losses["loss_objectness"].backward()
    found = head.objectness.weight.grad.clone()

    _, labels = rpn._match(torch.cat(anchors([feature])), sizes, targets)
    assert set(labels.unique().tolist()) == {-1, 0, 1}
    head.zero_grad()
    pairs = head.objectness(head.convs(feature)).view(1, 2, 3, 4, 6).permute(0, 3, 4, 2, 1)
    expected = F.cross_entropy(pairs.reshape(-1, 2), labels.flatten(), ignore_index=-1)
    torch.testing.assert_close(losses["loss_objectness"], expected)
    expected.backward()
    torch.testing.assert_close(found, head.objectness.weight.grad)


@pytest.mark.parametrize("objectness", ["sigmoid", "softmax"])
@pytest.mark.parametrize("num_convs", [1, 2])
def test_parameters(objectness, num_convs):
    """VGG16's head of the paper: 512 channels, 9 anchors, 2k and 4k outputs."""
    head = RPNHead(512, 9, num_convs, 512, objectness)
    outputs = (2 if objectness == "softmax" else 1) * 9 + 36
    expected = num_convs * (512 * 512 * 9 + 512) + outputs * (512 + 1)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"head\.objectness=relu"):
        RPNHead(8, 3, objectness="relu")
    with pytest.raises(ValueError, match=r"head\.num_convs=0"):
        RPNHead(8, 3, num_convs=0)
