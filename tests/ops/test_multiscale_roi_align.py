"""RoIAlign over a pyramid against torchvision, by hand, and by numerical gradients."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from detector.ops.multiscale_roi_align import assign_levels, multiscale_roi_align
from detector.ops.reference.multiscale_roi_align import pool_assigned

STRIDES = [4, 8, 16]
SCALES = [1 / 4, 1 / 8, 1 / 16]


def pyramid(images: int = 2, channels: int = 5, height: int = 64, width: int = 96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, height // s, width // s, generator=generator) for s in STRIDES
    ]


# (x1, y1, x2, y2) on a 96 x 64 image: ordinary, touching the border, over it, wholly outside,
# larger than the image, empty, tiny, inverted.
BOXES = torch.tensor(
    [
        [10.3, 7.7, 40.1, 33.9],
        [0, 0, 96, 64],
        [60, 30, 96, 64],
        [-9.5, -3.25, 20, 18],
        [80, 50, 130, 90],
        [200, 200, 260, 230],
        [-90, -80, -40, -50],
        [-50, -50, 200, 150],
        [0, 0, 0, 0],
        [33.3, 20, 33.3, 40],
        [50.01, 50.02, 50.03, 50.04],
        [40, 40, 30, 30],
    ]
)
IMAGES = torch.arange(len(BOXES)) % 2


def single_level(feature, stride, boxes, images, size, ratio, aligned):
    rois = torch.cat((images[:, None].to(boxes), boxes), 1)
    return torchvision.ops.roi_align(feature, rois, size, 1 / stride, ratio, aligned)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("output_size", "ratio"), [(7, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("level", [0, 2])
def test_one_level_equals_torchvision(aligned, output_size, ratio, level):
    feature, stride = pyramid()[level], STRIDES[level]
    ours, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()
    pooled = pool_assigned(
        [ours], BOXES, IMAGES, torch.zeros_like(IMAGES), [1 / stride], output_size, ratio, aligned
    )
    expected = single_level(theirs, stride, BOXES, IMAGES, output_size, ratio, aligned)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_all_levels_equal_a_loop_over_levels(aligned):
    levels = torch.arange(len(BOXES)) % 3
    ours = [x.clone().requires_grad_() for x in pyramid()]
    theirs = [x.clone().requires_grad_() for x in pyramid()]
    pooled = pool_assigned(ours, BOXES, IMAGES, levels, SCALES, 7, 2, aligned)
    expected = torch.zeros_like(pooled)
    for level, (feature, stride) in enumerate(zip(theirs, STRIDES, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        part = single_level(feature, stride, BOXES[rows], IMAGES[rows], 7, 2, aligned)
        expected = expected.index_copy(0, rows, part)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-4)


def test_pyramid_pooling_equals_torchvisions_module():
    """torchvision pools unaligned, and tells the scale of a level by the image's size."""
    boxes = torch.tensor([[3.0, 5, 30, 40], [1, 2, 90, 60], [20, 20, 29, 27], [0, 0, 96, 64]])
    module = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=32)
    features = pyramid()
    named = {str(level): feature for level, feature in enumerate(features)}
    expected = module(named, [boxes, boxes.flip(0)], [(64, 96)] * 2)
    assert len(assign_levels(boxes, 3, canonical_size=32.0).unique()) == 3
    options = {"aligned": False, "canonical_size": 32.0}
    pooled = multiscale_roi_align(features, [boxes, boxes.flip(0)], 7, STRIDES, **options)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    slots = torch.stack((boxes, boxes.flip(0)))
    in_slots = multiscale_roi_align(features, slots, 7, STRIDES, **options)
    assert torch.equal(in_slots.flatten(0, 1), pooled)
    image = torch.arange(2.0).repeat_interleave(4)[:, None]
    rows = torch.cat((image, slots.flatten(0, 1)), 1)
    assert torch.equal(multiscale_roi_align(features, rows, 7, STRIDES, **options), pooled)


