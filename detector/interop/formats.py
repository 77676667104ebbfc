"""The packages whose weights are read and written."""

from __future__ import annotations

from detector.interop import detectron2, timm_trunks, torchvision
from detector.interop.recipes import Format, Reader

# In the order in which they are asked.
FORMATS: dict[str, Format] = {"torchvision": torchvision, "detectron2": detectron2}
# What is read: timm has no detectors that could be written.
READERS: dict[str, Reader] = {**FORMATS, "timm": timm_trunks}
