"""What cameras note as EXIF orientation: against Pillow's exif_transpose, for each of its values and formats."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from transforms.data.orientation import ORIENTATION, orientation, upright

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
