"""What cameras note as EXIF orientation: against Pillow's exif_transpose, for each of its values and formats."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from transforms.data.orientation import ORIENTATION, Turning, orientation, upright

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def stored(kind, said, pixels=PIXELS, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = said
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("said", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(said):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored("PNG", said)))))
    assert np.array_equal(upright(PIXELS, said), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_formats_that_say_it(kind):
    assert [orientation(stored(kind, said)) for said in range(1, 9)] == list(range(1, 9))


def test_whatever_says_nothing_that_makes_sense_stands():
    assert (
        orientation(b"") == orientation(b"no picture") == orientation(stored("JPEG", 9)) == orientation(stored("JPEG", 0)) == 1
    )
    # Its decoder turns TIFF.
    assert orientation(stored("TIFF", 6)) == 1


def resize(stream, boxes=None):
    return stream.getvalue(), boxes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_the_resizer_gets_is_turned_and_loses_nothing(dtype):
    import cv2

    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (5, 7, 4)).astype(dtype)
    content = cv2.imencode(".png", pixels)[1].tobytes()
    assert Turning(resize)(io.BytesIO(content), [1]) == (content, [1])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    header = content.index(b"IHDR") + 4 + 13 + 4
    said = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    turned, _ = Turning(resize)(io.BytesIO(content[:header] + said + content[header:]), [1])
    found = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found.dtype == dtype and np.array_equal(found, upright(pixels, 6))


def test_a_picture_that_cannot_be_decoded_is_the_resizers_matter():
    content = stored("PNG", 6)
    content = content[: content.index(b"IDAT") + 4]
    assert orientation(content) == 6
    assert Turning(resize)(io.BytesIO(content)) == (content, None)
