"""Runs Detectron2's models and ours on the same weights, images and samples, and compares.

It runs where ``detectron2`` can be imported; its folder is enough, nothing has to be built:

    pip install "setuptools<80" fvcore iopath yacs
    PYTHONPATH=FOLDER_OF_DETECTRON2:. python -m tests.interop.compare_detectron2 --data DIR

``DIR`` is a folder in COCO's layout with instances_val2017.json. ``--write`` also writes the tables
and numbers that the tests in this folder compare with, from small scenes and smaller models.

Compared are, at inference, the backbone's levels, the RPN's outputs, proposals and detections with
their masks or keypoints, and in training the losses and the gradient of every parameter; the mask
targets of both are ours, and how far Detectron2's own are from them is said.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import ClassVar
from unittest import mock

import cv2
import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.ops import boxes

from detector.interop.caffe2_names import detectron2_tensors
from detector.interop.detectron2_names import Layout
from detector.ops.polygons import rasterize_polygons
from detector.structures import Polygons
from tests.interop.detectron2_cases import (
    CASES,
    TRAIN_SIZES,
    VAL_SIZES,
    Case,
    Scene,
    build_ours,
    first_samples,
    make_keypoints,
    make_scene,
    make_targets,
    make_weights,
    our_outputs,
    our_training,
)
from tests.interop.detectron2_expected import (
    HERE,
    TABLES,
    TOLERANCES,
    caffe2_blobs,
    compare,
    gradient_errors,
    largest_difference,
    summarise,
    summarise_gradients,
)

LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box",
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box",
    "loss_mask": "loss_mask",
    "loss_keypoint": "loss_keypoint",
}


class OurMasks:
    """Masks of one image that Detectron2 crops and gets what we rasterise."""

    differing: ClassVar[list[float]] = []

    def __init__(self, polygons: Polygons, image: int, theirs: PolygonMasks, index: Tensor) -> None:
        self.polygons, self.image, self.theirs, self.index = polygons, image, theirs, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: Tensor) -> OurMasks:
        return OurMasks(self.polygons, self.image, self.theirs, self.index[item])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        image = torch.full_like(self.index, self.image)
        ours = rasterize_polygons(self.polygons, boxes, image, self.index, mask_size) > 0.5
        theirs = self.theirs[self.index].crop_and_resize(boxes, mask_size)
        OurMasks.differing += (ours != theirs).float().mean((1, 2)).tolist()
        return ours


def read_config(case: Case, small: bool):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(f"{case.config}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *(case.theirs * small)])
    return cfg


def make_inputs(scene: Scene, with_targets: bool = False) -> list[dict]:
    """What a model there takes: images of BGR, and instances."""
    targets = make_targets(scene)
    inputs = []
    for number, image in enumerate(scene.images):
        height, width = image.shape[:2]
        bgr = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
        one = {"image": bgr, "height": height, "width": width}
        if with_targets:
            objects = Instances((height, width))
            objects.gt_boxes = Boxes(torch.from_numpy(scene.boxes[number]))
            objects.gt_classes = torch.from_numpy(scene.labels[number])
            outlines = PolygonMasks([[p.flatten()] for p in scene.outlines[number]])
            every = torch.arange(len(scene.boxes[number]))
            objects.gt_masks = OurMasks(targets.polygons, number, outlines, every)
            objects.gt_keypoints = Keypoints(torch.from_numpy(scene.keypoints[number]))
            one["instances"] = objects
        inputs.append(one)
    return inputs


@torch.no_grad()
def their_outputs(model: nn.Module, scene: Scene) -> dict[str, np.ndarray]:
    """As :func:`tests.interop.detectron2_cases.our_outputs`."""
    inputs = make_inputs(scene)
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    rpn = model.proposal_generator
    maps = [features[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(maps)
    result = {}
    for level, (feature, own_logits, own_deltas) in enumerate(
        zip(maps, logits, deltas, strict=True)
    ):
        result[f"feature{level}"] = feature.numpy()
        result[f"logits{level}"] = own_logits.permute(0, 2, 3, 1).flatten(1).numpy()
        flat = own_deltas.permute(0, 2, 3, 1).flatten(1)
        result[f"deltas{level}"] = flat.unflatten(1, (-1, 4)).numpy()
    proposals, _ = rpn(images, features, None)
    found = model.inference(inputs, do_postprocess=False)
    for number, (proposed, own) in enumerate(zip(proposals, found, strict=True)):
        result[f"proposals{number}"] = proposed.proposal_boxes.tensor.numpy()
        result[f"objectness{number}"] = proposed.objectness_logits.numpy()
        result[f"boxes{number}"] = own.pred_boxes.tensor.numpy()
        result[f"scores{number}"] = own.scores.numpy()
        result[f"labels{number}"] = own.pred_classes.numpy()
        if own.has("pred_masks"):
            result[f"masks{number}"] = own.pred_masks[:, 0].numpy()
        if own.has("pred_keypoints"):
            result[f"keypoints{number}"] = own.pred_keypoints.numpy()
    return result


def their_training(model: nn.Module, scene: Scene) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients by our names, in float64 as ours."""
    model.double().train()
    batched_nms = boxes.batched_nms

    def same_types(candidates: Tensor, scores: Tensor, *settings) -> Tensor:
        return batched_nms(candidates, scores.float(), *settings)

    with first_samples(), EventStorage(), mock.patch.object(boxes, "batched_nms", same_types):
        losses = model(make_inputs(scene, with_targets=True))
    sum(losses.values()).backward()
    named = {}
    for name, loss in losses.items():
        base, _, stage = name.partition("_stage")
        named[LOSSES[base] + (f"_stage{int(stage) + 1}" if stage else "")] = loss.item()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    layout = Layout.of_theirs(model.state_dict(), bgr=True)
    return named, layout.table.to_ours(gradients)


