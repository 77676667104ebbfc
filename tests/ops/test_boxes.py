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
    clip_boxes,
    decode_boxes,
    encode_boxes,
)


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
