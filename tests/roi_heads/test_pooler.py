"""The pooler's choice of level and of features: every op against the one it stands for."""

import hydra
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from detector.ops import (
    crop_and_resize,
    multiscale_roi_align,
    roi_align,
    roi_pool,
    roi_warp,
    spatial_pyramid_pool,
)
from detector.roi_heads.box import TwoFCHead
from detector.roi_heads.pooler import RoIPooler, check_bins, check_grid, pool_slots
from detector.roi_heads.roi_ops import CropAndResize, RoIAlign, RoIPool, RoIWarp, SpatialPyramid
from detector.roi_heads.vgg import VGGHead

STRIDES = (4, 8, 16, 32)
# With a canonical size of 56 one of each level, then one of no extent and one beyond the image.
BOXES = torch.tensor(
    [
        [1.0, 2, 14, 12],
        [3, 5, 40, 45],
        [10, 10, 80, 70],
        [0, 0, 128, 128],
        [30, 30, 30, 30],
        [-20, 90, 60, 170],
    ]
)
LEVELS = (0, 1, 2, 3, 0, 2)
IMAGES = torch.tensor([0, 1, 0, 1, 1, 0])


def make_features(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 4, 96 // s, 128 // s, generator=generator, dtype=dtype)
        for s in (*STRIDES, 64)
    ]


def rows(boxes: Tensor, images: Tensor) -> Tensor:
    return torch.cat((images[:, None].to(boxes), boxes), 1)


