"""Colours of classes: distinct for neighbours in the list, the same in every picture.

Hues step by the golden angle in OKLCH (Ottosson, A perceptual color space for image processing,
2020), where equal steps look equally different and one lightness looks equally light, so no class
shouts and every colour stands out from both black and white.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

GOLDEN_ANGLE = 180.0 * (3.0 - math.sqrt(5.0))
FIRST_HUE = 250.0
LIGHTNESS = (0.74, 0.62, 0.84)
CHROMA = 0.17
# Instances of one class differ a little, so that touching ones can be told apart.
HUE_SHIFTS = (0.0, 7.0, -7.0)
LIGHTNESS_SHIFTS = (0.0, 0.06, -0.06)


@cache
def class_color(label: int, instance: int = 0) -> tuple[int, int, int]:
    """sRGB colour of a class.

    Args:
        label: class index in ``0..K-1``.
        instance: number of the instance within its class; 0 is the colour of the class itself,
            others are close to it.
    """
    # After eight hues the next ones fall between them: another lightness keeps them apart.
    lightness = LIGHTNESS[(label // 8) % len(LIGHTNESS)]
    lightness += LIGHTNESS_SHIFTS[instance % len(LIGHTNESS_SHIFTS)]
    hue = FIRST_HUE + GOLDEN_ANGLE * label + HUE_SHIFTS[(instance // 3 + instance) % 3]
    chroma = CHROMA
    rgb = _oklch_to_linear_rgb(lightness, chroma, hue)
    while (rgb.min() < 0 or rgb.max() > 1) and chroma > 0:
        chroma -= 0.005
        rgb = _oklch_to_linear_rgb(lightness, chroma, hue)
    rgb = rgb.clip(0.0, 1.0)
    srgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    red, green, blue = (255 * srgb).round().astype(int).tolist()
    return red, green, blue


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Near black or white, whichever contrasts more with ``background`` (WCAG 2 luminance)."""
    luminance = relative_luminance(background)
    return (255, 255, 255) if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.055 else (16,) * 3


def relative_luminance(color: tuple[int, int, int]) -> float:
    """WCAG 2 relative luminance of an sRGB colour, 0..1."""
    srgb = np.asarray(color) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _oklch_to_linear_rgb(lightness: float, chroma: float, hue: float) -> np.ndarray:
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    cone = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return to_rgb @ cone**3
