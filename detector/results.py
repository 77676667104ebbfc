"""What a detector found in one image, as its user wants it: trimmed, in the image's own pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.ops.masks import RLE, masks_to_rle, paste_masks
from detector.structures import Detections
from detector.visualize import draw_instances


@dataclass(frozen=True, repr=False)
class Result:
    """The n instances found in one image, best first.

    Attributes:
        boxes: ``(n, 4)`` float32 ``(x1, y1, x2, y2)`` in pixels of the image file.
        labels: ``(n,)`` int64, indices into ``class_names``.
        scores: ``(n,)`` float32 in 0..1.
        class_names: the K names the model knows.
        height: height of the image in pixels.
        width: width of the image in pixels.
        box_masks: ``(n, M, M)`` float32 probabilities inside each box, or ``None`` when the model
            finds boxes only; :attr:`masks` are made from them when asked for.
        category_ids: the dataset's id of each class, ``None`` when it has none.
        image: ``(height, width, 3)`` uint8 RGB, for :meth:`plot`.
        image_id: the dataset's id of the image.
        path: the image file.
        keypoints: ``(n, J, 3)`` float32 ``(x, y, score)`` in pixels of the image file, or ``None``
            when the model finds none. The score tells how sure the place is, above 0.
        keypoint_names: J names, of a model with keypoints.
        skeleton: pairs of keypoints, from 0, that a drawing connects.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    class_names: Sequence[str]
    height: int
    width: int
    box_masks: np.ndarray | None = None
    category_ids: Sequence[int] | None = None
    image: np.ndarray | None = None
    image_id: int | None = None
    path: Path | None = None
    keypoints: np.ndarray | None = None
    keypoint_names: Sequence[str] = ()
    skeleton: Sequence[tuple[int, int]] = ()

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.class_names[label] for label in self.labels]

    @property
    def masks(self) -> np.ndarray | None:
        """``(n, height, width)`` bool, pasted at each call, or ``None`` without masks."""
        if self.box_masks is None:
            return None
        return paste_masks(*self._mask_arguments()).numpy()

    def rle(self) -> list[RLE] | None:
        """The masks as COCO run-length encodings, or ``None`` without masks."""
        if self.box_masks is None:
            return None
        return masks_to_rle(*self._mask_arguments())

    def select(self, keep: np.ndarray) -> Result:
        """The instances that ``keep``, a bool mask or an index array, picks."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            scores=self.scores[keep],
            box_masks=None if self.box_masks is None else self.box_masks[keep],
            keypoints=None if self.keypoints is None else self.keypoints[keep],
        )

    def above(self, score_threshold: float) -> Result:
        """The instances with at least this score."""
        return self.select(self.scores >= score_threshold)

    def to_coco(
        self, image_id: int | None = None, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """One record per instance in COCO results format: box, score and what else was found.

        That is the mask as ``segmentation``, and ``keypoints`` as x, y, score of one after another;
        there COCO counts from the centre of the first pixel, half a pixel from where boxes do.

        Args:
            image_id: overrides :attr:`image_id`.
            category_ids: overrides :attr:`category_ids`.

        Raises:
            ValueError: when neither the argument nor the attribute is set.
        """
        image_id = self.image_id if image_id is None else image_id
        category_ids = self.category_ids if category_ids is None else category_ids
        for name, value in (("image_id", image_id), ("category_ids", category_ids)):
            if value is None:
                where = f" of {self.path}" if self.path else ""
                raise ValueError(f"COCO results need {name}; the result{where} has none: pass it")
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        # A thousandth of a pixel is far below what any threshold sees, and a third of the file.
        records = [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                # The shortest decimal that reads back as the same float32.
                "score": float(str(score)),
            }
            for box, label, score in zip(
                boxes.round(3).tolist(), self.labels, self.scores, strict=True
            )
        ]
        for record, rle in zip(records, self.rle() or [], strict=False):
            record["segmentation"] = rle
        if self.keypoints is not None:
            pixels = self.keypoints.astype(np.float64) - (0.5, 0.5, 0.0)
            for record, values in zip(
                records, pixels.reshape(len(records), 3 * pixels.shape[1]), strict=True
            ):
                record["keypoints"] = values.round(3).tolist()
        return records

    def plot(self) -> Image.Image:
        """A picture of the instances; a notebook shows it, ``np.asarray`` gives its pixels.

        Raises:
            ValueError: when the result holds no image.
        """
        if self.image is None:
            raise ValueError("this result carries no image to draw on: predict from an image")
        return Image.fromarray(
            draw_instances(
                self.image,
                self.boxes,
                self.labels,
                self.names,
                self.scores,
                self.box_masks,
                keypoints=self.keypoints,
                skeleton=self.skeleton,
            )
        )

    def save(self, path: str | Path) -> None:
        """Write :meth:`plot` to a file whose suffix names the format; missing folders are made."""
        # JPEG's usual quality blurs letters and thin contours.
        options = {"quality": 92} if Path(path).suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.plot().save(path, **options)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        found, counts = np.unique(self.labels, return_counts=True)
        by_count = sorted(zip(counts.tolist(), found.tolist(), strict=True), reverse=True)
        instances = ", ".join(f"{count} {self.class_names[label]}" for count, label in by_count)
        of = "" if self.path is None else f"{Path(self.path).name}, "
        kind = "boxes" if self.box_masks is None else "boxes and masks"
        if self.keypoints is not None:
            kind = kind.replace(" and", ",") + " and keypoints"
        return f"Result({of}{self.width}x{self.height}: {instances or 'nothing'}; {kind})"

    def _repr_png_(self) -> bytes | None:
        """Lets a notebook show the picture when a cell ends in a result."""
        if self.image is None:
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, "png")
        return buffer.getvalue()

    def _mask_arguments(self) -> tuple[Tensor, Tensor, int, int]:
        masks, boxes = torch.from_numpy(self.box_masks), torch.from_numpy(self.boxes)
        return masks, boxes, self.height, self.width


def to_results(
    detections: Detections,
    image_sizes: Tensor,
    original_sizes: Tensor,
    class_names: Sequence[str],
    *,
    category_ids: Sequence[int] | None = None,
    keypoint_names: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
    image_ids: Sequence[int] | Tensor | None = None,
    images: Sequence[np.ndarray] | None = None,
    paths: Sequence[Path] | None = None,
    score_threshold: float = 0.0,
) -> list[Result]:
    """Trim empty slots, and scale boxes and keypoints back to the image files.

    Args:
        detections: of B images, on any device.
        image_sizes: ``(B, 2)`` (height, width) of the network's input without padding.
        original_sizes: ``(B, 2)`` (height, width) of the image files.
        class_names: K names.
        category_ids: K ids of the dataset.
        keypoint_names: J names.
        skeleton: pairs of keypoints that a drawing connects.
        image_ids: B ids of the dataset.
        images: B images ``(height, width, 3)`` uint8 RGB of the original sizes, for drawing.
        paths: B image files.
        score_threshold: instances with a lower score are left out.

    Returns:
        B results.
    """
    detections = detections.to("cpu")
    kept = detections.valid & (detections.scores >= score_threshold)
    original = original_sizes.to("cpu", torch.float64)
    scale = original / image_sizes.to("cpu", torch.float64)
    ids = None if image_ids is None else torch.as_tensor(image_ids).tolist()
    results = []
    for i, keep in enumerate(kept):
        (scale_y, scale_x), (height, width) = scale[i].tolist(), original_sizes[i].tolist()
        boxes = detections.boxes[i][keep].double()
        boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        boxes = boxes.clamp(min=0.0).minimum(boxes.new_tensor([width, height, width, height]))
        masks = None if detections.masks is None else detections.masks[i][keep].float().numpy()
        keypoints = None
        if detections.keypoints is not None:
            keypoints = detections.keypoints[i][keep].double()
            keypoints = (keypoints * keypoints.new_tensor([scale_x, scale_y, 1.0])).float().numpy()
        results.append(
            Result(
                boxes=boxes.float().numpy(),
                labels=detections.labels[i][keep].numpy(),
                scores=detections.scores[i][keep].float().numpy(),
                class_names=class_names,
                height=height,
                width=width,
                box_masks=masks,
                keypoints=keypoints,
                keypoint_names=keypoint_names,
                skeleton=skeleton,
                category_ids=category_ids,
                image=None if images is None else images[i],
                image_id=None if ids is None else ids[i],
                path=None if paths is None else paths[i],
            )
        )
    return results
