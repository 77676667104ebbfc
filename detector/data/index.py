"""The annotation index: a dataset's annotations as flat, memory-mapped arrays.

No Python object per image or annotation exists after reading, so starting is instant, worker
processes share the pages, and memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data import federated
from detector.data.federated import FederatedLabels
from detector.data.problems import Problem
from detector.data.rings import offsets_of, ranges

_ARRAYS = (
    "image_ids",
    "widths",
    "heights",
    "file_name_bytes",
    "file_name_offsets",
    "annotation_offsets",
    "annotation_ids",
    "boxes",
    "labels",
    "crowd",
    "ring_offsets",
    "vertex_offsets",
    "vertices",
    "keypoints",
    "category_ids",
)


# What objects are called where classes do not matter.
ONE_CATEGORY = (1, "object")


@dataclass
class AnnotationIndex:
    """All annotations of one dataset: N images, M annotations, R rings, V vertices, K categories.

    J is the number of keypoints of an object, 0 in a dataset without them.

    Attributes:
        image_ids: ``(N,)`` int64, in the order of the source file.
        widths: ``(N,)`` int32, pixels after EXIF rotation.
        heights: ``(N,)`` int32.
        file_name_bytes: ``(S,)`` uint8, the file names in UTF-8 one after another.
        file_name_offsets: ``(N + 1,)`` int64 into ``file_name_bytes``.
        annotation_offsets: ``(N + 1,)`` int64; the annotations of image ``i`` are
            ``annotation_offsets[i]:annotation_offsets[i + 1]``.
        annotation_ids: ``(M,)`` int64.
        boxes: ``(M, 4)`` float32 ``(x1, y1, x2, y2)``, inside the image.
        labels: ``(M,)`` int32 in ``0..K-1``, the rank of the category id.
        crowd: ``(M,)`` bool; COCO's crowd regions, and likewise VOC's difficult objects: never
            training targets, and to find them is neither right nor wrong.
        ring_offsets: ``(M + 1,)`` int64 into the rings.
        vertex_offsets: ``(R + 1,)`` int64 into the vertices.
        vertices: ``(V, 2)`` float32, see :mod:`detector.data.rings`.
        category_ids: ``(K,)`` int64, ascending.
        category_names: K names, in the order of the labels.
        source_file: the annotation file; of several, their paths joined by " + ".
        image_root: the folder that file names are relative to.
        keypoints: ``(M, J, 3)`` float32 ``(x, y, visibility)`` in continuous pixels; visibility is
            COCO's: 0 not labelled (then x = y = 0), 1 labelled but hidden, 2 visible. Labelled
            points may lie a little outside the image. ``None`` stands for J = 0.
        keypoint_names: J names.
        keypoint_flip: J indices: what each keypoint becomes in a mirror, the left eye the right.
        skeleton: pairs of keypoints (from 0) that drawings connect.
        keypoint_sigmas: J numbers, how exactly annotators agree on each keypoint, relative to the
            object's size (COCO's OKS); ``None`` where the dataset does not say.
        federated: which classes were looked for in which image; ``None`` where all were in all.
        source_format: ``"coco"`` where the source file is COCO JSON, which an evaluation can read
            again; else the reader's name.
        skipped: the damaged records that are not in the index.
        directory: where the arrays are stored, or ``None`` if they are in memory only.
    """

    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    file_name_bytes: np.ndarray
    file_name_offsets: np.ndarray
    annotation_offsets: np.ndarray
    annotation_ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ring_offsets: np.ndarray
    vertex_offsets: np.ndarray
    vertices: np.ndarray
    category_ids: np.ndarray
    category_names: list[str]
    source_file: Path
    image_root: Path
    keypoints: np.ndarray | None = None
    keypoint_names: list[str] = field(default_factory=list)
    keypoint_flip: list[int] = field(default_factory=list)
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    keypoint_sigmas: list[float] | None = None
    federated: FederatedLabels | None = None
    source_format: str = "coco"
    skipped: list[Problem] = field(default_factory=list)
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.keypoints is None:
            self.keypoints = np.zeros((len(self.annotation_ids), 0, 3), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return len(self.category_names)

    @property
    def num_annotations(self) -> int:
        """M, crowd regions included."""
        return len(self.annotation_ids)

    @property
    def has_masks(self) -> bool:
        """Whether every annotation that can become a target has a mask."""
        return self.first_without_mask() is None

    @property
    def num_keypoints(self) -> int:
        """J, the number of keypoints of an object."""
        return self.keypoints.shape[1]

    @property
    def has_keypoints(self) -> bool:
        """Whether objects have keypoints; of some of them, all may be unlabelled."""
        return self.num_keypoints > 0

    def first_without_mask(self) -> int | None:
        """The id of the first non-crowd annotation without a segmentation."""
        missing = np.flatnonzero((np.diff(self.ring_offsets) == 0) & ~self.crowd)
        return int(self.annotation_ids[missing[0]]) if len(missing) else None

    def file_name(self, index: int) -> str:
        """File name of the ``index``-th image, as the annotation file gives it."""
        start, stop = self.file_name_offsets[index], self.file_name_offsets[index + 1]
        return bytes(self.file_name_bytes[start:stop]).decode()

    def path(self, index: int) -> Path:
        """Path of the ``index``-th image file."""
        return self.image_root / self.file_name(index)

    def paths(self) -> list[str]:
        """Paths of all image files."""
        names, ends = bytes(self.file_name_bytes), self.file_name_offsets.tolist()
        root = str(self.image_root)
        return [
            os.path.join(root, names[start:stop].decode())
            for start, stop in itertools.pairwise(ends)
        ]

    def annotations(self, index: int) -> slice:
        """The ``index``-th image's annotations, as a slice of the annotation arrays."""
        return slice(int(self.annotation_offsets[index]), int(self.annotation_offsets[index + 1]))

    def keep_images(self, keep: np.ndarray) -> AnnotationIndex:
        """An index in memory of the images where ``keep``, ``(N,)`` bool, is true."""
        images = np.flatnonzero(keep)
        names = np.diff(self.file_name_offsets)[images]
        per_image = np.diff(self.annotation_offsets)[images]
        annotations = ranges(self.annotation_offsets[images], per_image)
        rings_per_annotation = np.diff(self.ring_offsets)[annotations]
        rings = ranges(self.ring_offsets[annotations], rings_per_annotation)
        vertices_per_ring = np.diff(self.vertex_offsets)[rings]
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[images],
            widths=self.widths[images],
            heights=self.heights[images],
            file_name_bytes=self.file_name_bytes[ranges(self.file_name_offsets[images], names)],
            file_name_offsets=offsets_of(names),
            annotation_offsets=offsets_of(per_image),
            annotation_ids=self.annotation_ids[annotations],
            boxes=self.boxes[annotations],
            labels=self.labels[annotations],
            crowd=self.crowd[annotations],
            ring_offsets=offsets_of(rings_per_annotation),
            vertex_offsets=offsets_of(vertices_per_ring),
            vertices=self.vertices[ranges(self.vertex_offsets[rings], vertices_per_ring)],
            keypoints=self.keypoints[annotations],
            federated=self.federated.keep_images(images) if self.federated else None,
            directory=None,
        )

    def as_one_class(self) -> AnnotationIndex:
        """An index in memory whose objects are all of :data:`ONE_CATEGORY`."""
        category_id, name = ONE_CATEGORY
        return dataclasses.replace(
            self,
            labels=np.zeros_like(self.labels),
            category_ids=np.array([category_id]),
            category_names=[name],
            federated=None,
            directory=None,
        )

    def save(self, directory: Path) -> None:
        """Writes the arrays to ``directory``, whole or not at all, beside other processes."""
        meta = {
            "category_names": self.category_names,
            "keypoint_names": self.keypoint_names,
            "keypoint_flip": self.keypoint_flip,
            "skeleton": self.skeleton,
            "keypoint_sigmas": self.keypoint_sigmas,
            "frequencies": self.federated.frequencies if self.federated else None,
            "source_format": self.source_format,
            "skipped": [dataclasses.asdict(problem) for problem in self.skipped],
        }
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
        try:
            for name in _ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name))
            for name in federated.ARRAYS if self.federated else ():
                np.save(temporary / f"{name}.npy", getattr(self.federated, name))
            (temporary / "meta.json").write_text(json.dumps(meta))
            os.replace(temporary, directory)
        except OSError:
            # A process that read the same file at the same time came first: the content is equal.
            if not (directory / "meta.json").is_file():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path, source_file: Path, image_root: Path) -> AnnotationIndex:
        """The index that :meth:`save` wrote, its arrays memory-mapped read-only.

        Raises:
            FileNotFoundError: nothing was saved there.
        """
        meta = json.loads((directory / "meta.json").read_text())
        labels = None
        if meta["frequencies"] is not None:
            arrays = {name: _map_array(directory / f"{name}.npy") for name in federated.ARRAYS}
            labels = FederatedLabels(**arrays, frequencies=meta["frequencies"])
        return cls(
            **{name: _map_array(directory / f"{name}.npy") for name in _ARRAYS},
            category_names=meta["category_names"],
            keypoint_names=meta["keypoint_names"],
            keypoint_flip=meta["keypoint_flip"],
            skeleton=[(first, second) for first, second in meta["skeleton"]],
            keypoint_sigmas=meta["keypoint_sigmas"],
            federated=labels,
            source_format=meta["source_format"],
            skipped=[Problem(**problem) for problem in meta["skipped"]],
            source_file=source_file,
            image_root=image_root,
            directory=directory,
        )

    def __reduce__(self):
        # A worker that is spawned maps the files again; pickling would copy every array.
        if self.directory is not None:
            return AnnotationIndex.load, (self.directory, self.source_file, self.image_root)
        values = tuple(getattr(self, field.name) for field in dataclasses.fields(self))
        return AnnotationIndex, values


def _map_array(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r") if path.stat().st_size > 4096 else np.load(path)
    # A plain view: indexing a np.memmap costs microseconds more per access.
    return array.view(np.ndarray)