def crop_and_pool(feature: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Pixels over stride are cells; 1 is the centre of the last one."""
    height, width = feature.shape[2:]
    extent = torch.tensor([1, (width - 1), (height - 1), (width - 1), (height - 1)])
    scaled = torch.cat((rois[:, :1], rois[:, 1:] * scale), 1) / extent
    return F.max_pool2d(crop_and_resize(feature, scaled, 2 * size), 2)


OPS = {
    "align": (RoIAlign(), lambda f, r, n, s: roi_align(f, r, n, s, 2, True)),
    "align 3": (RoIAlign(3, False), lambda f, r, n, s: roi_align(f, r, n, s, 3, False)),
    "align max": (
        RoIAlign(2, mode="max"),
        lambda f, r, n, s: roi_align(f, r, n, s, 2, True, "max"),
    ),
    "adaptive": (RoIAlign(0), lambda f, r, n, s: roi_align(f, r, n, s, 0, True)),
    "adaptive max": (
        RoIAlign(0, False, "max"),
        lambda f, r, n, s: roi_align(f, r, n, s, 0, False, "max"),
    ),
    "pool": (RoIPool(), lambda f, r, n, s: roi_pool(f, r, n, s)),
    "pool avg": (RoIPool("avg"), lambda f, r, n, s: roi_pool(f, r, n, s, "avg")),
    "warp": (RoIWarp(), lambda f, r, n, s: roi_warp(f, r, n, s)),
    "warp avg": (RoIWarp("avg"), lambda f, r, n, s: roi_warp(f, r, n, s, "avg")),
    "crop": (CropAndResize(), crop_and_pool),
    "pyramid": (
        SpatialPyramid((1, 3)),
        lambda f, r, n, s: spatial_pyramid_pool(f, r, (1, 3), s),
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_on_one_level_it_is_the_op(name):
    op, expected = OPS[name]
    features = make_features()[2:3]
    pooler = RoIPooler(7, (16,), op)
    pooled = pooler(features, BOXES, IMAGES)
    torch.testing.assert_close(
        pooled, expected(features[0], rows(BOXES, IMAGES), 7, 1 / 16), atol=1e-5, rtol=1e-5
    )
    assert pooled[0].numel() == 4 * pooler.num_bins
    assert pooler.gives_grid == (pooled.dim() == 4)


@pytest.mark.parametrize("name", OPS)
def test_on_a_pyramid_each_box_has_the_op_on_its_level_and_the_gradient_goes_there(name):
    """In float64, and the last level is left to the RPN."""
    op, expected = OPS[name]
    results = []
    for whole in (True, False):
        features = [feature.requires_grad_() for feature in make_features(torch.float64)]
        if whole:
            pooled = RoIPooler(5, STRIDES, op, canonical_size=56.0)(features, BOXES, IMAGES)
        else:
            boxes = rows(BOXES.double(), IMAGES)
            pooled = torch.cat(
                [
                    expected(features[level], boxes[row : row + 1], 5, 1 / STRIDES[level])
                    for row, level in enumerate(LEVELS)
                ]
            )
        weight = torch.arange(pooled.numel(), dtype=torch.float64).view_as(pooled).cos()
        gradients = torch.autograd.grad((pooled * weight).sum(), features[:4])
        results.append((pooled, gradients))
    assert all(gradient.abs().max() > 0 for gradient in results[0][1])
    torch.testing.assert_close(*results)


def test_the_mean_of_fixed_samples_is_the_op_for_all_levels_at_once():
    features = make_features()
    pooled = RoIPooler(7, STRIDES, canonical_size=56.0)(features, BOXES, IMAGES)
    expected = multiscale_roi_align(
        features[:4], rows(BOXES, IMAGES), 7, STRIDES, 2, True, canonical_size=56.0
    )
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("name", OPS)
def test_a_row_of_no_image_gives_zeros(name):
    features = [feature.requires_grad_() for feature in make_features()]
    for pooler in (RoIPooler(3, (16,), OPS[name][0]), RoIPooler(3, STRIDES, OPS[name][0])):
        maps = features[2:3] if len(pooler.strides) == 1 else features
        pooled = pooler(maps, BOXES, torch.full_like(IMAGES, -1))
        assert pooled.eq(0).all()
        gradients = torch.autograd.grad(pooled.sum(), maps[0])
        assert gradients[0].eq(0).all()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [2, 0])
def test_aligning_equals_torchvision(ratio, aligned):
    features, boxes, images = make_features(), BOXES[:4], IMAGES[:4]
    pooled = RoIPooler(7, STRIDES, RoIAlign(ratio, aligned), canonical_size=56.0)(
        features, boxes, images
    )
    for row, (level, stride) in enumerate(zip((0, 1, 2, 3), STRIDES, strict=True)):
        roi = rows(boxes[row : row + 1], images[row : row + 1])
        expected = torchvision.ops.roi_align(features[level], roi, 7, 1 / stride, ratio, aligned)
        torch.testing.assert_close(pooled[row : row + 1], expected, atol=1e-5, rtol=1e-4)


def test_pooling_equals_torchvision_on_one_level():
    features = make_features()[2:3]
    expected = torchvision.ops.roi_pool(features[0], rows(BOXES, IMAGES), 7, 1 / 16)
    assert torch.equal(RoIPooler(7, (16,), RoIPool())(features, BOXES, IMAGES), expected)


def test_cropping_reads_pixels_over_stride():
    """On a ramp the value is the place. The crop from cell 1 to cell 4 has 4 points, 1, 2, 3, 4, of
    which each cell keeps the larger; a point beyond the last centre, cell 7, is 0."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    boxes = torch.tensor([[16.0, 16, 64, 64], [88, 0, 136, 0]])
    pooled = RoIPooler(2, (16,), CropAndResize())([ramp], boxes, torch.zeros(2).long())
    # The second goes from 5.5 over 6.5 to 7.5 and 8.5.
    expected = torch.tensor([[[2.0, 4], [2, 4]], [[6.5, 0], [6.5, 0]]])
    torch.testing.assert_close(pooled[:, 0], expected)


def test_a_map_of_one_cell_is_read_wherever_the_box_lies():
    ones = torch.ones(1, 1, 1, 1)
    pooled = RoIPooler(2, (16,), CropAndResize())(
        [ones], torch.tensor([[2.0, 2, 9, 9]]), torch.zeros(1).long()
    )
    assert pooled.eq(1).all()


def test_features_are_shared_by_their_slots():
    """Also where empty slots between them were not computed."""
    features = make_features()[2:3]
    boxes = torch.stack((BOXES[:3], BOXES[3:]))
    rows = torch.tensor([0, 2, 4])
    pooler = RoIPooler(3, (16,))
    pooled = pool_slots(pooler, features, boxes, rows)
    assert pooled.features.shape == (3, 4, 3, 3)
    images, slots = torch.tensor([1, 0, 0]), torch.tensor([1, 2, 0])
    expected = pooler(features, boxes[images, slots], images)
    torch.testing.assert_close(pooled.take(images, slots), expected)


def test_a_pyramid_may_start_elsewhere():
    """Over P3 and P4 a box of P2 is read from P3, the finest there is."""
    features = [torch.full((1, 1, 16, 16), 3.0), torch.full((1, 1, 8, 8), 4.0)]
    boxes = torch.tensor([[40.0, 40, 60, 60], [30, 30, 72, 72], [20, 20, 104, 104]])
    for op in (RoIAlign(), RoIPool()):
        pooled = RoIPooler(2, (8, 16), op, canonical_size=80.0)(
            features, boxes, torch.zeros(3).long()
        )
        assert [row.unique().tolist() for row in pooled] == [[3], [3], [4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoIAlign(-1), "roi_op.sampling_ratio=-1 must be 1 to 4096, or 0"),
        (lambda: RoIAlign(mode="median"), "roi_op.mode='median' is not known; use one of max, avg"),
        (lambda: RoIPool("mean"), "roi_op.mode='mean'"),
        (lambda: RoIWarp("mean"), "roi_op.mode='mean'"),
        (lambda: SpatialPyramid(()), r"roi_op.levels=\[\]"),
        (lambda: SpatialPyramid((1, 0)), r"roi_op.levels=\[1, 0\]"),
        (lambda: RoIPooler(0), "pooler.output_size=0"),
        (lambda: RoIPooler(7, (12,)), r"pooler.strides=\[12\]"),
        (lambda: RoIPooler(7, ()), r"pooler.strides=\[\]"),
        (
            lambda: check_grid("mask_branch.pooler", RoIPooler(op=SpatialPyramid())),
            "mask_branch.pooler.op=SpatialPyramid gives vectors",
        ),
        (
            lambda: check_bins("box_branch", RoIPooler(op=SpatialPyramid()), TwoFCHead(2, 7, 4)),
            "makes 49 bins of each channel, but box_branch.pooler gives 50",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [TwoFCHead, VGGHead])
def test_a_head_takes_the_bins_of_a_pyramid(kind):
    pooler = RoIPooler(op=SpatialPyramid((1, 2, 3, 6)), strides=(16,))
    head = kind(4, (1, 2, 3, 6), 8)
    check_bins("box_branch", pooler, head)
    assert head.num_bins == 50
    with pytest.raises(ValueError, match="gives 50"):
        check_bins("box_branch", pooler, kind(4, 7, 8))
    assert head(pooler(make_features()[2:3], BOXES, IMAGES)).shape == (6, 8)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("roi_align", RoIAlign()),
        ("roi_align_max", RoIAlign(mode="max")),
        ("roi_align_adaptive", RoIAlign(0)),
        ("roi_pool", RoIPool()),
        ("roi_pool_avg", RoIPool("avg")),
        ("roi_warp", RoIWarp()),
        ("roi_warp_avg", RoIWarp("avg")),
        ("crop_and_resize", CropAndResize()),
        ("spatial_pyramid", SpatialPyramid([1, 2, 3, 6])),
    ],
)
def test_the_config_group_names_them(compose_config, name, op):
    config = compose_config("+model=faster_rcnn_fpn", "+backbone=resnet18_fpn", f"roi_op={name}")
    assert hydra.utils.instantiate(config.model.box_branch.pooler.op, _convert_="all") == op
    head = config.model.box_branch.head
    assert head.pooled_size == ([1, 2, 3, 6] if name == "spatial_pyramid" else 7)
