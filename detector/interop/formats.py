"""The packages whose weights are read and written."""

from __future__ import annotations

from detector.interop import detectron2, torchvision
from detector.interop.recipes import Format

# In the order in which they are asked.
FORMATS: dict[str, Format] = {"torchvision": torchvision, "detectron2": detectron2}
