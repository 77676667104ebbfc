"""What a whole detector is measured on: weights, images and objects that nobody has to download.

Random weights as they are initialised propose nothing in particular and detect nothing, so that
most of a detector would stand idle. Here they are scaled so that every stage has the work that it
has in a trained detector: activations neither die nor explode, the RPN's scores and deltas have the
spread of a trained one's, five times as many pairs of proposal and class pass the score threshold
as there are to be detections, so that all slots are filled after suppression. Objects are put where
the model proposes some, so that there is foreground to sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, box_iou

from detector.data.collate import Collate
from detector.data.sample import Sample
from detector.engine.assembly import build
from detector.interop import detectron2, torchvision
from detector.interop.recipes import Recipe, compose_config
from detector.structures import Batch

NETWORKS = ("mask_rcnn_r50_fpn", "faster_rcnn_r50_fpn")
PEERS = ("torchvision", "detectron2")

# Objects of an image; COCO has 7.3 on average.
NUM_OBJECTS = 8
# Vertices of an outline; COCO's annotators clicked some 25 around an object.
NUM_VERTICES = 24
# Standard deviations of outputs.
SPREAD = {
    "rpn.head.objectness": 2.0,
    "rpn.head.deltas": 0.2,
    "box_branch.predictor.scores": 2.0,
    "box_branch.predictor.deltas": 0.5,
    "mask_branch.head.logits": 2.0,
}
SCORES = "box_branch.predictor.scores"


@dataclass(frozen=True)
class Counts:
    """How much of an image goes on to the second stage, on both sides alike.

    Attributes:
        samples: R, RoIs to train on.
        proposals: P at inference.
        detections: D.
    """

    samples: int = 512
    proposals: int = 1000
    detections: int = 100

    @property
    def overrides(self) -> tuple[str, ...]:
        """Settings of ours."""
        return (
            f"model.roi_sampler.num_samples={self.samples}",
            f"model.rpn.test_proposals.post_nms_top_n={self.proposals}",
            f"model.box_branch.detections.max_detections={self.detections}",
        )


@dataclass(frozen=True)
class Workload:
    """A model and what it is given.

    Attributes:
        network: one of :data:`NETWORKS`.
        peer: whose variant of it, one of :data:`PEERS`.
        overrides: of ``configs/train.yaml`` that build our model.
        num_classes: K.
        counts: on both sides.
        state: our model's weights.
        batches: with targets, on the CPU.
    """

    network: str
    peer: str
    overrides: tuple[str, ...]
    num_classes: int
    counts: Counts
    state: dict[str, Tensor]
    batches: list[Batch]

    def recipe(self) -> Recipe:
        """Of our model."""
        names = tuple(f"class {number}" for number in range(self.num_classes))
        return Recipe(self.network, self.overrides, names, tuple(range(self.num_classes)))

    def our_model(self) -> nn.Module:
        """Ours, with the weights."""
        model = build(compose_config(self.recipe()).model)
        model.load_state_dict(self.state)
        return model


COUNTS = Counts()


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        return False
    if not all(isinstance(number, int) and number > 0 for number in shape):
        return False
    return shape[1] % 32 == 0 and shape[2] % 32 == 0


def make_workload(
    network: str,
    peer: str,
    shapes: Sequence[Sequence[int]],
    counts: Counts = COUNTS,
    seed: int = 0,
) -> Workload:
    """Weights, images and objects as the head of this file says.

    Args:
        network: one of :data:`NETWORKS`.
        peer: one of :data:`PEERS`: anchors, pooling and the trunk's strides are as there.
        shapes: ``(images, height, width)`` of each batch; sides are multiples of 32.
        counts: of what the second stage gets.
        seed: of everything.

    Raises:
        ValueError: an unknown network or peer, or a shape that is none.
    """
    if network not in NETWORKS:
        raise ValueError(f"network={network}: {' or '.join(NETWORKS)} can be compared")
    if not isinstance(shapes, list | tuple) or not all(map(_is_shape, shapes)):
        raise ValueError(
            f"shapes={shapes}: give [images, height, width] of each batch, such as "
            "shapes=[[2,480,640]], sides in multiples of 32"
        )
    recipe = _recipe(network, peer).with_overrides(counts.overrides)
    torch.manual_seed(seed)
    model = build(compose_config(recipe).model)
    generator = np.random.default_rng(seed)
    images = [
        np.stack([_image(height, width, generator) for _ in range(count)])
        for count, height, width in shapes
    ]
    pixels = torch.from_numpy(images[0][:2]).permute(0, 3, 1, 2)
    fit_weights(model, pixels, 5 * counts.detections)
    batches = [_batch(model, some, recipe.num_classes, generator) for some in images]
    return Workload(
        network, peer, recipe.overrides, recipe.num_classes, counts, model.state_dict(), batches
    )


def _recipe(network: str, peer: str) -> Recipe:
    """The peer's variant of a network."""
    kind = network.partition("_r50")[0]
    known, name = {
        "torchvision": (torchvision, f"torchvision {kind.replace('_', '')}_resnet50_fpn"),
        "detectron2": (detectron2, f"Detectron2 {kind}_fpn resnet50"),
    }[peer]
    return next(recipe for recipe in known.known_recipes() if recipe.name == name)


