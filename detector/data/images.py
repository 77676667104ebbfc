"""Image files to RGB arrays, whatever the file's mode."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from detector.data.image_integrity import JPEG_START, PNG_START, is_whole


def read_image(path: Path | str) -> np.ndarray:
    """Reads an image the way it is meant to be looked at.

    Grayscale is repeated over three channels, alpha is dropped, palettes and CMYK are converted,
    16 bits are scaled to 8 over their full range (65535 becomes 255), and the EXIF orientation is
    applied.

    Args:
        path: the image file.

    Returns:
        ``(H, W, 3)`` uint8 RGB, contiguous.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such image file; check the path") from error
    return decode_image(data, path)


def decode_image(data: bytes, path: Path | str) -> np.ndarray:
    """Like :func:`read_image` for a file's content; ``path`` is for messages."""
    if data.startswith((JPEG_START, PNG_START)):
        if not is_whole(data):  # OpenCV would fill the rest with gray
            raise ValueError(f"{path}: truncated or damaged image; restore or remove the file")
        # OpenCV decodes these two as PIL does, several times faster; it knows their EXIF
        # orientation and scales 16 bits.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return image
    return _decode_with_pil(data, path)


def _decode_with_pil(data: bytes, path: Path | str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(image, path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too many pixels ({error}); cut the image into tiles") from error
    except (OSError, SyntaxError) as error:
        reason = str(error).split(" <")[0]  # without the address of a Python object
        raise ValueError(
            f"{path}: not a readable image ({reason}); restore or remove the file"
        ) from error


def to_rgb(image: Image.Image, name: Path | str) -> np.ndarray:
    """A PIL image as :func:`read_image` reads it from a file; ``name`` is for messages.

    Raises:
        ValueError: its pixels are floating point numbers.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # PIL would clip at 255. Mode "I" is how it opens 16-bit files of some formats.
        values = np.asarray(image).astype(np.int64)
        gray = np.clip(values >> 8, 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError(
            f"{name}: floating point pixels have no known range; convert the image to 8 or 16 bits"
        )
    return np.array(image.convert("RGB"))
