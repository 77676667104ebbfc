"""What ``detector.ops`` offers, and that looking at it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from types import ModuleType

import detector.ops as ops


def test_every_public_name_is_a_described_function():
    described = re.findall(r"``([\w, ]+)``", ops.__doc__.partition("Boxes are")[0])
    names = {name for group in described for name in group.split(", ")}
    assert names == set(ops.__all__)
    for name in ops.__all__:
        # Files have the names of their functions; the function is what a user gets.
        assert callable(getattr(ops, name)) and not isinstance(getattr(ops, name), ModuleType)
        assert getattr(ops, name).__doc__


def test_importing_the_ops_loads_no_cuda_library_and_no_model():
    code = "import sys, detector.ops; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "detector.ops.cuda.runtime" in loaded
    unwanted = ("cuda.core", "detector.rcnn", "detector.data", "detector.engine", "albumentations")
    assert not [name for name in loaded if name.startswith(unwanted)]
