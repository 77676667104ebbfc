"""Random ground truth and detections with everything that evaluators may treat differently."""

import numpy as np
from pycocotools import mask as coco_mask

from detector.evaluation.detection_table import join_images, pack_records

HEIGHT, WIDTH = 120, 160
NUM_KEYPOINTS = 5


def random_case(seed, num_images=10, num_classes=6, crowded_image=130):
    """``(truth, table)``: crowds, tied scores and IoUs, and an image with many detections.

    The last class has no object and the one before no detection; an image has neither.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, "height": HEIGHT, "width": WIDTH} for i in range(num_images)]
    category_ids = [2 * k + 1 for k in range(num_classes)]
    annotations, per_image = [], []
    for i, image in enumerate(images):
        objects = [] if i == 1 else [_box(rng) for _ in range(rng.integers(1, 12))]
        first = len(annotations)
        for box in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category_ids[rng.integers(num_classes - 1)],
                    "iscrowd": int(rng.random() < 0.15),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.5, 1)),
                    "segmentation": _text(_mask(rng, box)),
                    **_keypoints(rng, box),
                }
            )
        count = 0 if i == 1 else crowded_image if i == 2 else int(rng.integers(3, 40))
        found, labels = [], []
        for _ in range(count):
            chosen = int(rng.integers(len(objects)))
            is_near = rng.random() < 0.6
            near = objects[chosen] if is_near else _box(rng)
            # Some are exactly the object's box: IoUs and scores that are equal.
            box = near if rng.random() < 0.1 else _moved(rng, near)
            truth = annotations[first + chosen]
            label = category_ids.index(truth["category_id"])
            if i == 2 and rng.random() < 0.9:
                label = 0  # more than a hundred of one class
            elif not is_near or rng.random() < 0.1:
                label = int(rng.integers(num_classes))
            labels.append(num_classes - 1 if label == num_classes - 2 else label)
            keypoints = np.reshape(
                truth["keypoints"] if is_near else _keypoints(rng, box)["keypoints"], (-1, 3)
            )
            keypoints[:, :2] += rng.normal(0, 0.04, (NUM_KEYPOINTS, 2)) * box[2:]
            found.append(
                {
                    "bbox": box.tolist(),
                    "score": float(rng.integers(1, 14) / 20 + 0.3 * is_near),
                    "segmentation": _text(_mask(rng, box)),
                    "keypoints": keypoints.ravel().tolist(),
                }
            )
        per_image.append(pack_records(found, np.array(labels), (HEIGHT, WIDTH)))
    truth = {
        "images": images,
        "categories": [{"id": k, "name": f"class {k}"} for k in category_ids],
        "annotations": annotations,
    }
    return truth, join_images([image["id"] for image in images], category_ids, per_image)


def _box(rng):
    side = rng.choice([8, 20, 60, 110])
    width, height = side * rng.uniform(0.6, 1.1), side * rng.uniform(0.6, 1)
    x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
    return np.array([x, y, width, height]).round(2)


def _moved(rng, box):
    box = box + rng.normal(0, 0.05, 4) * box[[2, 3, 2, 3]]
    low = np.clip(box[:2], 0, [WIDTH - 2, HEIGHT - 2])
    size = np.clip(box[2:], 2, [WIDTH, HEIGHT] - low)
    return np.concatenate([low, size]).round(2)


def _mask(rng, box):
    """An ellipse in the box with a piece cut off now and then; sometimes nothing at all."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centre, radii = box[:2] + box[2:] / 2, box[2:] / 2
    mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    if rng.random() < 0.3:
        mask &= x < centre[0] + radii[0] * rng.uniform(-0.5, 1)
    return mask & (rng.random() > 0.02)


def _text(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _keypoints(rng, box):
    points = box[:2] + rng.random((NUM_KEYPOINTS, 2)) * box[2:]
    seen = rng.integers(0, 3, NUM_KEYPOINTS) * (rng.random() > 0.2)
    rows = np.concatenate([points.round(2), seen[:, None]], axis=1)
    return {"keypoints": rows.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
