"""Each loss of a box against its formula, written out number by number."""

import math

import pytest
import torch
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from detector.ops.box_losses import BoxLoss
from detector.ops.boxes import encode_boxes

# A proposal of 20 x 10, a ground truth of 24 x 16, and deltas that leave them apart.
PROPOSAL = (10.0, 20.0, 30.0, 30.0)
GT = (12.0, 18.0, 36.0, 34.0)
DELTAS = (0.05, -0.3, -4.0, 2.3)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def goal() -> list[float]:
    """Faster R-CNN, equation 2, times the weights."""
    width, height = 20.0, 10.0
    x, y = (12 + 36) / 2, (18 + 34) / 2
    return [
        10 * (x - 20) / width,
        10 * (y - 25) / height,
        5 * math.log(24 / width),
        5 * math.log(16 / height),
    ]


def decoded() -> tuple[float, float, float, float]:
    x = 20 + DELTAS[0] / 10 * 20
    y = 25 + DELTAS[1] / 10 * 10
    width = 20 * math.exp(DELTAS[2] / 5)
    height = 10 * math.exp(DELTAS[3] / 5)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def loss_of(kind: str = "smooth_l1", beta: float = 0.0, **settings) -> float:
    loss = BoxLoss("rpn", kind, beta, WEIGHTS, **settings)
    tensors = (torch.tensor([values]) for values in (DELTAS, PROPOSAL, GT))
    (value,) = loss(*tensors)
    return value.item()


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_smooth_l1_of_the_2015_code(sigma):
    """0.5 (sigma x)^2 where |x| < 1 / sigma^2, else |x| - 0.5 / sigma^2; outside and inside 1."""
    expected = 0.0
    branches = set()
    for delta, wanted in zip(DELTAS, goal(), strict=True):
        x = delta - wanted
        quadratic = abs(x) < 1 / sigma**2
        branches.add(quadratic)
        expected += 0.5 * (sigma * x) ** 2 if quadratic else abs(x) - 0.5 / sigma**2
    assert branches == {True, False}
    assert loss_of(beta=1 / sigma**2) == pytest.approx(expected, rel=1e-5)


def test_smooth_l1_is_quadratic_below_beta():
    """x = 0.1 with sigma 3: 0.5 * 9 * 0.01; x = 0.2 is beyond 1/9: 0.2 - 1/18."""
    loss = BoxLoss("rpn", "smooth_l1", 1 / 9)
    unmoved = torch.tensor([PROPOSAL] * 2)
    deltas = torch.tensor([[0.1, 0, 0, 0], [0, 0, 0, -0.2]])
    found = loss(deltas, unmoved, unmoved)
    torch.testing.assert_close(found, torch.tensor([0.045, 0.2 - 1 / 18]))


def test_beta_0_is_l1():
    expected = sum(abs(d - g) for d, g in zip(DELTAS, goal(), strict=True))
    assert loss_of() == pytest.approx(expected, rel=1e-5)


def test_inside_weights_multiply_differences_before_the_bend():
    """outside * smooth_l1(inside * x), the outside weight being the caller's."""
    inside = (0.2, 2.0, 0.5, 3.0)
    expected = 0.0
    for delta, wanted, weight in zip(DELTAS, goal(), inside, strict=True):
        x = weight * (delta - wanted)
        expected += 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5
    assert loss_of(beta=1.0, inside_weights=inside) == pytest.approx(expected, rel=1e-5)


def measures() -> dict[str, float]:
    """GIoU (Rezatofighi et al., 2019, algorithm 1); DIoU and CIoU (Zheng et al., 2020, eqs. 7 to
    11)."""
    a, b = decoded(), GT
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    overlap = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    union = area_a + area_b - overlap
    iou = overlap / union
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    hull = width * height
    apart = (a[0] + a[2] - b[0] - b[2]) ** 2 / 4 + (a[1] + a[3] - b[1] - b[3]) ** 2 / 4
    distance = apart / (width**2 + height**2)
    angle = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    v = 4 / math.pi**2 * angle**2
    return {
        "giou": iou - (hull - union) / hull,
        "diou": iou - distance,
        "ciou": iou - distance - v / (1 - iou + v) * v,
    }


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_overlap_losses_by_their_formulas(kind):
    values = measures()
    assert len({round(value, 3) for value in values.values()}) == 3
    assert loss_of(kind) == pytest.approx(1 - values[kind], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("giou", generalized_box_iou_loss),
        ("diou", distance_box_iou_loss),
        ("ciou", complete_box_iou_loss),
    ],
)
def test_overlap_losses_and_gradients_equal_torchvisions_on_decoded_boxes(kind, reference):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, generator=generator) * 40
    proposals = torch.cat((low, low + 3 + torch.rand(50, 2, generator=generator) * 40), 1)
    gt = proposals + torch.randn(50, 4, generator=generator)
    ours = (torch.randn(50, 4, generator=generator) * 2).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = BoxLoss("rpn", kind, delta_weights=WEIGHTS)(ours, proposals, gt)
    width, height = (proposals[:, 2:] - proposals[:, :2]).T
    dx, dy, dw, dh = (theirs / torch.tensor(WEIGHTS)).T
    x, y = proposals[:, 0] + width / 2 + dx * width, proposals[:, 1] + height / 2 + dy * height
    w, h = width * dw.exp(), height * dh.exp()
    expected = reference(torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1), gt)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_perfect_deltas_cost_nothing(kind):
    reference, gt = torch.tensor([PROPOSAL]), torch.tensor([GT])
    deltas = encode_boxes(gt, reference, WEIGHTS)
    loss = BoxLoss("rpn", kind, delta_weights=WEIGHTS)(deltas, reference, gt)
    torch.testing.assert_close(loss, torch.zeros(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_empty_slots_are_finite(kind):
    """The caller weighs them with zero, which makes no NaN of them."""
    deltas = torch.zeros(2, 3, 4, requires_grad=True)
    empty = torch.zeros(2, 3, 4)
    loss = BoxLoss("rpn", kind)(deltas, empty, empty)
    assert loss.shape == (2, 3)
    (loss * 0).sum().backward()
    assert deltas.grad.eq(0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "l1"}, "rpn.box_loss=l1 is not known"),
        ({"beta": -0.1}, "rpn.smooth_l1_beta=-0.1"),
        ({"inside_weights": (1, 1, 1)}, "four numbers"),
        ({"inside_weights": (1, 1, 0, 1)}, "above 0"),
        ({"kind": "giou", "inside_weights": (2, 2, 1, 1)}, "box_loss=giou compares boxes"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BoxLoss("rpn", **settings)
