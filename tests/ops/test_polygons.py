"""Mask targets against a brute-force winding number in float64 and against pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detector.ops import polygons as polygons_module
from detector.ops.polygons import rasterize_polygons
from detector.ops.reference.polygons import rasterize_polygons as reference_rasterize_polygons
from detector.structures import Polygons
from tests.ops.cases_masks import SHAPES, Ring, circle, edges_of, pack, random_scene


def winding_numbers(rings: list[Ring], box: tuple, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Winding number of every cell centre as a sum of signed angles, and its distance to the
    nearest edge in cells: independent of any rule for crossings."""
    x1, y1, x2, y2 = (float(value) for value in box)
    center = (np.arange(size) + 0.5) / size
    points = np.stack(np.meshgrid(center, center), -1).reshape(-1, 2) * size
    angle, distance = np.zeros(len(points)), np.full(len(points), np.inf)
    scale = np.array([size / (x2 - x1), size / (y2 - y1)])
    for edge in edges_of(rings):
        # The vertices as the float32 tensors have them.
        edge = np.float32(edge).astype(np.float64).reshape(2, 2)
        a, b = ((vertex - (x1, y1)) * scale - points for vertex in edge)
        cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        angle += np.arctan2(cross, (a * b).sum(1))
        length = ((b - a) ** 2).sum(1)
        along = np.clip(-(a * (b - a)).sum(1) / np.where(length > 0, length, 1), 0, 1)
        distance = np.minimum(distance, np.hypot(*(a + along[:, None] * (b - a)).T))
    winding = np.rint(angle / (2 * np.pi)).astype(int)
    return winding.reshape(size, size), distance.reshape(size, size)


def rasterize(rings: list[Ring], box: tuple, size: int = 28) -> np.ndarray:
    masks = rasterize_polygons(
        pack([[rings]]),
        torch.tensor([box]).float(),
        torch.zeros(1).long(),
        torch.zeros(1).long(),
        size,
    )
    assert masks.shape == (1, size, size)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    return masks[0].numpy() > 0