def test_a_linear_ramp_is_read_at_the_cells_centres():
    """On f(x, y) = x + 10 y bilinear sampling is exact: a cell's mean is f at its centre."""
    stride, height, width = 4, 16, 24
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # Cell (i, j) has its centre at ((j + .5) * stride, (i + .5) * stride) of the input.
    ramp = ((x + 0.5) * stride + 10 * (y + 0.5) * stride)[None, None]
    box = torch.tensor([[13.0, 9, 55, 37]])
    pooled = multiscale_roi_align([ramp], [box], 7, [stride])
    center = (torch.arange(7) + 0.5) / 7
    expected = (13 + 42 * center)[None, :] + 10 * (9 + 28 * center)[:, None]
    torch.testing.assert_close(pooled[0, 0], expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_numerical_gradient(aligned):
    features = [x[:, :2, :6, :8].double().requires_grad_() for x in pyramid()[:2]]
    boxes = torch.tensor([[3.0, 2, 17, 21], [-4, 5, 30, 19], [1, 1, 3, 4]]).double()
    images, levels = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])

    def pool(fine, coarse):
        return pool_assigned([fine, coarse], boxes, images, levels, SCALES[:2], 3, 2, aligned)

    torch.autograd.gradcheck(pool, features)


def test_no_gradient_reaches_the_boxes():
    boxes = BOXES[:2].clone().requires_grad_()
    features = [pyramid()[0].requires_grad_()]
    pooled = multiscale_roi_align(features, [boxes, boxes], 2, [4])
    pooled.sum().backward()
    assert boxes.grad is None


def test_no_boxes_give_no_rows_and_zero_gradients():
    features = [x.requires_grad_() for x in pyramid()]
    pooled = multiscale_roi_align(features, torch.zeros(0, 5), 7, STRIDES)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all(feature.grad is not None and feature.grad.eq(0).all() for feature in features)


def test_memory_layout_does_not_matter():
    features = pyramid()
    levels = torch.arange(len(BOXES)) % 3
    plain = pool_assigned(features, BOXES, IMAGES, levels, SCALES, 7)
    nhwc = [x.to(memory_format=torch.channels_last) for x in features]
    pooled = pool_assigned(nhwc, BOXES, IMAGES, levels, SCALES, 7)
    assert torch.equal(plain, pooled)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_features_pool_with_their_own_precision():
    features = [x.bfloat16().requires_grad_() for x in pyramid()]
    levels = torch.arange(len(BOXES)) % 3
    pooled = pool_assigned(features, BOXES, IMAGES, levels, SCALES, 7)
    assert pooled.dtype == torch.bfloat16
    exact = pool_assigned([x.detach().float() for x in features], BOXES, IMAGES, levels, SCALES, 7)
    # 8 bits of mantissa: a weight, a product or a sum of values below 4 is off by 1/64 at most.
    torch.testing.assert_close(pooled.float(), exact, atol=1 / 64, rtol=0)
    pooled.float().sum().backward()
    assert all(feature.grad.isfinite().all() for feature in features)


