"""Detectron2's models with weights that follow from their names, scenes that follow from numbers,
and what our models of these weights give.

Everything is exactly the same on any machine, so that what Detectron2 gave once can be compared
with what our code gives today; ``compare_detectron2.py`` ran both.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from detector.engine.assembly import build
from detector.interop import detectron2
from detector.interop.files import StateFile
from detector.interop.recipes import Recipe, compose_config
from detector.structures import Polygons, Targets

KEYPOINTS = 17


@dataclass(frozen=True)
class Case:
    """A model of the zoo and the numbers by which it was made small.

    Attributes:
        config: file below ``configs`` there, without its ending.
        proposals: P.
        detections: D.
        samples: R.
        scales: how much larger than by default some outputs are, by parts of their names, so that
            there are confident detections of several classes.
    """

    config: str
    proposals: int = 40
    detections: int = 15
    samples: int = 48
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.rpartition("/")[2]

    @property
    def ours(self) -> list[str]:
        """Overrides of our configuration."""
        return [
            *("model.rpn.train_proposals.pre_nms_top_n=200",),
            *("model.rpn.test_proposals.pre_nms_top_n=200",),
            f"model.rpn.train_proposals.post_nms_top_n={self.proposals}",
            f"model.rpn.test_proposals.post_nms_top_n={self.proposals}",
            f"model.roi_sampler.num_samples={self.samples}",
            f"model.box_branch.detections.max_detections={self.detections}",
        ]

    @property
    def theirs(self) -> list:
        """The same of Detectron2's."""
        numbers = {
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": self.proposals,
            "MODEL.RPN.POST_NMS_TOPK_TEST": self.proposals,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": self.samples,
            "TEST.DETECTIONS_PER_IMAGE": self.detections,
        }
        return [item for pair in numbers.items() for item in pair]


CASES = {
    case.name: case
    for case in (
        Case("COCO-Detection/faster_rcnn_R_50_FPN_1x"),
        Case("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"),
        Case("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", proposals=12, samples=16),
        Case("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x"),
        # Boxes that move less, or none would be foreground in the last stage.
        Case("Misc/cascade_mask_rcnn_R_50_FPN_1x", scales={"bbox_pred.weight": 0.3}),
        # Logits closer to each other, or the scores of the one class would all round to 1.
        Case("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", scales={"cls_score.weight": 0.05}),
    )
}


# Standard deviations of outputs whose inputs have about 1.
SPREAD = {
    "stem.conv1.weight": 0.02,  # pixels
    "shortcut.weight": 0.7,
    **{f"fpn_{kind}{level}.weight": 0.8 for kind in ("lateral", "output") for level in range(2, 6)},
    "objectness_logits.weight": 1.0,
    "anchor_deltas.weight": 0.2,
    "cls_score.weight": 1.5,
    "bbox_pred.weight": 0.6,
    "mask_head.predictor.weight": 1.5,
    "score_lowres.weight": 1.5,
}


def make_weights(shapes: dict[str, tuple[int, ...]], case: Case) -> dict[str, np.ndarray]:
    """Float32 arrays as of a trained network, by Detectron2's names.

    They are drawn from uniform distributions by a generator that the name seeds.
    """
    return {name: _draw(name, shape, case.scales) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], scales: dict[str, float]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = generator.random(shape, np.float32)

    def between(low: float, high: float) -> np.ndarray:
        return (np.float32(low) + values * np.float32(high - low)).astype(np.float32)

    if name.endswith("running_var"):
        return between(0.6, 1.5)
    if name.endswith("running_mean"):
        return between(-0.3, 0.3)
    if name.endswith("norm.weight"):
        # What a block adds is smaller than what it gets, or the sums would grow.
        return between(0.7, 1.3) * np.float32(0.3 if ".conv3." in name else 1.0)
    if name.endswith("cls_score.bias"):
        bias = between(-1.0, 1.0)
        if len(bias) > 2:  # a single class wins anyway, and its scores shall not all round to 1
            bias[: min(3, len(bias) - 1)] += np.float32(5.0)
        return bias
    if name.endswith("bias"):
        return between(-0.2, 0.2)
    fan_in = np.prod(shape[1:]) if "deconv" not in name else shape[0]
    spread = next((value for end, value in SPREAD.items() if name.endswith(end)), 1.4)
    spread *= next((value for part, value in scales.items() if part in name), 1.0)
    half = spread * np.sqrt(3.0 / fan_in)  # a uniform distribution's deviation is half / sqrt(3)
    return between(-half, half)


