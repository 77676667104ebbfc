"""Pictures of instances: boxes, names, scores and masks drawn over their image."""

from detector.visualize.colors import class_color
from detector.visualize.instances import draw_instances
from detector.visualize.layout import grid, panel

__all__ = ["class_color", "draw_instances", "grid", "panel"]
