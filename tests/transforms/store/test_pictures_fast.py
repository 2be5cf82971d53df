"""The quick way to decode gives the pixels of the usual one, whatever the bytes are."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.planted import picture
from transforms.store import pictures
from transforms.store.pictures import decode, decode_array


def encoded(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def noisy(height, width):
    random = np.random.default_rng([height, width])
    made = picture(1, width, height).astype(int) + random.integers(-40, 41, (height, width, 3))
    return Image.fromarray(made.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 9), (200, 120)])
@pytest.mark.parametrize(
    "options", [{"quality": q, "subsampling": s} for q in (30, 95) for s in (0, 1, 2)] + [{"progressive": True}]
)
def test_jpeg(size, options):
    content = encoded(noisy(*size), "JPEG", **options)
    assert pictures._is_plain_jpeg(content)
    assert np.array_equal(decode_array(content), np.asarray(decode(content)))


def test_an_orientation_turns_neither():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(noisy(40, 60), "JPEG", exif=exif)
    assert pictures._is_plain_jpeg(content) and np.array_equal(decode_array(content), np.asarray(decode(content)))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("L", "JPEG"), ("CMYK", "JPEG")]
)
def test_whatever_else(mode, kind):
    content = encoded(noisy(24, 30).convert(mode), kind)
    assert not pictures._is_plain_jpeg(content)
    assert np.array_equal(decode_array(content), np.asarray(decode(content)))


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 100, 300, -1, -20])
def test_what_is_cut_is_refused_as_usual(cut):
    content = encoded(noisy(24, 30), "JPEG")[:cut]
    with pytest.raises(ValueError):
        decode(content)
    with pytest.raises(ValueError):
        decode_array(content)


def test_too_many_pixels_are_refused(monkeypatch):
    content = encoded(noisy(24, 30), "JPEG")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 24 * 30 - 1)
    with pytest.raises(ValueError, match="are more than"):
        decode_array(content)