@torch.no_grad()
def fit_weights(model: nn.Module, images: Tensor, num_candidates: int) -> None:
    """Fits statistics of frozen batch norms, and scales and biases of outputs, to ``images``.

    Args:
        model: of :data:`NETWORKS`, on the CPU.
        images: ``(B, 3, H, W)`` uint8.
        num_candidates: pairs of proposal and class of an image that shall pass the threshold.
    """
    names = {module: name for name, module in model.named_modules() if name in SPREAD}
    open_layers = dict(names)
    threshold = model.box_branch.detections.score_threshold

    def fit_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pixels = inputs[0].movedim(1, 0).flatten(1)
        norm.running_mean.copy_(pixels.mean(1))
        norm.running_var.copy_(pixels.var(1) + 1e-6)

    def fit_output(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        name = open_layers.pop(layer, None)
        if name is None:
            return None  # of a coarser level, or of fitted scores
        shape = (1, -1, *(1,) * (output.dim() - 2))
        raw = output - layer.bias.view(shape)
        factor = SPREAD[name] / raw.std()
        layer.weight.mul_(factor)
        layer.bias.copy_(-factor * raw.transpose(0, 1).flatten(1).mean(1))
        fitted = factor * raw + layer.bias.view(shape)
        if name == SCORES:
            bias = _background(fitted, threshold, num_candidates * len(images))
            layer.bias[-1] += bias
            fitted[:, -1] += bias
        return fitted

    hooks = [layer.register_forward_hook(fit_output) for layer in names]
    hooks += [
        module.register_forward_pre_hook(fit_norm)
        for module in model.modules()
        if isinstance(module, FrozenBatchNorm2d)
    ]
    sizes = torch.tensor([images.shape[2:]] * len(images))
    model.eval().detect(images, sizes)
    for hook in hooks:
        hook.remove()
    assert not open_layers


def _background(logits: Tensor, threshold: float, count: int) -> float:
    """What background, the last column, needs more so that ``count`` scores pass ``threshold``."""
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[:, -1] += middle
        passing = (shifted.softmax(1)[:, :-1] > threshold).sum()
        low, high = (middle, high) if passing > count else (low, middle)
    return low


def _image(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """``(height, width, 3)`` uint8: patches of all sizes, as in a photograph."""
    image = torch.full((1, 3, height, width), 110.0)
    for side in (256, 64, 16, 4):
        size = (max(height // side, 2), max(width // side, 2))
        coarse = torch.from_numpy(generator.standard_normal((1, 3, *size), np.float32))
        image += 30 * F.interpolate(coarse, (height, width), mode="bicubic")
    return image[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


@torch.no_grad()
def _batch(
    model: nn.Module, images: np.ndarray, num_classes: int, generator: np.random.Generator
) -> Batch:
    samples = []
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        proposals = model.propose(pixels, torch.tensor([[height, width]]))
        boxes = _apart(proposals.boxes[0][proposals.valid[0]], generator)
        outlines = [_outline(box, generator) for box in boxes]
        samples.append(
            Sample(
                image=image,
                boxes=boxes,
                labels=generator.integers(0, num_classes, len(boxes)),
                ring_offsets=np.arange(len(boxes) + 1),
                vertex_offsets=np.arange(len(boxes) + 1) * NUM_VERTICES,
                vertices=np.concatenate(outlines),
                image_id=number,
                original_size=(height, width),
                seed=number,
            )
        )
    return Collate()(samples)


def _apart(boxes: Tensor, generator: np.random.Generator) -> np.ndarray:
    """Some of the proposals, as far apart as objects are, ``(n, 4)``."""
    size = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    boxes = boxes[size >= min(16.0, size.max().item())]
    chosen: list[int] = []
    overlap = box_iou(boxes, boxes)
    for candidate in generator.permutation(len(boxes)).tolist():
        if len(chosen) < NUM_OBJECTS and not (overlap[candidate, chosen] > 0.3).any():
            chosen.append(candidate)
    return boxes[chosen].numpy()


def _outline(box: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``(NUM_VERTICES, 2)`` float32 around a blob that fills the box."""
    angles = np.linspace(0, 2 * np.pi, NUM_VERTICES, endpoint=False)
    radius = generator.uniform(0.7, 1.0, (NUM_VERTICES, 1))
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radius
    low, high = ring.min(0), ring.max(0)
    return (box[:2] + (ring - low) / (high - low) * (box[2:] - box[:2])).astype(np.float32)
