"""Where the configs are."""

from __future__ import annotations

from pathlib import Path


def find_configs() -> Path:
    """The config folder: inside an installed package, else beside the package in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs in {package} or beside it; install the package again")