def test_levels_by_hand():
    """FPN, eq. 1: 224 goes to P4, half of it to P3, and the ends clamp."""
    sizes = torch.tensor([0.0, 16, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack((sizes * 0, sizes * 0, sizes, sizes), 1)
    assert assign_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    # The area counts, not the longer side; and a pyramid may start elsewhere.
    assert assign_levels(torch.tensor([[0.0, 0, 448, 112]]), 4).tolist() == [2]
    assert assign_levels(boxes[5:6], 3, min_level=3).tolist() == [1]
    assert assign_levels(boxes[5:6] / 4, 4, canonical_size=56.0).tolist() == [2]


def test_levels_equal_torchvisions_mapper():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=generator) * 300
    boxes = torch.cat((corner, corner + torch.rand(500, 2, generator=generator) * 900 + 1), 1)
    mapper = torchvision.ops.poolers.initLevelMapper(2, 5)
    levels = assign_levels(boxes, 4)
    assert torch.equal(levels, mapper([boxes]))
    assert len(levels.unique()) == 4


def test_empty_slots_and_boxes_that_are_not_finite_give_zeros():
    boxes = torch.stack((BOXES[:4], BOXES[:4]))
    boxes[1, 2, 0] = torch.nan
    boxes[0, 3, 3] = torch.inf
    valid = torch.tensor([[True, False, True, True]] * 2)
    features = [x.requires_grad_() for x in pyramid()]
    pooled = multiscale_roi_align(features, boxes, 7, STRIDES, valid=valid)
    assert pooled.shape == (2, 4, 5, 7, 7)
    filled = torch.tensor([[True, False, True, False], [True, False, False, True]])
    assert torch.equal(pooled.flatten(2).any(2), filled)
    pooled.sum().backward()
    assert all(level.grad.isfinite().all() for level in features)
    assert multiscale_roi_align([x[:0] for x in features], boxes[:0], 7, STRIDES).numel() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [True, False])
def test_the_op_equals_the_composite(aligned, layout):
    """What a GPU runs is an op with a gradient of its own; on the CPU autograd finds it."""
    ours = [x.to(memory_format=layout).requires_grad_() for x in pyramid()]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    valid = torch.arange(len(BOXES)) != 1
    # The image's size as the canonical one spreads the boxes over all levels.
    rest = (SCALES, 7, 2, aligned, 2, 4, 40.0)
    pooled = torch.ops.detector.multiscale_roi_align(ours, BOXES, IMAGES, valid, *rest)
    levels = torch.where(valid, assign_levels(BOXES, 3, canonical_size=40.0), -1)
    assert levels.unique().tolist() == [-1, 0, 1, 2]
    expected = pool_assigned(theirs, BOXES, IMAGES, levels, SCALES, 7, 2, aligned)
    assert torch.equal(pooled, expected)
    assert pooled.is_contiguous(memory_format=layout)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [4, 8]}, "as many strides"),
        ({"strides": [3, 8, 16]}, "power of two"),
        ({"output_size": 0}, "output_size=0"),
        ({"sampling_ratio": 0}, "sampling_ratio=0"),
        ({"boxes": torch.zeros(3, 2, 4)}, r"must be \(2, R, 4\)"),
        ({"boxes": torch.zeros(2, 4)}, r"must be \(N, 5\)"),
        ({"boxes": torch.zeros(2, 3, 4), "valid": torch.ones(2, 2).bool()}, r"must be \(2, 3\)"),
        ({"valid": torch.ones(2, 2).bool()}, "needs boxes in slots"),
        ({"features": [x[: 1 + (i == 0)] for i, x in enumerate(pyramid())]}, "must agree"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {
        "features": pyramid(),
        "boxes": torch.zeros(2, 5),
        "output_size": 7,
        "strides": STRIDES,
    }
    with pytest.raises(ValueError, match=message):
        multiscale_roi_align(**given | change)


def test_compiles_as_one_graph():
    features = pyramid()
    boxes = torch.stack((BOXES, BOXES.flip(0)))

    def pool(features, boxes):
        return F.relu(multiscale_roi_align(features, boxes, 3, STRIDES))

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, boxes), pool(features, boxes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_a_gpu_without_kernels_computes_is_rounded_once(dtype):
    """As by the kernels; 16-bit weights alone would be off by more than that."""
    features = [level.to(dtype) for level in pyramid()]
    rest = (None, SCALES, 7, 2, True, 2, 4, 40.0)
    pooled = torch.ops.detector.multiscale_roi_align(features, BOXES, IMAGES, *rest)
    wide = [level.float() for level in features]
    expected = torch.ops.detector.multiscale_roi_align(wide, BOXES, IMAGES, *rest)
    torch.testing.assert_close(pooled, expected.to(dtype), atol=0, rtol=0)
