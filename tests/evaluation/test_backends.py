"""The C++ evaluator against pycocotools, and boundary AP against its formula."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from detector.evaluation import backends
from detector.evaluation.backends import accumulate, as_coco, check_backend, quiet
from tests.evaluation.random_truth import NUM_KEYPOINTS, random_case

SIGMAS = [0.02, 0.05, 0.08, 0.1, 0.12][:NUM_KEYPOINTS]
CASES = {seed: random_case(seed) for seed in range(3)}


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("kind", ["box", "mask", "keypoint"])
@pytest.mark.parametrize("limits", [(1, 10, 100), (1, 10, 200)])
def test_both_backends_give_the_same_numbers(kind, seed, limits):
    truth, table = CASES[seed]
    limits = (20,) if kind == "keypoint" else limits
    theirs = accumulate("pycocotools", kind, truth, table, limits, SIGMAS)
    ours = accumulate("faster_coco_eval", kind, truth, table, limits, SIGMAS)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape and (other > -1).any() and (other == -1).any()
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)
    assert 0.02 < theirs[0][theirs[0] > -1].mean() < 0.9, "neither everything nor nothing is right"


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_classes_in_parts_are_as_all_at_once(kind, backend, monkeypatch):
    truth, table = CASES[0]
    whole = accumulate(backend, kind, truth, table, (1, 10, 100))
    monkeypatch.setattr(backends, "DETECTIONS_AT_ONCE", 1)
    parts = accumulate(backend, kind, truth, table, (1, 10, 100))
    for together, alone in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(together, alone)


def test_pycocotools_is_called_as_its_own_demonstration_does():
    """Without our way of handing it classes in parts: the file's records, all at once."""
    truth, table = CASES[1]
    records = [
        {
            key: value
            for key, value in record.items()
            if key in ("image_id", "category_id", "bbox", "score")
        }
        for record in table
    ]
    with quiet():
        coco = as_coco(**truth)
        evaluation = COCOeval(coco, coco.loadRes(records), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    for backend in backends.BACKENDS:
        precision, _ = accumulate(backend, "box", truth, table, (1, 10, 100))
        np.testing.assert_allclose(precision, evaluation.eval["precision"], rtol=0, atol=1e-12)


def test_pairs_of_images_and_classes_may_be_asked_for_that_have_nothing(monkeypatch):
    from detector.evaluation.fast_backend import _WithOverlaps

    prepare = _WithOverlaps._prepare

    def forget(self):
        prepare(self)
        self._nonempty_iou_pairs = None  # an optimisation of theirs

    expected = accumulate("faster_coco_eval", "mask", *CASES[0], (1, 10, 100))
    monkeypatch.setattr(_WithOverlaps, "_prepare", forget)
    found = accumulate("faster_coco_eval", "mask", *CASES[0], (1, 10, 100))
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_no_detections_at_all():
    truth, table = CASES[0]
    nothing = table.select(np.zeros(len(table), bool))
    for kind in ("box", "mask"):
        ours = accumulate("faster_coco_eval", kind, truth, nothing, (1, 10, 100))
        theirs = accumulate("pycocotools", kind, truth, nothing, (1, 10, 100))
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
        assert ours[0].max() == 0 and ours[0].min() == -1


# Boundary AP.


def inner_boundary(mask, distance):
    """Pixels of the mask within ``distance`` steps (a square's neighbourhood) of its outside."""
    padded = np.pad(mask, distance)
    eroded = np.ones_like(mask)
    for dy in range(2 * distance + 1):
        for dx in range(2 * distance + 1):
            eroded &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return mask & ~eroded


def test_boundary_ap_is_by_the_smaller_of_both_ious():
    """Cheng et al., Boundary IoU, 2021, sections 4 and 5.1: dilation .02 of the diagonal."""
    truth, table = random_case(9, num_images=4, num_classes=4, crowded_image=25)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    table = table.select(np.array([coco_mask.area(r["segmentation"]) > 0 for r in table]))
    distance = round(0.02 * np.hypot(120, 160))
    limits = (1, 10, 100)
    precision, recall = accumulate("faster_coco_eval", "boundary", truth, table, limits)

    class Reference(COCOeval):
        def computeIoU(self, image_id, category_id):
            found = self._dts[image_id, category_id]
            found = sorted(found, key=lambda d: -d["score"])[: limits[-1]]
            gts = self._gts[image_id, category_id]
            ious = np.zeros((len(found), len(gts)))
            for i, j in np.ndindex(ious.shape):
                masks = [
                    coco_mask.decode(side["segmentation"]).astype(bool)
                    for side in (found[i], gts[j])
                ]
                pairs = masks, [inner_boundary(mask, distance) for mask in masks]
                both = [(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs]
                ious[i, j] = min(both)
            return ious if ious.size else []

    records = [{k: v for k, v in record.items() if k != "bbox"} for record in table]
    with quiet():
        coco = as_coco(**truth)
        reference = Reference(coco, coco.loadRes(records), "segm")
        reference.evaluate()
        reference.accumulate()
    np.testing.assert_allclose(precision, reference.eval["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, reference.eval["recall"], rtol=0, atol=1e-12)
    plain, _ = accumulate("faster_coco_eval", "mask", truth, table, limits)
    assert 0.05 < precision[precision > -1].mean() < 0.8 * plain[plain > -1].mean()


@pytest.mark.parametrize("name, remedy", [("coco", "pycocotools"), (None, "faster_coco_eval")])
def test_an_unknown_backend_is_refused(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        check_backend(name)


def test_a_missing_package_is_said_and_nothing_else_chosen(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match="pip install"):
        check_backend("faster_coco_eval")
    check_backend("pycocotools")
