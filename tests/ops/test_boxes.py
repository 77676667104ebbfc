"""Box arithmetic against torchvision, published values and hand-computed numbers."""

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder

from detector.ops.boxes import (
    MAX_LOG_SCALE,
    box_area,
    box_intersection,
    box_iou,
    ciou,
    clip_boxes,
    complete_box_iou,
    decode_boxes,
    diou,
    distance_box_iou,
    encode_boxes,
    gather_boxes,
    generalized_box_iou,
    giou,
)

MEASURES = (giou, diou, ciou)


def random_boxes(*shape: int, extent: float = 100.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * extent
    size = torch.rand(*shape, 2, generator=generator) * extent * 0.6 + 2.0
    return torch.cat((corner, corner + size), -1)


def test_pairwise_iou_of_detectron2():
    """detectron2 tests/structures/test_boxes.py."""
    ones = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])
    others = torch.tensor(
        [
            [0, 0, 1, 1],
            [0, 0, 0.5, 1],
            [0, 0, 1, 0.5],
            [0, 0, 0.5, 0.5],
            [0.5, 0.5, 1, 1],
            [0.5, 0.5, 1.5, 1.5],
        ]
    )
    iou_row = torch.tensor([1, 0.5, 0.5, 0.25, 0.25, 0.14285714285714285])
    torch.testing.assert_close(box_iou(ones, others), iou_row.expand(2, -1))
    ioa_row = torch.tensor([1, 1, 1, 1, 1, 0.25])
    ioa = box_intersection(ones, others) / box_area(others)
    torch.testing.assert_close(ioa, ioa_row.expand(2, -1))


def test_iou_equals_torchvision_for_every_image_of_a_batch():
    ours = random_boxes(3, 20, seed=1), random_boxes(3, 7, seed=2)
    expected = torch.stack([torchvision.ops.box_iou(*pair) for pair in zip(*ours, strict=True)])
    torch.testing.assert_close(box_iou(*ours), expected)
    shared = box_iou(ours[0][0], ours[1])
    torch.testing.assert_close(shared[2], torchvision.ops.box_iou(ours[0][0], ours[1][2]))


def test_iou_of_empty_and_inverted_boxes_is_zero_and_finite():
    boxes = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [8, 8, 2, 2], [0, 0, 10, 10]])
    iou = box_iou(boxes, boxes)
    expected = torch.zeros(4, 4)
    expected[3, 3] = 1.0
    torch.testing.assert_close(iou, expected)
    assert box_area(boxes).tolist() == [0, 0, 0, 100]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coder_equals_torchvision(weights):
    coder = BoxCoder(weights)
    reference, boxes = random_boxes(50, seed=3), random_boxes(50, seed=4)
    deltas = encode_boxes(boxes, reference, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, reference))
    torch.testing.assert_close(
        decode_boxes(deltas * 1.7, reference, weights),
        coder.decode_single(deltas * 1.7, reference),
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_decoding_inverts_encoding(legacy):
    reference, boxes = random_boxes(2, 50, seed=5).double(), random_boxes(2, 50, seed=6).double()
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = encode_boxes(boxes, reference, weights, legacy)
    torch.testing.assert_close(decode_boxes(deltas, reference, weights, legacy), boxes)


def test_legacy_decoding_of_caffe2():
    """maskrcnn-benchmark tests/test_box_coder.py, from Caffe2's TestBboxTransformRandom."""
    boxes = torch.tensor(
        [
            [175.62031555, 20.91103172, 253.352005, 155.0145874],
            [169.24636841, 4.85241556, 228.8605957, 105.02092743],
            [181.77426147, 199.82876587, 192.88427734, 214.0255127],
            [174.36262512, 186.75761414, 296.19091797, 231.27906799],
            [22.73153877, 92.02596283, 135.5695343, 208.80291748],
        ]
    )
    deltas = torch.tensor(
        [
            [0.47861834, 0.13992102, 0.14961673, 0.71495209],
            [0.29915856, -0.35664671, 0.89018666, 0.70815367],
            [-0.03852064, 0.44466892, 0.49492538, 0.71409376],
            [0.28052918, 0.02184832, 0.65289006, 1.05060139],
            [-0.38172557, -0.08533806, -0.60335309, 0.79052375],
        ]
    )
    decoded = torch.tensor(
        [
            [206.949539, -30.715202, 297.387665, 244.448486],
            [143.871216, -83.342888, 290.502289, 121.053398],
            [177.430283, 198.666245, 196.295273, 228.703079],
            [152.251892, 145.431564, 387.215454, 274.594238],
            [5.06242, 11.040955, 66.328903, 269.686218],
        ]
    )
    # The published numbers hold to 1e-4.
    torch.testing.assert_close(decode_boxes(deltas, boxes, legacy=True), decoded, atol=1e-4, rtol=0)


def test_deltas_by_hand():
    """Centre (10, 20) and size (20, 40) to centre (14, 16) and size (40, 20)."""
    reference = torch.tensor([[0.0, 0, 20, 40]])
    boxes = torch.tensor([[-6.0, 6, 34, 26]])
    log2 = 0.6931471805599453
    torch.testing.assert_close(
        encode_boxes(boxes, reference, (10.0, 10.0, 5.0, 5.0)),
        torch.tensor([[10 * 4 / 20, 10 * -4 / 40, 5 * log2, -5 * log2]]),
    )


def test_encoding_empty_slots_gives_zeros():
    empty, box = torch.zeros(1, 4), torch.tensor([[1.0, 2, 3, 4]])
    for boxes, reference in ((empty, box), (box, empty), (empty, empty)):
        assert encode_boxes(boxes, reference).eq(0).all()
    sliver = torch.tensor([[1.0, 2, 1, 4]])
    assert encode_boxes(sliver, box).eq(0).all()


def test_decoding_bounds_the_growth():
    reference = torch.tensor([[0.0, 0, 16, 16]])
    boxes = decode_boxes(torch.tensor([[0.0, 0, 1e4, MAX_LOG_SCALE]]), reference)
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], torch.full((1, 2), 1000.0))