def real_scene(folder: Path, sizes: list[tuple[int, int]], num_classes: int) -> Scene:
    """Photographs resized to ``sizes``, with the outlines of their objects."""
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    categories = sorted(category["id"] for category in content["categories"])
    generator = np.random.Generator(np.random.PCG64(0))
    scene = Scene([], [], [], [], [])
    for image in content["images"]:
        objects = [
            a
            for a in content["annotations"]
            if a["image_id"] == image["id"]
            and isinstance(a["segmentation"], list)
            and len(a["segmentation"]) == 1
            and min(a["bbox"][2:]) > 20
        ]
        if len(objects) < 2 or len(scene.images) == len(sizes):
            continue
        height, width = sizes[len(scene.images)]
        pixels = cv2.imread(str(folder / "val2017" / image["file_name"]))
        scale = np.array((width / pixels.shape[1], height / pixels.shape[0]))
        outlines = [
            (np.reshape(a["segmentation"][0], (-1, 2)) * scale).astype(np.float32) for a in objects
        ]
        extents = np.stack([np.concatenate((p.min(0), p.max(0))) for p in outlines])
        labels = [categories.index(a["category_id"]) % num_classes for a in objects]
        pixels = cv2.resize(pixels, (width, height))[:, :, ::-1]
        scene.images.append(np.ascontiguousarray(pixels))
        scene.boxes.append(extents)
        scene.outlines.append(outlines)
        scene.labels.append(np.array(labels))
        scene.keypoints.append(make_keypoints(extents, generator))
    return scene


def check_inference(
    case: Case, scene: Scene, small: bool
) -> tuple[list[str], dict[str, np.ndarray]]:
    """What differs too much at inference, and what Detectron2 gave."""
    theirs, ours = make_pair(case, small)
    expected = their_outputs(theirs, scene)
    found = our_outputs(ours, scene)
    counts = [len(expected[f"labels{number}"]) for number in range(len(scene.images))]
    kinds = {}
    for name, value in expected.items():
        if found[name].shape == value.shape:
            kind = name.rstrip("0123456789")
            error = largest_difference(kind, found[name], value)
            kinds[kind] = max(kinds.get(kind, 0.0), error)
    print(f"{case.name}: {counts} detections; largest differences")
    print("  " + ", ".join(f"{kind} {error:.1e}" for kind, error in kinds.items()), flush=True)
    return compare(found, expected), expected


