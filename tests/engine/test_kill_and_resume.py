import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_ten_random_moments_a_training_ends_with_the_same_bits(
    shapes_root: Path, tmp_path: Path
) -> None:
    """Weights, their average, momenta, metrics, with and without data workers."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.engine.kill_and_resume", shapes_root, tmp_path, "0"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("killed,") == 10
    assert "finished with the same bits" in found.stdout.splitlines()[-1]