def test_clipping_uses_each_images_own_size():
    boxes = torch.tensor([[-5.0, -6, 300, 400]]).expand(2, 1, 4)
    sizes = torch.tensor([[100, 200], [30, 40]])
    expected = torch.tensor([[[0.0, 0, 200, 100]], [[0, 0, 40, 30]]])
    torch.testing.assert_close(clip_boxes(boxes, sizes), expected)


def test_box_operations_compile_as_one_graph():
    boxes, reference = random_boxes(2, 9, seed=7), random_boxes(2, 9, seed=8)
    sizes = torch.tensor([[50, 60], [70, 40]])

    def round_trip(boxes, reference, sizes):
        deltas = encode_boxes(boxes, reference, (10.0, 10.0, 5.0, 5.0))
        return clip_boxes(decode_boxes(deltas, reference), sizes), box_iou(boxes, reference)

    compiled = torch.compile(round_trip, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(boxes, reference, sizes), round_trip(boxes, reference, sizes)
    )


def random_pairs(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 boxes of which some overlap, some lie apart and some enclose each other."""
    pair = random_boxes(2, num, seed=seed).double()
    pair[1, ::4] = pair[0, ::4] + torch.tensor([0.8, 0.6, -0.7, -0.5])
    return pair[0], pair[1]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (generalized_box_iou, torchvision.ops.generalized_box_iou),
        (distance_box_iou, torchvision.ops.distance_box_iou),
        (complete_box_iou, torchvision.ops.complete_box_iou),
    ],
)
def test_overlaps_of_every_pair_equal_torchvision(ours, theirs):
    boxes, others = random_boxes(3, 20, seed=1).double(), random_boxes(3, 7, seed=2).double()
    expected = torch.stack([theirs(*pair) for pair in zip(boxes, others, strict=True)])
    # torchvision adds 1e-7 to its denominators.
    torch.testing.assert_close(ours(boxes, others), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(boxes[0], others)[2], ours(boxes[0], others[2]))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (giou, torchvision.ops.generalized_box_iou_loss),
        (diou, torchvision.ops.distance_box_iou_loss),
        (ciou, torchvision.ops.complete_box_iou_loss),
    ],
)
def test_losses_and_their_gradients_equal_torchvision(ours, theirs):
    boxes, target = random_pairs(40)
    ours_in, theirs_in = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    loss, expected = 1 - ours(ours_in, target), theirs(theirs_in, target)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("measure", [giou, diou])
def test_gradients_of_overlaps_are_those_of_their_values(measure):
    boxes, target = (x.requires_grad_() for x in random_pairs(12, seed=3))
    assert torch.autograd.gradcheck(measure, (boxes, target))


def test_gradient_of_ciou_holds_the_trade_off_constant():
    boxes, target = random_pairs(12, seed=3)

    def aspect(boxes: torch.Tensor) -> torch.Tensor:
        angle_a, angle_b = (
            torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1])) for x in (boxes, target)
        )
        return 4 / torch.pi**2 * (angle_b - angle_a) ** 2

    iou = box_iou(boxes, target).diagonal()
    alpha = aspect(boxes) / (1 - iou + aspect(boxes))  # Zheng et al. 2020, eq. 11
    torch.testing.assert_close(ciou(boxes, target), diou(boxes, target) - alpha * aspect(boxes))
    theirs, ours = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    (diou(theirs, target) - alpha * aspect(theirs)).sum().backward()
    ciou(ours, target).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_overlaps_by_hand():
    """A 2x2 box beside one of 2x1, 2 apart: hull 6x2 = 12, union 6, centres (4, .5) apart."""
    boxes, target = torch.tensor([0.0, 0, 2, 2]), torch.tensor([4.0, 0, 6, 1])
    torch.testing.assert_close(giou(boxes, target), torch.tensor(-(12 - 6) / 12))
    distance = (4**2 + 0.5**2) / (6**2 + 2**2)
    torch.testing.assert_close(diou(boxes, target), torch.tensor(-distance))
    v = 4 / torch.pi**2 * (torch.tensor(2.0).atan() - torch.tensor(1.0).atan()) ** 2
    torch.testing.assert_close(ciou(boxes, target), -distance - v / (1 + v) * v)


@pytest.mark.parametrize("measure", MEASURES)
def test_overlap_of_a_box_with_itself_is_one(measure):
    boxes = random_boxes(20)
    torch.testing.assert_close(measure(boxes, boxes), torch.ones(20))


@pytest.mark.parametrize("measure", MEASURES)
def test_overlaps_of_degenerate_boxes_are_finite(measure):
    boxes = torch.tensor(
        [
            [0.0, 0, 0, 0],
            [5, 5, 5, 9],
            [2, 3, 7, 3],
            [8, 8, 2, 2],
            [0, 0, 10, 10],
            [0, 0, 1e-30, 1e-25],
            [0, 0, 1e4, 1e-38],
            [-1e6, -1e6, 1e6, 1e6],
        ]
    )
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    first, second = (boxes[index].requires_grad_() for index in pairs)
    value = measure(first, second)
    assert value.isfinite().all()
    assert (value <= 1 + 1e-6).all()
    gradients = torch.autograd.grad(value.sum(), (first, second))
    # Slivers of 1e-30 pixels rightly have gradients beyond float32; the others do not.
    ordinary = ((pairs != 5) & (pairs != 6)).all(0)
    for gradient in gradients:
        assert gradient[ordinary].isfinite().all()
        assert not gradient.isnan().any()


def test_half_precision_boxes_have_their_overlap_in_float32():
    boxes = torch.tensor([[0.0, 0, 1024, 1024]])
    target = torch.tensor([[0.0, 0, 1024, 512]])
    for measure in MEASURES:  # areas of a million overflow float16
        torch.testing.assert_close(measure(boxes.half(), target.half()), measure(boxes, target))


def test_gathered_boxes_are_those_of_the_index():
    boxes, index = random_boxes(2, 9), torch.tensor([[8, 0, 0], [3, 3, 1]])
    expected = torch.stack([boxes[image][index[image]] for image in range(2)])
    assert gather_boxes(boxes, index).equal(expected)
    assert gather_boxes(boxes, index[:, :0]).shape == (2, 0, 4)


@pytest.mark.parametrize("measure", MEASURES)
def test_overlaps_compile_as_one_graph(measure):
    boxes, target = random_pairs(9)
    compiled = torch.compile(measure, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes, target), measure(boxes, target))
