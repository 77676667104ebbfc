"""The user's way to a trained model.

import detector
model = detector.load("runs/shapes/.../checkpoints/best.pt")
model.predict("photo.jpg").plot()
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from detector.data.augmentation import Augmentation
from detector.data.collate import Collate
from detector.data.images import read_image, to_rgb
from detector.data.sample import Sample
from detector.engine.assembly import build, classes_of, number_of_classes, plain
from detector.engine.augmented_detection import with_augmentation
from detector.engine.checkpoint import checkpoint_config, load_checkpoint, load_weights
from detector.engine.extraction import extract_features, to_boxes, to_labels
from detector.engine.inference import detect
from detector.engine.runtime import Runtime
from detector.results import Result, to_results
from detector.roi_heads.region_features import RegionFeatures
from detector.structures import Batch

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

ImageLike = str | Path | np.ndarray | Image.Image


class Detector:
    """A model with everything it takes to use it on images.

    Args:
        model: of :mod:`detector.rcnn`. A Fast R-CNN, which is given its proposals, can extract
            features alone.
        class_names: K names.
        category_ids: K ids of the dataset it was trained on, for COCO results.
        transforms: albumentations transforms that bring an image to the network's input size.
        runtime: where and in which precision to run.
        buckets: padded sizes, see :class:`detector.data.collate.Collate`.
        keypoint_names: J names, of a model with keypoints.
        skeleton: pairs of keypoints, from 0, that a drawing connects.
        tta: look at each image several times, such as ``{"scales": [0.8, 1.0, 1.2], "flip":
            True}``, see :class:`detector.engine.augmented_detection.AugmentedDetector`.
    """

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        transforms: Sequence[Any] = (),
        runtime: Runtime | None = None,
        buckets: Sequence[Sequence[int]] | None = None,
        keypoint_names: Sequence[str] = (),
        skeleton: Sequence[Sequence[int]] = (),
        tta: Mapping[str, Any] | None = None,
    ) -> None:
        self.runtime = runtime or Runtime()
        self.model = self.runtime.place(model)
        self._finder = with_augmentation(self.model, tta)
        self.names = list(class_names)
        self.category_ids = list(category_ids)
        self.keypoint_names = list(keypoint_names)
        self.skeleton = [(first, second) for first, second in skeleton]
        self._augmentation = Augmentation(transforms)
        self._collate = Collate(buckets, with_masks=False)

    def __repr__(self) -> str:
        names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        model = type(self.model).__name__
        classes = number_of_classes(len(self.names))
        return f"Detector({model}, {classes}: {names}; {self.runtime.device})"

    def predict(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float = 0.5
    ) -> Result | list[Result]:
        """Finds objects.

        Args:
            images: an image: a file, a PIL image, or an array ``(H, W, 3)`` RGB or ``(H, W)`` gray,
                uint8. Or several: a list of these, a folder, or a pattern such as ``"*.jpg"``.
            score_threshold: objects with a lower score are left out.

        Returns:
            A result for an image, a list of results for a list, folder or pattern. Their
            ``image_id`` counts from 1.

        Raises:
            FileNotFoundError: there is no such file, or none in the folder.
            ValueError: an image cannot be read, or is no 8-bit image; or the model is a Fast R-CNN,
                which classifies proposals of a file.
        """
        if isinstance(images, str | Path) and not Path(images).is_file():
            images = find_images(images)
        if isinstance(images, list | tuple):
            return [
                self._predict_one(image, score_threshold, number)
                for number, image in enumerate(images, start=1)
            ]
        return self._predict_one(images, score_threshold, 1)

    def extract_features(
        self, images: ImageLike | Sequence[ImageLike], boxes: Any, labels: Any = None
    ) -> RegionFeatures | list[RegionFeatures]:
        """What the model computes for given boxes, without looking for objects itself.

        Args:
            images: an image as in :meth:`predict`, or a list of images.
            boxes: ``(L, 4)`` of the image, in its own pixels, such as ``boxes`` of a result; or a
                list of such, one for each image. There may be none.
            labels: ``(L,)`` the class of each box, whose mask is wanted, as numbers or names; or a
                list of such. ``None``: the class with the best score.

        Returns:
            The features of an image with ``boxes`` as given, on the model's device; or a list.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an image cannot be read; boxes, labels and images do not fit each other; or
                the model is an RPN alone.
        """
        if not isinstance(images, list | tuple):
            return self._extract_one(images, boxes, labels)
        labels = [None] * len(images) if labels is None else labels
        if not len(images) == len(boxes) == len(labels):
            raise ValueError(
                f"{len(images)} images, boxes for {len(boxes)} and labels for {len(labels)}; give "
                "boxes, and labels if any, of each image"
            )
        return [self._extract_one(*each) for each in zip(images, boxes, labels, strict=True)]

    def _extract_one(self, image: ImageLike, boxes: Any, labels: Any) -> RegionFeatures:
        pixels, _ = to_pixels(image)
        boxes = to_boxes(boxes, *pixels.shape[:2])
        labels = None if labels is None else [to_labels(labels, len(boxes), self.names)]
        batch = self._to_batch(pixels)
        scale = (batch.original_sizes / batch.image_sizes)[0].flip(0)
        found = extract_features(self.model, batch, [boxes / scale.repeat(2)], labels, self.runtime)
        device = found.boxes.device
        return replace(found, boxes=boxes.to(device), scale=scale.to(device))

    def _predict_one(self, image: ImageLike, score_threshold: float, image_id: int) -> Result:
        if getattr(self.model, "needs_proposals", False):
            raise ValueError(
                f"{type(self.model).__name__} classifies given proposals and finds nothing in an "
                "image alone: extract_features(image, boxes) gives what it computes for boxes of "
                "yours; evaluate it on a dataset with data.val.proposals=FILE.npz; or train a "
                "Faster R-CNN"
            )
        pixels, path = to_pixels(image)
        batch = self._to_batch(pixels)
        [result] = to_results(
            detect(self._finder, batch, self.runtime),
            batch.image_sizes,
            batch.original_sizes,
            self.names,
            category_ids=self.category_ids,
            keypoint_names=self.keypoint_names,
            skeleton=self.skeleton,
            image_ids=[image_id],
            images=[pixels],
            paths=None if path is None else [path],
            score_threshold=score_threshold,
        )
        return result

    def _to_batch(self, pixels: np.ndarray) -> Batch:
        # The transforms of evaluation draw no random numbers, so any generator will do.
        sample = self._augmentation(_without_targets(pixels), np.random.default_rng(0))
        return self._collate([sample])


def load(
    checkpoint: str | Path,
    device: str = "auto",
    *,
    runtime: Runtime | None = None,
    allow_code: bool = False,
    tta: Mapping[str, Any] | None = None,
) -> Detector:
    """A detector from a checkpoint alone.

    Args:
        checkpoint: a ``.pt`` file of a training, or its run directory (then ``last.pt``).
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        runtime: instead of ``device``, also precision and memory layout.
        allow_code: let the checkpoint's configuration call code outside this package.
        tta: see :class:`Detector`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or no checkpoint; or there is no such device.
    """
    content = load_checkpoint(checkpoint)
    config = checkpoint_config(content, allow_code)
    model = build(config.model)
    load_weights(model, content["model"], checkpoint)
    class_names, category_ids = classes_of(model, content["class_names"], content["category_ids"])
    return Detector(
        model.eval(),
        class_names,
        category_ids,
        transforms=build(config.augment.val),
        runtime=runtime or Runtime(device),
        buckets=plain(config.data.buckets),
        # Checkpoints of models without keypoints, and older ones, say nothing of them.
        keypoint_names=content.get("keypoint_names", ()),
        skeleton=content.get("skeleton", ()),
        tta=tta,
    )


def to_pixels(image: ImageLike) -> tuple[np.ndarray, Path | None]:
    """``(H, W, 3)`` uint8 RGB, and the file if it came from one.

    Raises:
        FileNotFoundError, ValueError: see :meth:`Detector.predict`.
    """
    if isinstance(image, str | Path):
        return read_image(image), Path(image)
    if isinstance(image, Image.Image):
        return to_rgb(image, "a PIL image"), None
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"an image of type {type(image).__name__}; give a path, a PIL image or a numpy array"
        )
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"an array of shape {image.shape} and type {image.dtype}; give (H, W, 3) RGB or (H, W) "
            "gray of uint8, 0 to 255"
        )
    if image.size == 0:
        raise ValueError(f"an array of shape {image.shape} has no pixels")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return np.ascontiguousarray(image), None


def _without_targets(pixels: np.ndarray) -> Sample:
    return Sample(
        image=pixels,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        ring_offsets=np.zeros(1, np.int64),
        vertex_offsets=np.zeros(1, np.int64),
        vertices=np.zeros((0, 2), np.float32),
        image_id=0,
        original_size=pixels.shape[:2],
    )


def find_images(where: str | Path) -> list[Path]:
    """Image files, sorted: the file ``where``, those in the folder, or those of the pattern.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise FileNotFoundError(
                f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); for images in folders below "
                f"give a pattern such as '{path}/**/*.jpg'"
            )
        return found
    found = sorted(Path(name) for name in _matches(str(path)) if Path(name).is_file())
    if not found:
        raise FileNotFoundError(f"{where}: no such image, folder, or file that fits the pattern")
    return found


def _matches(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True) if glob.has_magic(pattern) else iter(())
