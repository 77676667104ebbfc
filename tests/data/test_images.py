"""Every kind of image file against PIL, and damaged ones."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from detector.data.image_integrity import is_whole
from detector.data.images import read_image

_ORIENTATION = 0x0112


@pytest.fixture
def picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((28, 20), Image.Resampling.BICUBIC)


def as_pil_shows_it(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("RGB", "L", "P", "1", "RGBA", "LA")]
    + [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg")]
    + [("RGB", "tif"), ("RGBA", "tif"), ("CMYK", "tif"), ("RGB", "bmp"), ("P", "gif")]
    + [("RGB", "webp"), ("RGBA", "webp")],
)
def test_modes_and_formats(picture, tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    image = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture.convert("L"))
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (20, 28, 3) and pixels.dtype == np.uint8
    # CMYK products are rounded differently by one.
    difference = np.abs(pixels.astype(int) - as_pil_shows_it(path)).max()
    assert difference <= (1 if mode == "CMYK" else 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(picture, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    path = tmp_path / f"image.{suffix}"
    picture.save(path, exif=exif.tobytes())
    pixels = read_image(path)
    assert pixels.shape == ((28, 20, 3) if orientation >= 5 else (20, 28, 3))
    np.testing.assert_array_equal(pixels, as_pil_shows_it(path))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_use_the_full_range(tmp_path, suffix, channels):
    values = np.random.default_rng(1).integers(0, 65536, (9, 8, channels), dtype=np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    path = tmp_path / f"image.{suffix}"
    assert cv2.imwrite(str(path), values[..., ::-1])
    expected = np.broadcast_to((values >> 8).astype(np.uint8), (9, 8, 3))
    np.testing.assert_array_equal(read_image(path), expected)


def test_floating_point_is_refused(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(ValueError, match=r"image\.tif.*8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(picture, tmp_path, suffix, kept):
    path = tmp_path / f"image.{suffix}"
    picture.save(path)
    data = path.read_bytes()
    assert is_whole(data)
    path.write_bytes(data[: int(kept * len(data))])
    assert not is_whole(path.read_bytes())
    with pytest.raises(ValueError, match=rf"image\.{suffix}.*restore or remove"):
        read_image(path)


def test_a_thumbnail_does_not_hide_a_truncation(picture):
    thumbnail = io.BytesIO()
    picture.resize((7, 5)).save(thumbnail, "JPEG")
    whole = io.BytesIO()
    picture.save(whole, "JPEG")
    jpeg = whole.getvalue()
    payload = b"Exif\0\0" + thumbnail.getvalue()
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    with_thumbnail = jpeg[:2] + segment + jpeg[2:]
    assert is_whole(with_thumbnail)
    assert not is_whole(with_thumbnail[:-20])


def test_a_flipped_bit_in_a_png_is_found(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[len(data) // 2] ^= 1
    assert not is_whole(bytes(data))


def test_a_missing_file_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path)


def test_an_image_too_large_to_decode_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "image.bmp"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"image\.bmp: too many pixels"):
        read_image(path)
