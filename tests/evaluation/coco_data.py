"""Small datasets in COCO format, detections on them, and their evaluation."""

import json

import numpy as np
import torch
from PIL import Image

from detector.data.coco import read_coco
from detector.evaluation.coco import CocoEvaluator
from detector.structures import Batch, Detections


def write_dataset(folder, sizes, annotations, categories=((1, "cat"), (2, "dog"))):
    """Blank images of ``sizes`` (h, w), numbered from 1, and their annotations."""
    images = []
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"{number}.png"
        Image.new("RGB", (width, height)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    content = {
        "images": images,
        "categories": [{"id": identifier, "name": name} for identifier, name in categories],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return read_coco(folder / "instances.json", folder)


def square(identifier, x, y, side, category=1, image=1, **extra):
    """An annotation whose mask is its box."""
    ring = [x, y, x + side, y, x + side, y + side, x, y + side]
    annotation = {"id": identifier, "image_id": image, "category_id": category, "iscrowd": 0}
    box = {"bbox": [x, y, side, side], "area": side * side, "segmentation": [ring]}
    return {**annotation, **box, **extra}


def batch_of(index, positions, input_sizes=None):
    """A batch whose images were resized to ``input_sizes``, by default not at all."""
    original = torch.tensor([[index.heights[i], index.widths[i]] for i in positions])
    sizes = original.clone() if input_sizes is None else torch.tensor(input_sizes)
    return Batch(
        images=torch.zeros(len(positions), 3, *sizes.amax(0).tolist(), dtype=torch.uint8),
        image_sizes=sizes.long(),
        original_sizes=original.long(),
        image_ids=torch.tensor([int(index.image_ids[i]) for i in positions]),
    )


def detections_of(per_image, slots=None, side=28, with_masks=True):
    """Slots from lists of ``(box, label, score, mask)``; a mask of ``None`` fills its box."""
    slots = slots or max(1, max(len(found) for found in per_image))
    shape = (len(per_image), slots)
    boxes, masks = torch.zeros(*shape, 4), torch.zeros(*shape, side, side)
    scores, labels = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    valid = torch.zeros(shape, dtype=torch.bool)
    for b, found in enumerate(per_image):
        for d, (box, label, score, mask) in enumerate(found):
            boxes[b, d] = torch.as_tensor(np.asarray(box), dtype=torch.float32)
            labels[b, d], scores[b, d], valid[b, d] = label, score, True
            masks[b, d] = 1.0 if mask is None else torch.as_tensor(mask)
    return Detections(boxes, scores, labels, valid, masks if with_masks else None)


def evaluate(index, per_image, **options):
    evaluator = CocoEvaluator(index, **options)
    for i, found in enumerate(per_image):
        evaluator.update(batch_of(index, [i]), detections_of([found]))
    return evaluator.summarize()