@dataclass(frozen=True)
class Scene:
    """Images of RGB and what is on them.

    Attributes:
        images: N arrays ``(height, width, 3)`` uint8.
        boxes: N arrays ``(n, 4)`` float32, around the outlines.
        outlines: N lists of n arrays ``(v, 2)`` float32.
        labels: N arrays ``(n,)`` int64.
        keypoints: N arrays ``(n, J, 3)`` float32.
    """

    images: list[np.ndarray]
    boxes: list[np.ndarray]
    outlines: list[list[np.ndarray]]
    labels: list[np.ndarray]
    keypoints: list[np.ndarray]


def make_scene(sizes: list[tuple[int, int]], num_classes: int, seed: int = 0) -> Scene:
    """Coloured polygons on noise, in images of ``sizes`` ``(height, width)``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    images, boxes, outlines, labels, keypoints = [], [], [], [], []
    for height, width in sizes:
        rows, columns = np.mgrid[:height, :width]
        image = generator.integers(0, 60, (height, width, 3)) + (rows + columns)[..., None] % 120
        polygons = []
        for _ in range(4):
            half = generator.uniform(0.12, 0.3, 2) * (width, height)
            center = generator.uniform(half, np.array((width, height)) - half)
            corners = np.array([(1, 0), (0.7, 0.8), (-0.2, 1), (-1, 0.1), (-0.6, -0.9), (0.4, -1)])
            polygons.append((center + half * corners).astype(np.float32))
            inside = _inside(polygons[-1], columns + 0.5, rows + 0.5)
            image[inside] = generator.integers(60, 256, 3)
        images.append(image.astype(np.uint8))
        outlines.append(polygons)
        boxes.append(np.stack([np.concatenate((p.min(0), p.max(0))) for p in polygons]))
        labels.append(generator.integers(0, num_classes, len(polygons)))
        keypoints.append(make_keypoints(boxes[-1], generator))
    return Scene(images, boxes, outlines, labels, keypoints)


def make_keypoints(boxes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``(n, J, 3)``: points in their boxes, some hidden and some not labelled."""
    place = generator.random((len(boxes), KEYPOINTS, 2))
    points = boxes[:, None, :2] + place * (boxes[:, None, 2:] - boxes[:, None, :2])
    visibility = generator.integers(0, 3, (len(boxes), KEYPOINTS, 1))
    points = np.where(visibility > 0, points, 0.0)
    return np.concatenate((points, visibility), 2).astype(np.float32)


