"""An AVIF's coded size is read before it is decoded, and what says another is refused."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests.faults.pictures import encoded, lying_avif
from tests.planted import picture
from transforms.store import avif
from transforms.store.pictures import MAX_PIXELS, decode, opened


def saved(width, height, mode="RGB", **options):
    return encoded(Image.fromarray(picture(1, width, height)).convert(mode), "AVIF", **options)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 64), (101, 77), (640, 1000), (5000, 300)])
@pytest.mark.parametrize(
    "options", [{}, {"speed": 10}, {"quality": 100, "subsampling": "4:4:4"}, {"tile_rows": 1, "tile_cols": 1}]
)
def test_what_an_encoder_makes_says_what_it_holds(size, options):
    for mode in ("RGB", "RGBA", "L"):
        content = saved(*size, mode, **options)
        found = list(avif.sizes(content))
        assert found and set(found) == {(size, size)}
        assert decode(content).size == size


def test_a_picture_of_several_frames_says_what_it_holds():
    frames = [Image.fromarray(picture(number, 40, 30)) for number in range(3)]
    content = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert set(avif.sizes(content)) <= {((40, 30), (40, 30))} and decode(content).size == (40, 30)


@pytest.mark.parametrize("said", [(64, 64), (2000, 1600), (1000, 800)])
def test_one_that_says_another_size_is_refused(said):
    content = saved(1000, 800)
    place = content.index(b"ispe") + 8
    changed = content[:place] + struct.pack(">II", *said) + content[place + 8 :]
    if said == (1000, 800):
        assert opened(changed).size == said
    else:
        with pytest.raises(ValueError, match=rf"an AVIF that says {said[0]} x {said[1]} pixels and holds 1000 x 800"):
            opened(changed)


def test_what_it_holds_is_known_before_it_is_decoded():
    content = lying_avif(9000)
    assert MAX_PIXELS < 9000 * 9000
    with pytest.raises(ValueError, match="says 64 x 64 pixels and holds 9000 x 9000"):
        opened(content)


def test_a_header_of_many_parts_is_read():
    """As of a video: timing, a decoder model and two operating points stand before the size."""
    bits = "000" + "0" + "0"  # profile, no still picture, not reduced
    bits += "1" + f"{1:032b}{30:032b}" + "1" + "001" + "01"  # timing; the last is a number of variable length
    bits += "1" + f"{9:05b}{1:032b}{9:05b}{9:05b}" + "1" + f"{1:05b}"  # decoder model, display delay, two points
    for level in (5, 9):
        bits += f"{1:012b}{level:05b}" + ("1" if level > 7 else "") + "1" + "0" * 21 + "1" + "0011"
    bits += f"{9:04b}{8:04b}{639:010b}{359:09b}" + "0" * 40
    content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert avif._of_sequence_header(content) == (640, 360)
    assert list(avif._coded(b"\x12\x00\x0a" + bytes([len(content)]) + content)) == [(640, 360)]
    assert avif._of_sequence_header(content[:8]) is None


def test_whatever_bytes_come_it_ends():
    content, random = saved(120, 90), np.random.default_rng(0)
    head = content.index(b"mdat")
    for _ in range(2000):
        changed = bytearray(content)
        for place in random.integers(0, head + 40, random.integers(1, 6)):
            changed[place] = random.integers(256)
        cut = changed[: random.integers(1, len(changed))] if random.random() < 0.3 else changed
        assert len(list(avif.sizes(bytes(cut)))) < 1000
