"""The synthetic shapes: a small detection dataset made on the spot, as ordinary COCO files."""

from __future__ import annotations

from detector.data.generated import GeneratedSet
from detector.data.shape_scenes import CLASS_NAMES, make_scene

SHAPES = GeneratedSet(
    name="shapes",
    version=2,
    annotations="instances",
    categories=[
        {"id": label + 1, "name": name, "supercategory": "shape"}
        for label, name in enumerate(CLASS_NAMES)
    ],
    make_scene=make_scene,
)

# Gives the shapes in a folder, drawn on first use: ``ensure_shapes(root, num_train, ...)``.
ensure_shapes = SHAPES.ensure