def check_training(case: Case, scene: Scene) -> tuple[list[str], dict[str, np.ndarray]]:
    """What differs too much in training, and Detectron2's losses and gradients."""
    theirs, ours = make_pair(case, small=True)
    OurMasks.differing = []
    their_losses, their_gradients = their_training(theirs, scene)
    losses, gradients = our_training(ours, scene)
    problems = []
    if losses.keys() != their_losses.keys() or gradients.keys() != their_gradients.keys():
        both = (losses.keys() ^ their_losses.keys()) | (gradients.keys() ^ their_gradients.keys())
        return [f"only on one side: {sorted(both)[:5]}"], {}
    for name, loss in their_losses.items():
        error = abs(losses[name] - loss) / max(abs(loss), 1e-6)
        print(f"  {name:28} {loss:.6f} relative difference {error:.1e}")
        if not error <= TOLERANCES["losses"]:
            problems.append(f"{name}: {losses[name]} here, {loss} there")
    errors = gradient_errors(
        {name: (gradients[name] - own).norm().item() for name, own in their_gradients.items()},
        {name: own.norm().item() for name, own in their_gradients.items()},
    )
    worst = max(errors, key=errors.__getitem__)
    print(f"  {len(errors)} gradients, largest relative difference {errors[worst]:.1e} ({worst})")
    if not errors[worst] <= TOLERANCES["gradients"]:
        problems.append(f"gradient of {worst}: {errors[worst]}")
    if OurMasks.differing:
        print(f"  mask targets differ in {np.mean(OurMasks.differing):.2%} of their cells")
    numbers = {f"loss.{name}": np.float64(loss) for name, loss in their_losses.items()}
    numbers["gradients"] = summarise_gradients(their_gradients)
    return problems, numbers


def make_pair(case: Case, small: bool) -> tuple[nn.Module, nn.Module]:
    """Detectron2's model and ours, of the same weights."""
    theirs = build_model(read_config(case, small)).eval()
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    weights = make_weights(shapes, case)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    theirs.load_state_dict(state, strict=True)
    ours, _ = build_ours(weights, case, case.ours if small else [])
    return theirs, ours


def check_caffe2() -> list[str]:
    """Whether Detectron's blobs get the names, rows and places that Detectron2 gives them."""
    problems = []
    for kind in ("faster_fpn", "mask_fpn", "mask_c4", "keypoint_fpn", "rpn_fpn"):
        blobs = {
            name: torch.arange(24.0).view(12, 2) + number
            for number, name in enumerate(caffe2_blobs(kind))
        }
        theirs, _ = convert_c2_detectron_names(blobs)
        ours = detectron2_tensors(blobs)
        for name, value in ours.items():
            # Their names lack what their models put before them; the longest that fits is meant.
            fitting = [k for k in theirs if name == k or name.endswith(f".{k}")]
            if fitting and not torch.equal(theirs[max(fitting, key=len)], value):
                problems.append(f"{kind}: {name} differs")
            if not fitting and "running" not in name:
                problems.append(f"{kind}: {name} is not there")
    print("Caffe2 names:", "; ".join(problems) or "the same")
    return problems


def write_tables() -> None:
    """Names and shapes of the zoo's models."""
    tables = {}
    for config in TABLES:
        model = build_model(read_config(Case(config), small=False))
        tables[config] = {name: list(v.shape) for name, v in model.state_dict().items()}
    HERE.mkdir(exist_ok=True)
    content = json.dumps(tables).encode()
    (HERE / "keys.json.gz").write_bytes(gzip.compress(content, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="also compare on photographs of this folder")
    parser.add_argument("--write", action="store_true", help="write what the tests compare with")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    problems = check_caffe2()
    if arguments.write:
        write_tables()
    for name in arguments.cases:
        case = CASES[name]
        classes = read_config(case, small=True).MODEL.ROI_HEADS.NUM_CLASSES
        found, outputs = check_inference(case, make_scene(VAL_SIZES, classes), small=True)
        wrong, numbers = check_training(case, make_scene(TRAIN_SIZES, classes, seed=1))
        problems += [f"{name}: {problem}" for problem in found + wrong]
        if arguments.write:
            np.savez_compressed(HERE / f"{name}.npz", **summarise(outputs), **numbers)
        if arguments.data:
            # The zoo's numbers of proposals at inference; in training the small ones.
            print("on photographs")
            val = real_scene(arguments.data, [(256, 352), (352, 256)], classes)
            found, _ = check_inference(case, val, small=False)
            train = real_scene(arguments.data, [(256, 352)] * 2, classes)
            wrong, _ = check_training(case, train)
            problems += [f"{name} on photographs: {problem}" for problem in found + wrong]
    print("\n".join(problems) or "all within the tolerances")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