BOXES = [(0, 0, 50, 50), (10.3, 7.9, 37.7, 41.2), (-20.5, -10.1, 61.3, 80.9), (20, 20, 21.7, 20.9)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_winding_numbers(name, box):
    mask = rasterize(SHAPES[name], box)
    winding, distance = winding_numbers(SHAPES[name], box, 28)
    # Cells whose centre lies on an edge, to float32's precision of vertices far away, are open.
    clear = distance > 1e-3
    assert clear.mean() > 0.95
    assert (mask == (winding != 0))[clear].all()


def test_chunks_of_edges_add_up(monkeypatch):
    whole = rasterize(SHAPES["hole"], BOXES[1])
    monkeypatch.setattr(polygons_module, "CHUNK", 5)
    assert (rasterize(SHAPES["hole"], BOXES[1]) == whole).all()


def test_random_polygons_equal_winding_numbers():
    generator = np.random.default_rng(0)
    for _ in range(60):
        ring = [
            tuple(point) for point in generator.uniform(-20, 70, (generator.integers(3, 40), 2))
        ]
        corner = generator.uniform(-10, 40, 2).astype(np.float32)
        box = (*corner, *(corner + generator.uniform(0.5, 60, 2).astype(np.float32)))
        mask = rasterize([ring], box, 14)
        winding, distance = winding_numbers([ring], box, 14)
        clear = distance > 1e-3
        assert (mask == (winding != 0))[clear].all()


def test_vertices_and_horizontal_edges_exactly_on_row_centres():
    """On a 10 x 10 grid over 10 x 10 pixels row centres are at .5; each crossing counts once."""
    box = (0, 0, 10, 10)
    diamond = [[(5.0, 0.5), (9.0, 4.5), (5.0, 8.5), (1.0, 4.5)]]
    mask = rasterize(diamond, box, 10)
    winding, distance = winding_numbers(diamond, box, 10)
    clear = distance > 1e-6
    assert (mask == (winding != 0))[clear].all()
    # A rectangle whose sides pass through centres: left and top centres are in, right and bottom
    # out, so that neighbours which share a side share no cell.
    left, right = (
        [[(1.5, 1.5), (4.5, 1.5), (4.5, 6.5), (1.5, 6.5)]],
        [[(4.5, 1.5), (8.5, 1.5), (8.5, 6.5), (4.5, 6.5)]],
    )
    expected = np.zeros((10, 10), bool)
    expected[1:6, 1:4] = True
    assert (rasterize(left, box, 10) == expected).all()
    expected[:] = False
    expected[1:6, 4:8] = True
    assert (rasterize(right, box, 10) == expected).all()


def test_pixel_edges_give_back_pixels():
    """Rings along pixel edges, rasterised at pixel centres, are the mask they were traced from."""
    expected = np.zeros((12, 12), bool)
    expected[2:9, 3:10] = True
    expected[4:6, 5:8] = False
    outer = [(3, 2), (10, 2), (10, 9), (3, 9)]
    hole = [(5, 4), (5, 6), (8, 6), (8, 4)]
    assert (rasterize([outer, hole], (0, 0, 12, 12), 12) == expected).all()
    assert (rasterize([outer, hole], (3, 2, 10, 9), 7) == expected[2:9, 3:10]).all()


@pytest.mark.parametrize(
    "name", ["triangle", "two parts", "overlapping parts unite", "300 vertices"]
)
def test_equals_pycocotools_but_for_the_outline(name):
    """pycocotools traces the outline on a grid five times finer: cells on it may differ."""
    rings = SHAPES[name]
    encoded = coco_mask.frPyObjects([np.ravel(ring).tolist() for ring in rings], 50, 50)
    expected = coco_mask.decode(coco_mask.merge(encoded)).astype(bool)
    mask = rasterize(rings, (0, 0, 50, 50), 50)
    _, distance = winding_numbers(rings, (0, 0, 50, 50), 50)
    assert (mask == expected)[distance > 0.75].all()
    assert (mask & expected).sum() / (mask | expected).sum() > 0.93


def test_each_roi_reads_its_own_image_and_gt():
    square, disc = [[(2, 2), (30, 2), (30, 30), (2, 30)]], [circle(30, 20, 15.3, 20)]
    polygons = pack([[square, disc], [disc], [], [SHAPES["hole"], square, disc]], gt_slots=4)
    box = (0, 0, 48, 40)
    picks = [(3, 2), (0, 0), (1, 0), (0, 1), (3, 0), (3, 1), (2, 0), (1, 3)]
    image_index, gt_index = torch.tensor(picks).T
    boxes = torch.tensor([box] * len(picks)).float()
    masks = rasterize_polygons(polygons, boxes, image_index, gt_index, 28)
    alone = [disc, square, disc, disc, SHAPES["hole"], square, [], []]
    for mask, rings in zip(masks, alone, strict=True):
        assert (mask.numpy() == rasterize(rings, box)).all()


def test_scaling_and_shifting_everything_changes_nothing():
    # Sixteenths of pixels, a power of two and whole numbers: all exact in float32.
    rings = [[(round(x * 16) / 16, round(y * 16) / 16) for x, y in ring] for ring in SHAPES["hole"]]
    moved = [[(4 * x + 128, 4 * y + 64) for x, y in ring] for ring in rings]
    mask = rasterize(rings, (5, 8, 45, 40), 32)
    assert mask.any()
    assert (rasterize(moved, (148, 96, 308, 224), 32) == mask).all()


def test_empty_boxes_give_zeros():
    rings = SHAPES["covers everything"]
    for box in [(0, 0, 0, 0), (5, 5, 5, 20), (20, 20, 10, 10)]:
        assert not rasterize(rings, box).any()


def test_nan_and_infinite_boxes_give_zeros():
    rings = SHAPES["covers everything"]
    for place in range(4):
        for value in (float("nan"), float("inf"), float("-inf")):
            box = [5.0, 6.0, 40.0, 45.0]
            box[place] = value
            assert not rasterize(rings, box).any()


@pytest.mark.parametrize("size", [1e-6, 1e-20, 1e-38, 1e-42])
def test_boxes_of_almost_no_size_do_not_fail(size):
    """Slivers come from an untrained RPN; they are background, but on a GPU they are computed."""
    for corner in (0.0, 20.0):
        box = (corner, corner, corner + size, corner + size)
        for rings in SHAPES.values():
            rasterize(rings, box)
        rasterize([[(0.0, 0.0), (30.0, 0.0), (0.0, 30.0)]], box)


@pytest.mark.parametrize("size", [1, 7, 28])
def test_same_bits_as_counting_crossings(size):
    polygons, boxes, image_index, gt_index = random_scene(seed=size)
    expected = reference_rasterize_polygons(
        polygons.edges, polygons.offsets, boxes, image_index, gt_index, size
    )
    assert 0.05 < expected.mean() < 0.95
    masks = rasterize_polygons(polygons, boxes, image_index, gt_index, size)
    assert torch.equal(masks, expected)


def test_no_rois_no_edges_no_gts():
    nothing = torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long()
    assert rasterize_polygons(pack([[SHAPES["hole"]]]), *nothing, 14).shape == (0, 14, 14)
    without_gts = Polygons(torch.zeros(2, 0, 4), torch.zeros(2, 1).long(), max_edges=0)
    assert rasterize_polygons(without_gts, *nothing, 14).shape == (0, 14, 14)
    without_edges = Polygons(torch.zeros(1, 0, 4), torch.zeros(1, 2).long(), max_edges=0)
    box, index = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(1).long()
    assert not rasterize_polygons(without_edges, box, index, index, 14).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": torch.zeros(2, 5)}, "boxes must be"),
        ({"boxes": torch.zeros(2, 4).double()}, "boxes must be"),
        ({"image_index": torch.zeros(3).long()}, "image_index must be"),
        ({"gt_index": torch.zeros(2).int()}, "gt_index must be"),
        ({"mask_size": 0}, "mask_size must be"),
        ({"image_index": torch.tensor([0, 1])}, r"image_index must be in 0\.\.0, not 1"),
        ({"gt_index": torch.tensor([-1, 0])}, r"gt_index must be in 0\.\.0, not -1"),
    ],
)
def test_what_cannot_be_rasterised_is_refused(change, message):
    index = torch.zeros(2).long()
    arguments = {"boxes": torch.zeros(2, 4), "image_index": index, "gt_index": index}
    arguments = {**arguments, "mask_size": 28, **change}
    with pytest.raises(ValueError, match=message):
        rasterize_polygons(pack([[SHAPES["hole"]]]), **arguments)


def test_targets_have_no_gradient():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]], requires_grad=True)
    index = torch.zeros(1).long()
    targets = rasterize_polygons(pack([[SHAPES["hole"]]]), boxes, index, index, 14)
    assert not targets.requires_grad


def test_compiles_as_one_graph():
    polygons = pack([[SHAPES["hole"], SHAPES["two parts"]]])
    boxes = torch.tensor(BOXES).float()
    index = torch.zeros(4).long(), torch.tensor([0, 1, 0, 1])
    compiled = torch.compile(rasterize_polygons, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(polygons, boxes, *index, 28), rasterize_polygons(polygons, boxes, *index, 28)
    )