def _inside(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in a convex or star-shaped polygon, by crossings to their right."""
    crossings = np.zeros(x.shape, int)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        spans = (y1 <= y) != (y2 <= y)
        crossings += spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1 + (y1 == y2)))
    return crossings % 2 == 1


def make_batch(scene: Scene) -> tuple[Tensor, Tensor]:
    """Padded images ``(B, 3, H, W)`` uint8 and their sizes ``(B, 2)``."""
    sizes = torch.tensor([image.shape[:2] for image in scene.images])
    height, width = (-(-sizes.amax(0) // 32) * 32).tolist()
    images = torch.zeros(len(scene.images), 3, height, width, dtype=torch.uint8)
    for padded, image in zip(images, scene.images, strict=True):
        padded[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).movedim(2, 0)
    return images, sizes


def make_targets(scene: Scene) -> Targets:
    """The scene's objects in as many slots as its fullest image has."""
    slots = max(map(len, scene.boxes))
    boxes, labels = torch.zeros(len(scene.boxes), slots, 4), torch.zeros(len(scene.boxes), slots)
    keypoints = torch.zeros(len(scene.boxes), slots, KEYPOINTS, 3)
    edges, offsets, longest = [], [], 1
    for image, own in enumerate(scene.boxes):
        boxes[image, : len(own)] = torch.from_numpy(own)
        labels[image, : len(own)] = torch.from_numpy(scene.labels[image])
        keypoints[image, : len(own)] = torch.from_numpy(scene.keypoints[image])
        lengths = [len(outline) for outline in scene.outlines[image]]
        lengths += [0] * (slots - len(lengths))
        longest = max(longest, *lengths)
        offsets.append(np.concatenate(([0], np.cumsum(lengths))))
        edges.append(
            np.concatenate([np.hstack((p, np.roll(p, -1, 0))) for p in scene.outlines[image]])
        )
    padded = np.zeros((len(edges), max(map(len, edges)), 4), np.float32)
    for row, own in zip(padded, edges, strict=True):
        row[: len(own)] = own
    polygons = Polygons(torch.from_numpy(padded), torch.from_numpy(np.stack(offsets)), longest)
    counts = torch.tensor([len(own) for own in scene.boxes])
    valid = torch.arange(slots) < counts[:, None]
    return Targets(boxes, labels.long(), valid, polygons, keypoints)


def build_ours(
    weights: dict[str, np.ndarray], case: Case, overrides: list[str]
) -> tuple[nn.Module, Recipe]:
    """Our model of Detectron2's weights, recognised from their names."""
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    state = StateFile(tensors, "pickle", {}, f"{case.name}.pkl")
    recipe = detectron2.recognise(state).with_overrides(overrides)
    model = build(compose_config(recipe).model)
    model.load_state_dict(detectron2.to_ours(state, recipe))
    return model.eval(), recipe


@torch.no_grad()
def our_outputs(model: nn.Module, scene: Scene) -> dict[str, np.ndarray]:
    """Every stage's outputs at inference; what is of several levels or images has numbers."""
    images, sizes = make_batch(scene)
    features = model.backbone(model.normalizer(images, sizes))
    logits, deltas = model.rpn.head(features)
    result = {}
    for level, (feature, own_logits, own_deltas) in enumerate(
        zip(features, logits, deltas, strict=True)
    ):
        result[f"feature{level}"] = feature.numpy()
        result[f"logits{level}"] = own_logits.numpy()
        result[f"deltas{level}"] = own_deltas.numpy()
    proposals = model.propose(images, sizes)
    detections = model.detect(images, sizes)
    for image in range(len(images)):
        valid = proposals.valid[image]
        result[f"proposals{image}"] = proposals.boxes[image, valid].numpy()
        result[f"objectness{image}"] = proposals.scores[image, valid].numpy()
        valid = detections.valid[image]
        for name in ("boxes", "scores", "labels", "masks", "keypoints"):
            value = getattr(detections, name)
            if value is not None:
                result[f"{name}{image}"] = value[image, valid].numpy()
    return result


def first_samples():
    """Candidates are sampled in their order instead of at random, here and in Detectron2.

    The keys by which ours are drawn fall from one candidate to the next; theirs are permuted by
    the identity.
    """

    def falling(shape, device=None):
        return torch.linspace(1.0, 0.1, shape[-1], dtype=torch.float64).expand(shape)

    def identity(count, device=None):
        return torch.arange(count)

    return mock.patch.multiple(torch, rand=falling, randperm=identity)


def our_training(model: nn.Module, scene: Scene) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses of one step with :func:`first_samples`, and the gradient of each parameter.

    In float64, but for boxes: where a sum of float32 rounds to the other side of a ReLU's zero, a
    gradient differs visibly. The model is of no use afterwards.
    """
    images, sizes = make_batch(scene)
    model.double().train()
    model.rpn.anchors.float()
    with first_samples():
        losses = model(images, sizes, make_targets(scene))
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


# Of the two images at inference and in training; the padding of the former differs.
VAL_SIZES, TRAIN_SIZES = [(96, 128), (128, 96)], [(96, 128), (96, 128)]
