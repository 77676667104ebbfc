"""A small COCO dataset on disk, and a rasteriser that is obviously right."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.coco import read_coco


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """No test sees what another cached, nor the user's cache."""
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class CocoFolder:
    """A COCO dataset that a test can damage before reading it.

    Three images: 1 (landscape, a square and a two-part mask), 7 (portrait, an RLE and a crowd
    region), 4 (no objects). Category ids are sparse and not in order.
    """

    def __init__(self, root: Path):
        self.root = root
        self.images = root / "images"
        self.json = root / "annotations.json"
        self.images.mkdir(parents=True)
        self.data = {
            "images": [self.image(1, 40, 30), self.image(7, 20, 32), self.image(4, 16, 16)],
            "annotations": [
                self.annotation(11, 1, 90, [5, 6, 10, 8], [[5, 6, 15, 6, 15, 14, 5, 14]]),
                self.annotation(
                    15, 7, 3, [2, 0, 2, 3], {"size": [32, 20], "counts": [64, 3, 29, 2, 542]}
                ),
                self.annotation(
                    12, 1, 3, [20, 2, 12, 10],
                    [[20, 2, 20, 12, 24, 12, 24, 2], [28, 2, 32, 2, 32, 8, 28, 8]],
                ),
                self.annotation(
                    19, 7, 3, [0, 0, 20, 32], {"size": [32, 20], "counts": [0, 640]}, iscrowd=1
                ),
            ],
            "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        }  # fmt: skip

    def image(self, identifier: int, width: int, height: int) -> dict:
        name = f"{identifier}.png"
        pixels = np.random.default_rng(identifier).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.images / name)
        return {"id": identifier, "file_name": name, "width": width, "height": height}

    @staticmethod
    def annotation(identifier, image, category, bbox, segmentation, iscrowd=0) -> dict:
        return {
            "id": identifier,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "segmentation": segmentation,
            "iscrowd": iscrowd,
        }

    def write(self) -> None:
        self.json.write_text(json.dumps(self.data))

    def read(self, on_error: str = "raise"):
        self.write()
        return read_coco(self.json, self.images, on_error)


@pytest.fixture
def coco_folder(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path / "dataset")


def rasterize_rings(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Non-zero winding at pixel centres, one edge after another, ``(H, W)`` bool."""
    winding = np.zeros((height, width), dtype=np.int64)
    centre_x, centre_y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for ring in rings:
        ring = np.asarray(ring, dtype=np.float64)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            crossed = (centre_y >= min(y0, y1)) & (centre_y < max(y0, y1))
            if not crossed.any():
                continue
            x = x0 + (centre_y[crossed] - y0) / (y1 - y0) * (x1 - x0)
            winding[crossed] += (1 if y1 > y0 else -1) * (centre_x[None] < x[:, None])
    return winding != 0


@pytest.fixture
def rasterize():
    return rasterize_rings
