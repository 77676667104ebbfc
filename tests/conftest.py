"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detector.data.shapes import ensure_shapes
from tests.small_trainings import (  # noqa: F401
    compose_recipe,
    compose_tiny,
    compose_tool,
    trained,
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache of annotation indices."""
    former = os.environ.get("DETECTOR_CACHE")
    os.environ["DETECTOR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if former is None:
        del os.environ["DETECTOR_CACHE"]
    else:
        os.environ["DETECTOR_CACHE"] = former


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and tests may run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real datasets, in ``DETECTOR_TEST_DATA`` or beside the checkout; else skips."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETECTOR_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real test data is not in {folder}; DETECTOR_TEST_DATA=FOLDER names its place")
    return folder


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of synthetic shapes: 12 images to train on, 4 to validate; read only."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    return ensure_shapes(root, num_train=12, num_val=4, image_size=128, seed=0)
