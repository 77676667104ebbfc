"""Best overlaps against all anchors laid out, compared one by one by torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detector.data.dataset import DetectionDataset
from detector.data.doctor.anchor_fit import AnchorTable, best_ious, check_anchors, fit_anchors
from detector.rpn.anchors import AnchorGenerator

HEIGHT, WIDTH = 96, 160


def table_of(generator, **changes):
    values = {
        "base": np.stack([getattr(generator, f"base{k}").numpy() for k in range(2)]).astype(float),
        "strides": generator.strides,
        "offset": generator.offset,
        "sizes": [[16], [48]],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "positive_iou": 0.7,
        "negative_iou": 0.3,
        "border": None,
    }
    return AnchorTable(**values | changes)


def random_boxes(count):
    rng = np.random.default_rng(0)
    corners = rng.uniform((0, 0, 0, 0), (WIDTH, HEIGHT, WIDTH, HEIGHT), (count, 4))
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]),
                            np.maximum(corners[:, :2], corners[:, 2:])], 1)  # fmt: skip
    return boxes[(boxes[:, 2:] - boxes[:, :2] > 3).all(1)]


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("border", [None, 0, 4])
def test_the_nearest_cell_is_the_best(offset, legacy, border):
    generator = AnchorGenerator(
        [[16], [48]], strides=(8, 16), offset=0.0 if legacy else offset, legacy=legacy
    )
    maps = [torch.zeros(1, 1, HEIGHT // s, WIDTH // s) for s in generator.strides]
    boxes = random_boxes(200)
    expected = []
    for anchors in generator(maps):
        inside = torch.ones(len(anchors), dtype=torch.bool)
        if border is not None:
            low, high = anchors[:, :2], anchors[:, 2:] - torch.tensor([WIDTH, HEIGHT])
            inside = (low >= -border).all(1) & (high <= border).all(1)
        iou = box_iou(torch.from_numpy(boxes), anchors.double()) * inside
        expected.append(iou.reshape(len(boxes), -1, 3).amax(1))
    sizes = np.tile([HEIGHT, WIDTH], (len(boxes), 1))
    found = best_ious(boxes, sizes, table_of(generator, border=border))
    np.testing.assert_allclose(found, torch.cat(expected, 1).numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return DetectionDataset(shapes_root / "annotations/instances_train.json", shapes_root / "train")


def fitted(dataset, sizes):
    generator = AnchorGenerator(sizes, strides=(8, 16))
    table = table_of(generator, sizes=sizes)
    return fit_anchors(dataset, table), table


def test_anchors_of_the_objects_sizes_reach_them(shapes):
    fit, table = fitted(shapes, [[24], [56]])
    assert len(fit.best) == (~shapes.index.crowd).sum()
    assert fit.grid_counts.sum() == len(fit.best)
    assert sum(row[3] for row in fit.anchors) == len(fit.best)
    kinds = {
        finding.kind for finding in check_anchors("train", fit, table, shapes.index.category_names)
    }
    assert "object_out_of_reach" not in kinds


def test_what_is_out_of_reach_comes_with_sizes_that_reach_it(shapes):
    fit, table = fitted(shapes, [[200], [400]])
    findings = check_anchors("train", fit, table, shapes.index.category_names)
    reach, unused = findings
    assert reach.level == "warning" and unused.kind == "anchor_never_matches"
    assert len(unused.records) >= 3
    share = float((fit.best < 0.3).mean())
    assert reach.title.startswith(f"{share:.1%} of the objects")
    assert sum(int(record.what.split()[0]) for record in reach.records) == (fit.best < 0.3).sum()
    word = next(w for w in reach.remedy.split() if w.startswith("model.rpn.anchors.sizes="))
    sizes = [[float(n) for n in level.split(",")]
             for level in word.partition("=")[2].strip("[]").split("],[")]  # fmt: skip
    better, _ = fitted(shapes, sizes)
    assert (better.best < 0.3).mean() < 0.7 * share


def test_augmentation_decides_how_large_objects_are(shapes_root):
    from detector.data.transforms import ResizeShortestEdge

    file = shapes_root / "annotations/instances_train.json"
    larger = DetectionDataset(file, shapes_root / "train", [ResizeShortestEdge(256, 256)])
    plain, _ = fitted(DetectionDataset(file, shapes_root / "train"), [[16], [40]])
    fit, _ = fitted(larger, [[16], [40]])
    np.testing.assert_allclose(fit.boxes, 2 * plain.boxes, atol=0.01)


def test_mixed_images_are_looked_at_too(shapes_root):
    """Copy-Paste adds objects of other images, of which no pixel is read."""
    from detector.data.copy_paste import SimpleCopyPaste

    file = shapes_root / "annotations/instances_train.json"
    mixed = DetectionDataset(file, shapes_root / "train", [SimpleCopyPaste()])
    mixed.read = None
    plain, _ = fitted(DetectionDataset(file, shapes_root / "train"), [[16], [40]])
    fit, _ = fitted(mixed, [[16], [40]])
    assert len(fit.best) > len(plain.best)
