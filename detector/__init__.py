"""Faster R-CNN and Mask R-CNN: train, evaluate and predict.

``detector.load(checkpoint)`` gives a model whose ``predict`` takes images, paths or lists of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.predictor import Detector, load

__version__ = "0.1.0"
__all__ = ["Detector", "__version__", "load"]


def __getattr__(name: str) -> object:
    # Imported on first use: the command line's help and the data tools need no model code.
    if name in ("Detector", "load"):
        from detector import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
