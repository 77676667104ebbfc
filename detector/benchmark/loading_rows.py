"""Images per second of one data worker beside torchvision's reference pipeline.

    python -m detector.benchmark.loading_rows [ANNOTATIONS IMAGES] [number of images]

Both sides do what one worker process does, in this process and on one thread: read and decode JPEG
files, scale them to 800/1333, flip half of them, move boxes and masks along, and collate two images
at a time. Theirs is what torchvision's training reference composes of its own parts:
``CocoDetection``, its wrapper that makes boxes and full-size masks of COCO's polygons, and
``transforms.v2``, with images from PIL (the reference's default) and as tensors. Their collation
makes lists; what pads images to batches is in their model, and not counted.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from albumentations import HorizontalFlip
from rich.console import Console
from rich.table import Table
from torch.utils.data import Subset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from detector.benchmark.coco_sized import write_coco_sized, write_photos
from detector.benchmark.measure import median_seconds
from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.transforms import ResizeShortestEdge
from detector.structures import Batch

OURS, FROM_PIL, FROM_TENSORS = "ours", "torchvision, images from PIL", "torchvision, tensors"
SHORTEST, LONGEST = 800, 1333
BUCKETS = ((800, 1344), (1344, 800), (1344, 1344))
BATCH_SIZE = 2
NUM_IMAGES = 32
_OBJECTS_PER_IMAGE = 7.27  # of COCO's train2017

Pipeline = Callable[[Sequence[int]], Any]


def measure_loading(
    repeats: int,
    console: Console,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    num_images: int = NUM_IMAGES,
) -> dict[str, Any]:
    """Medians of passes over some images, the sides in turn, printed as a table.

    Args:
        repeats: passes of each side.
        console: where the table goes.
        annotations: a COCO file with masks; ``None``: generated photographs, as many objects on
            each as on COCO's.
        images: the folder of its images.
        num_images: the first so many that have objects.

    Returns:
        ``rows`` (one per side: ``images_per_second``), ``ratio`` (ours by their faster one) and
        ``stages``: seconds that ours takes for an image, by what it does.

    Raises:
        ValueError: one of ``annotations`` and ``images`` is missing, or masks are.
    """
    if (annotations is None) != (images is None):
        raise ValueError(
            f"annotations={annotations} and images={images}: give both, or neither for generated "
            "images"
        )
    with tempfile.TemporaryDirectory() as folder, _as_in_a_worker():
        if annotations is None:
            annotations, images = Path(folder) / "instances.json", Path(folder) / "images"
            count = round(num_images * _OBJECTS_PER_IMAGE)
            write_coco_sized(annotations, num_images, count, suffix=".jpg")
            write_photos(images, num_images)
            what = "generated photographs"
        else:
            what = str(images)
        ours = OurPipeline(annotations, images)
        if not ours.dataset.index.has_masks:
            raise ValueError(f"{annotations}: objects without masks; name annotations with masks")
        chosen = ours.dataset.index.image_ids[:num_images].tolist()
        sides: dict[str, Pipeline] = {
            OURS: ours,
            FROM_PIL: torchvision_pipeline(annotations, images, chosen, "pil"),
            FROM_TENSORS: torchvision_pipeline(annotations, images, chosen, "tensor"),
        }
        seconds = median_seconds(
            {name: lambda side=side: _pass(side, len(chosen)) for name, side in sides.items()},
            torch.device("cpu"),
            repeats,
        )
        stages = ours.stages(len(chosen), repeats)
    rows = [{"side": name, "images_per_second": len(chosen) / seconds[name]} for name in sides]
    report = {
        "dataset": what,
        "images": len(chosen),
        "repeats": repeats,
        "rows": rows,
        "ratio": min(seconds[FROM_PIL], seconds[FROM_TENSORS]) / seconds[OURS],
        "stages": stages,
    }
    _print(report, console)
    return report


class OurPipeline:
    """From the annotation index to padded batches of uint8 images and polygons.

    Args:
        annotations, images: of the dataset.
        flip: how often images are flipped.
    """

    def __init__(self, annotations: Path | str, images: Path | str, flip: float = 0.5) -> None:
        augment = [ResizeShortestEdge(SHORTEST, LONGEST), HorizontalFlip(p=flip)]
        self.dataset = DetectionDataset(annotations, images, augment, keep_empty=False)
        self.collate = Collate(BUCKETS)

    def __call__(self, positions: Sequence[int]) -> Batch:
        return self.collate([self.dataset[position] for position in positions])

    def stages(self, num_images: int, repeats: int) -> dict[str, float]:
        """Seconds for an image: the medians of passes."""
        samples: dict[str, list[float]] = {"read and decode": [], "augment": [], "collate": []}
        for number in range(repeats):
            taken = dict.fromkeys(samples, 0.0)
            for positions in _batches(num_images):
                began = time.perf_counter()
                read = [self.dataset.read(position) for position in positions]
                decoded = time.perf_counter()
                rng = np.random.Generator(np.random.PCG64(number))
                augmented = [self.dataset.augmentation(sample, rng) for sample in read]
                moved = time.perf_counter()
                self.collate(augmented)
                taken["read and decode"] += decoded - began
                taken["augment"] += moved - decoded
                taken["collate"] += time.perf_counter() - moved
            for stage, seconds in taken.items():
                samples[stage].append(seconds / num_images)
        return {stage: float(np.median(seconds)) for stage, seconds in samples.items()}


def torchvision_pipeline(
    annotations: Path | str,
    images: Path | str,
    image_ids: Sequence[int],
    backend: str,
    flip: float = 0.5,
) -> Pipeline:
    """As torchvision's training reference has it.

    Args:
        annotations, images: of the dataset.
        image_ids: of the images, which positions count.
        backend: ``"pil"`` or ``"tensor"``: what images are while they are scaled.
        flip: how often images are flipped.
    """
    steps = [
        v2.RandomShortestSize([SHORTEST], max_size=LONGEST),
        v2.RandomHorizontalFlip(p=flip),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ]
    if backend == "tensor":
        steps.insert(0, steps.pop(2))
    with contextlib.redirect_stdout(io.StringIO()):
        whole = _WithoutCrowd(str(images), str(annotations), transforms=v2.Compose(steps))
    place_of = {identifier: place for place, identifier in enumerate(whole.ids)}
    keys = ("boxes", "labels", "masks", "image_id")
    dataset = wrap_dataset_for_transforms_v2(whole, target_keys=keys)
    dataset = Subset(dataset, [place_of[identifier] for identifier in image_ids])
    return lambda positions: tuple(zip(*(dataset[place] for place in positions), strict=True))


class _WithoutCrowd(CocoDetection):
    """Crowd regions are no targets of theirs either."""

    def _load_target(self, id: int) -> list[Any]:
        return [record for record in super()._load_target(id) if not record.get("iscrowd")]


def _pass(side: Pipeline, num_images: int) -> None:
    for positions in _batches(num_images):
        side(positions)


def _batches(num_images: int) -> Iterator[range]:
    for start in range(0, num_images, BATCH_SIZE):
        yield range(start, min(start + BATCH_SIZE, num_images))


@contextlib.contextmanager
def _as_in_a_worker() -> Iterator[None]:
    """One thread for either library: the parallelism is in the processes."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _print(report: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{report['images']} images of {report['dataset']} at {SHORTEST}/{LONGEST}, one "
        f"process, one thread, medians of {report['repeats']}"
    )
    for heading in ("data worker", "images/s", "x"):
        table.add_column(heading, justify="left" if heading == "data worker" else "right")
    ours = report["rows"][0]["images_per_second"]
    for row in report["rows"]:
        rate = row["images_per_second"]
        table.add_row(row["side"], f"{rate:.3g}", f"{ours / rate:.2f}")
    console.print(table)
    stages = ", ".join(f"{name} {taken * 1e3:.3g} ms" for name, taken in report["stages"].items())
    console.print(f"an image of ours: {stages}", soft_wrap=True)


def main(words: list[str]) -> None:
    """``[ANNOTATIONS IMAGES] [number of images]``."""
    paths = [word for word in words if not word.isdigit()]
    counts = [int(word) for word in words if word.isdigit()] or [NUM_IMAGES]
    measure_loading(5, Console(), *(paths or (None, None)), num_images=counts[0])


if __name__ == "__main__":
    main(sys.argv[1:])
