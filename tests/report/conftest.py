from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browser(tmp_path):
    """Takes a picture ``(2000, width, 3)`` uint8 of a page; skips where no Chromium is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium to look at pages with: apt-get install chromium")

    def look(page: Path, width: int, dark: bool = False) -> np.ndarray:
        picture = tmp_path / "page.png"
        settings = ["--blink-settings=preferredColorScheme=0"] if dark else []
        place = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
        command = [program, *WORDS, *settings, *place, f"--window-size={width},2000", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return np.asarray(Image.open(picture).convert("RGB"))

    return look
