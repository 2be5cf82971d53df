"""Hostile and unusual pictures, made by code: what each is, and what must become of it.

As a command it stores each in turn, as ``ingest`` does, and prints a line of JSON for each: what became of it, in how many
seconds, and the largest memory of any process until then.

  python -m tests.faults.pictures [--quick | NAME…]
"""

# ruff: noqa: E501 - a table has a line for each

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SEED = 16
FORMATS_READ = "no format that is read here"


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A picture.

    Attributes:
        name: says what it is.
        make: its bytes.
        becomes: a part of the reason why it isn't stored, or the mean level that is stored, or None: either will do.
        slow: it takes seconds to make, or gigabytes if nothing stops it.
    """

    name: str
    make: Callable[[], bytes]
    becomes: str | float | None
    slow: bool = False


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def scene(width: int = 80, height: int = 60) -> Image.Image:
    """Soft colours whose mean level is 116, or near it."""
    colours = np.random.default_rng(SEED).integers(30, 200, (6, 8, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((pixels + 116 - pixels.mean()).clip(0, 255).round().astype(np.uint8))


# -- PNG by hand ------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, depth: int, colour: int, rows: Iterator[bytes] | None, *, interlace: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG of these rows, each with its filter byte; without any it only claims to be one."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for row in rows or ()) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def flat_png(width: int, height: int, depth: int = 8, colour: int = 6, value: int = 0x74, interlace: int = 0) -> bytes:
    """A PNG of one level in all channels; a row of 16 bits repeats it in both bytes."""
    row = b"\0" + bytes([value]) * (width * CHANNELS[colour] * depth // 8)
    rows = (row for _ in range(height))
    if interlace:
        # Of seven passes the rows are shorter; a stream that is too long is forgiven.
        rows = (row for _ in range(2 * height))
    return png(width, height, depth, colour, rows, interlace=interlace)


def deep_png(colour: int) -> bytes:
    """The scene with 16 bits a channel."""
    pixels = np.asarray(scene().convert({0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[colour]), np.uint16).reshape(60, 80, -1) * 257
    rows = (b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(80, 60, 16, colour, rows)


# -- TIFF by hand -----------------------------------------------------------------------------------------------------

SHORT, LONG = 3, 4


def tiff(
    pixels: bytes, tags: list[tuple[int, int, int | list[int]]], big_endian: bool = False, next_ifd: int | None = None
) -> bytes:
    """A TIFF of one strip; tags as they are given, in that order, beside where the strip lies."""
    order = ">" if big_endian else "<"
    start = 8 + len(pixels) + len(pixels) % 2
    all_tags = [*tags, (273, LONG, 8), (279, LONG, len(pixels))]
    beyond = start + 2 + 12 * len(all_tags) + 4
    entries, tail = b"", b""
    for tag, kind, value in all_tags:
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(packed) > 4:
            entries += struct.pack(f"{order}HHII", tag, kind, len(values), beyond + len(tail))
            tail += packed
        else:
            entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"MM" if big_endian else b"II") + struct.pack(f"{order}HI", 42, start)
    body = pixels + b"\0" * (len(pixels) % 2)
    return head + body + struct.pack(f"{order}H", len(all_tags)) + entries + struct.pack(f"{order}I", next_ifd or 0) + tail


def tags_of(
    width: int, height: int, bits: int | list[int] = 8, photometric: int = 1, form: int = 1, compression: int = 1
) -> list:
    samples = len(bits) if isinstance(bits, list) else 1
    return [
        (256, LONG, width), (257, LONG, height), (258, SHORT, bits), (259, SHORT, compression), (262, SHORT, photometric),
        (277, SHORT, samples), (278, LONG, height), (339, SHORT, [form] * samples),
    ]  # fmt: skip


def gray() -> np.ndarray:
    return np.asarray(scene().convert("L"))


def number_tiff(kind: str, scale: float, form: int, bits: int, **tags: int) -> bytes:
    """The gray scene as numbers of a kind, times ``scale``."""
    pixels = (gray().astype(np.float64) * scale).astype(kind).tobytes()
    return tiff(pixels, tags_of(80, 60, bits, form=form, **tags), big_endian=kind.startswith(">"))


def two_sizes(side: int, rows: int = 64) -> bytes:
    """A TIFF that says two sizes, a large one that libtiff takes and a small one that Pillow takes; with so many rows."""
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(b"\x74" * side) for _ in range(rows)) + packer.flush()
    tags = tags_of(side, side, compression=8)
    return tiff(pixels, [*tags[:2], (256, LONG, 64), (257, LONG, 64), *tags[2:]])


def chained_tiff(pages: int) -> bytes:
    return encoded(scene(8, 8), "TIFF", save_all=True, append_images=[scene(8, 8)] * (pages - 1))


# -- JPEG by hand -----------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def many_scans(scans: int, side: int = 4096) -> bytes:
    """A progressive JPEG whose scans say, in a few bytes each, that nothing changes anywhere."""
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    quantisers = segment(0xDB, b"\0" + b"\x10" * 64)
    # A single code of one bit each: of DC no difference, of AC 16,384 blocks and more without a coefficient.
    codes = segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0") + segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    blocks = (side // 8) ** 2
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8 + 1)
    runs = "".join("0" + "1" * 14 for _ in range(blocks // 32767)) + "0" + f"{max(0, blocks % 32767 - 16384):014b}"
    runs += "1" * (-len(runs) % 8)
    packed = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    another = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + packed
    return b"\xff\xd8" + frame + quantisers + codes + first + another * scans + b"\xff\xd9"


def jpeg(**options: object) -> bytes:
    return encoded(scene(), "JPEG", quality=95, **options)


def with_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame claims another size."""
    place = next(content.index(bytes([0xFF, marker])) for marker in (0xC0, 0xC2) if bytes([0xFF, marker]) in content)
    return content[: place + 5] + struct.pack(">HH", height, width) + content[place + 9 :]


def with_frame_twice() -> bytes:
    content = jpeg()
    place = content.index(b"\xff\xc0")
    length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    large = content[place : place + 5] + struct.pack(">HH", 60000, 60000) + content[place + 9 : place + length]
    return content[:place] + large + content[place:]


def with_marker(content: bytes, old: int, new: int) -> bytes:
    return content.replace(bytes([0xFF, old]), bytes([0xFF, new]), 1)


# -- other formats ----------------------------------------------------------------------------------------------------


def lying_avif(side: int) -> bytes:
    """An AVIF that says 64 × 64 pixels where the picture inside has more."""
    content = encoded(Image.new("RGB", (side, side), (116, 116, 116)), "AVIF", speed=10, quality=10)
    place = content.index(b"ispe") + 8
    return content[:place] + struct.pack(">II", 64, 64) + content[place + 8 :]


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF of one frame that ends after a pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, body: bytes = b"") -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 2835, 2835, 0, 0)
    palette = bytes(1024) if bits == 8 else b""
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def frames(kind: str, count: int) -> bytes:
    pictures = [Image.new("RGB", (32, 32), (number % 256, 116, 116)) for number in range(count)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n(/tmp/eidetic-was-here) (w) file closefile\nshowpage\n"


def noise(length: int, begins: bytes = b"") -> bytes:
    return begins + np.random.default_rng(SEED).bytes(length)


def flipped(content: bytes, bits: int) -> bytes:
    """With so many bits turned over, anywhere after the header."""
    changed = bytearray(content)
    for place in np.random.default_rng(SEED).integers(40, len(content), bits):
        changed[place] ^= 1 << int(place) % 8
    return bytes(changed)


def see_through() -> Image.Image:
    picture = scene().convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))))
    return picture


def on_paper() -> float:
    """The mean level of ``see_through`` over white."""
    pixels = np.asarray(see_through(), np.float64)
    alpha = pixels[..., 3:] / 255
    return float((pixels[..., :3] * alpha + 255 * (1 - alpha)).mean())


PIXELS, LONG_SIDES = "pixels", "more than 16 : 1"

PICTURES = [
    # Memory and time, with few bytes.
    Hostile("PNG, RGBA, 7000 x 7000", lambda: flat_png(7000, 7000), None, slow=True),
    Hostile("PNG, RGBA of 16 bits, 7000 x 7000", lambda: flat_png(7000, 7000, 16), None, slow=True),
    Hostile("PNG, RGB of 16 bits, 7000 x 7000", lambda: flat_png(7000, 7000, 16, 2), 116.0, slow=True),
    Hostile("PNG, gray of 16 bits, 7000 x 7000", lambda: flat_png(7000, 7000, 16, 0), 116.0, slow=True),
    Hostile("PNG, gray and alpha, 7000 x 7000", lambda: flat_png(7000, 7000, 8, 4), None, slow=True),
    Hostile("PNG, RGBA of 16 bits in seven passes, 5000 x 5000", lambda: flat_png(5000, 5000, 16, 6, interlace=1), None, slow=True),
    Hostile("PNG that claims 100,000 x 100,000", lambda: png(100_000, 100_000, 8, 2, None), PIXELS),
    Hostile("PNG that claims 2^31 - 1 x 1", lambda: png(2**31 - 1, 1, 8, 0, None), None),
    Hostile("PNG that claims 7000 x 7000 and has nothing", lambda: png(7000, 7000, 16, 6, None), None),
    Hostile("PNG, 65,500 x 1", lambda: flat_png(65_500, 1, 8, 0), LONG_SIDES),
    Hostile("PNG, 1 x 65,500", lambda: flat_png(1, 65_500, 8, 0), LONG_SIDES),
    Hostile("PNG, 2000 x 1", lambda: flat_png(2000, 1, 8, 2), LONG_SIDES),
    Hostile("PNG, 728 x 90", lambda: encoded(scene(728, 90), "PNG"), 116.0),
    Hostile("PNG, 1 x 1", lambda: flat_png(1, 1, 8, 2), 116.0),
    Hostile("PNG with 200 MB of text", lambda: png(8, 8, 8, 0, (b"\0" + b"t" * 8 for _ in range(8)), extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))), None, slow=True),
    Hostile("PNG with 200 MB of colour profile", lambda: png(8, 8, 8, 0, (b"\0" + b"t" * 8 for _ in range(8)), extra=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))), None, slow=True),
    Hostile("PNG of more pixels than it claims", lambda: png(8, 8, 8, 0, (b"\0" + b"t" * 8 for _ in range(1_000_000))), None),
    Hostile("PNG of 3000 frames", lambda: frames("PNG", 3000), None, slow=True),
    Hostile("TIFF of two sizes, 28,000 and 64", lambda: two_sizes(28_000), "cannot decode"),
    Hostile("TIFF of two sizes, with all rows of the large one", lambda: two_sizes(28_000, 28_000), "cannot decode", slow=True),
    Hostile("TIFF of two sizes, 64 and 28,000", lambda: tiff(b"", [*tags_of(64, 64), (256, LONG, 28_000), (257, LONG, 28_000)]), "cannot decode"),
    Hostile("TIFF, RGBA of 16 bits, 7000 x 7000, deflated", lambda: tiff(zlib.compress(b"\x74" * (7000 * 7000 * 8), 9), [*tags_of(7000, 7000, [16] * 4, 2, compression=8), (338, SHORT, 2)]), None, slow=True),
    Hostile("TIFF of 4000 pages", lambda: chained_tiff(4000), None, slow=True),
    Hostile("TIFF whose directory follows itself", lambda: (lambda made: tiff(gray().tobytes(), tags_of(80, 60), next_ifd=int.from_bytes(made[4:8], "little")))(tiff(gray().tobytes(), tags_of(80, 60))), None),
    Hostile("TIFF of tiles of 60,000 x 60,000", lambda: tiff(zlib.compress(bytes(1 << 20)), [*tags_of(64, 64, compression=8), (322, LONG, 60_000), (323, LONG, 60_000), (324, LONG, 8), (325, LONG, 1000)]), None),
    Hostile("TIFF of a strip of 4 GB", lambda: tiff(gray().tobytes(), [*tags_of(80, 60)[:-2], (278, LONG, 2**32 - 1), (279, LONG, 2**32 - 1)]), None),
    Hostile("TIFF of LZW noise", lambda: tiff(noise(4000), tags_of(80, 60, compression=5)), None),
    Hostile("JPEG of 20,000 scans", lambda: many_scans(20_000), "more than 100 scans"),
    Hostile("JPEG of 90 scans, 7000 x 7000", lambda: many_scans(90, 7000 // 8 * 8), None, slow=True),
    Hostile("JPEG that claims 65,500 x 700", lambda: with_size(jpeg(), 65_500, 700), LONG_SIDES),
    Hostile("JPEG that claims 7000 x 7000", lambda: with_size(jpeg(), 7000, 7000), None, slow=True),
    Hostile("progressive JPEG that claims 7000 x 7000", lambda: with_size(jpeg(progressive=True, subsampling=0), 7000, 7000), None, slow=True),
    Hostile("JPEG that claims 60,000 x 60,000", lambda: with_size(jpeg(), 60_000, 60_000), PIXELS),
    Hostile("JPEG without height", lambda: with_size(jpeg(), 80, 0), None),
    Hostile("JPEG of two frames", with_frame_twice, "cannot decode"),
    Hostile("JPEG, arithmetically coded, it says", lambda: with_marker(jpeg(), 0xC0, 0xC9), None),
    Hostile("JPEG, lossless, it says", lambda: with_marker(jpeg(), 0xC0, 0xC3), "cannot decode"),
    Hostile("JPEG, cut in half", lambda: jpeg()[: len(jpeg()) // 2], None),
    Hostile("JPEG of flipped bits", lambda: flipped(jpeg(), 20), None),
    Hostile("WebP, lossless, 16,383 x 3000", lambda: encoded(Image.new("RGBA", (16_383, 3000), (116, 116, 116, 255)), "WEBP", lossless=True, quality=0, method=0), None, slow=True),
    Hostile("WebP of 500 frames", lambda: frames("WEBP", 500), None, slow=True),
    Hostile("WebP of flipped bits", lambda: flipped(encoded(scene(), "WEBP"), 20), None),
    Hostile("AVIF that lies, 6000 x 6000", lambda: lying_avif(6000), "an AVIF that says 64 x 64 pixels and holds 6000 x 6000"),
    Hostile("AVIF that lies", lambda: lying_avif(1000), "an AVIF that says 64 x 64 pixels"),
    Hostile("AVIF, cut", lambda: encoded(scene(), "AVIF")[:200], "cannot decode"),
    Hostile("GIF, screen of 65,535 x 65,535", lambda: gif((65_535, 65_535), (1, 1)), PIXELS),
    Hostile("GIF, frame larger than its screen", lambda: gif((8, 8), (65_535, 65_535)), None),
    Hostile("GIF of 2000 frames", lambda: frames("GIF", 2000), None, slow=True),
    Hostile("BMP that claims 7000 x 7000", lambda: bmp(7000, 7000), None),
    Hostile("BMP that claims -2^31 rows", lambda: bmp(80, -(2**31)), None),
    Hostile("BMP, run lengths, 7000 x 7000", lambda: bmp(7000, 7000, 8, 1, b"\xff\x74" * 1000 + b"\0\x01"), None),
    Hostile("JPEG 2000, flipped", lambda: flipped(encoded(scene(), "JPEG2000"), 30), None),
    Hostile("JPEG 2000 that claims 60,000 x 60,000", lambda: encoded(scene(), "JPEG2000").replace(struct.pack(">II", 60, 80), struct.pack(">II", 60_000, 60_000)), None),
    Hostile("PPM that claims 7000 x 7000", lambda: b"P6 7000 7000 255\n", "cannot decode"),
    Hostile("PPM of words, 1600 x 1600", lambda: b"P3 1600 1600 255\n" + b"116 " * 8_000_000, None, slow=True),
    Hostile("PPM of endless digits", lambda: b"P3 " + b"9" * 1_000_000, "cannot decode"),
    # What is no picture, or none that is opened.
    Hostile("EPS called .png", eps, FORMATS_READ),
    Hostile("SVG", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', FORMATS_READ),
    Hostile("PDF", lambda: b"%PDF-1.7\n1 0 obj <</OpenAction (x)>> endobj", FORMATS_READ),
    Hostile("PSD", lambda: noise(400, b"8BPS\0\x01"), FORMATS_READ),
    Hostile("ICO", lambda: encoded(scene(32, 32), "ICO"), FORMATS_READ),
    Hostile("FITS", lambda: b"SIMPLE  =                    T".ljust(2880), FORMATS_READ),
    Hostile("XBM", lambda: b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0};", FORMATS_READ),
    Hostile("page", lambda: b"<!doctype html><title>not found</title>", FORMATS_READ),
    Hostile("nothing", lambda: b"", FORMATS_READ),
    Hostile("zeros", lambda: bytes(4096), FORMATS_READ),
    Hostile("noise", lambda: noise(4096), FORMATS_READ),
    Hostile("noise after the first bytes of a PNG", lambda: noise(4096, b"\x89PNG\r\n\x1a\n"), None),
    Hostile("noise after the first bytes of a TIFF", lambda: noise(4096, b"II*\0\x08\0\0\0"), None),
    Hostile("noise after the first bytes of a WebP", lambda: noise(4096, b"RIFF\0\x10\0\0WEBPVP8L"), None),
    # What is stored looks like what was sent.
    Hostile("PNG, gray of 16 bits", lambda: deep_png(0), 116.0),
    Hostile("PNG, RGB of 16 bits", lambda: deep_png(2), 116.0),
    Hostile("PNG, gray of 16 bits with alpha", lambda: png(80, 60, 16, 4, (b"\0" + b"".join(struct.pack(">HH", int(v) * 257, 65535) for v in row) for row in gray())), 116.0),
    Hostile("PNG, RGBA of 16 bits", lambda: png(80, 60, 16, 6, (b"\0" + np.dstack([np.asarray(scene().crop((0, y, 80, y + 1)), np.uint16) * 257, np.full((1, 80, 1), 65535, np.uint16)]).astype(">u2").tobytes() for y in range(60))), 116.0),
    Hostile("PNG, dark gray of 16 bits", lambda: png(8, 8, 16, 0, (b"\0" + struct.pack(">8H", *[200] * 8) for _ in range(8))), 1.0),
    Hostile("PNG, gray of one bit", lambda: encoded(Image.new("1", (8, 8), 1), "PNG"), 255.0),
    Hostile("PNG, palette", lambda: encoded(scene().quantize(64), "PNG"), 116.0),
    Hostile("PNG, see-through", lambda: encoded(see_through(), "PNG"), on_paper()),
    Hostile("PNG, gray with a see-through level", lambda: encoded(Image.new("L", (8, 8), 90), "PNG", transparency=90), 255.0),
    Hostile("TIFF, see-through", lambda: encoded(see_through(), "TIFF"), on_paper()),
    Hostile("TIFF, gray of 16 bits", lambda: number_tiff("<u2", 257, 1, 16), 116.0),
    Hostile("TIFF, gray of 16 bits, the other way round", lambda: number_tiff(">u2", 257, 1, 16), 116.0),
    Hostile("TIFF, gray of 16 bits, white is zero", lambda: number_tiff("<u2", 257, 1, 16, photometric=0), 139.0),
    Hostile("TIFF, RGB of 16 bits", lambda: tiff((np.asarray(scene(), np.uint16) * 257).astype("<u2").tobytes(), tags_of(80, 60, [16] * 3, 2)), 116.0),
    Hostile("TIFF, floats to 1", lambda: number_tiff("<f4", 1 / 255, 3, 32), 116.0),
    Hostile("TIFF, floats to 255", lambda: number_tiff("<f4", 1, 3, 32), 116.0),
    Hostile("TIFF, floats to 65,535", lambda: number_tiff("<f4", 257, 3, 32), "expected 0 to 1"),
    Hostile("TIFF, no numbers", lambda: number_tiff("<f4", float("nan"), 3, 32), "expected 0 to 1"),
    Hostile("TIFF, integers of 32 bits", lambda: number_tiff("<i4", 2**22, 2, 32), "don't say what is white"),
    Hostile("TIFF, signed integers of 16 bits", lambda: number_tiff("<i2", 100, 2, 16), "don't say what is white"),
    Hostile("TIFF, RGB floats", lambda: tiff((np.asarray(scene(), np.float32) / 255).tobytes(), tags_of(80, 60, [32] * 3, 2, 3)), FORMATS_READ),
    Hostile("TIFF, CMYK", lambda: encoded(scene().convert("CMYK"), "TIFF"), 116.0),
    Hostile("JPEG, CMYK", lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95), 116.0),
    Hostile("JPEG, gray", lambda: encoded(scene().convert("L"), "JPEG"), 116.0),
    Hostile("PGM of 16 bits", lambda: b"P5 80 60 65535\n" + (gray().astype(">u2") * 257).tobytes(), 116.0),
    Hostile("PFM", lambda: b"Pf\n80 60\n-1.0\n" + (gray().astype("<f4") / 255).tobytes(), 116.0),
    Hostile("GIF, see-through", lambda: encoded(Image.new("P", (8, 8), 0), "GIF", transparency=0), 255.0),
    Hostile("AVIF", lambda: encoded(scene(), "AVIF", quality=90), 116.0),
    Hostile("JPEG 2000, gray of 16 bits", lambda: encoded(Image.fromarray(gray().astype(np.uint16) * 257), "JPEG2000"), 116.0),
]  # fmt: skip


def mean_level(content: bytes) -> float:
    """The mean of a picture's channels as RGB."""
    return float(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).mean())


def peak(who: int) -> int:
    """The largest memory of this process, or of any that it waited for, in bytes."""
    return resource.getrusage(who).ru_maxrss * 1024


def peak_of_child() -> int:
    """The same of a process that isn't waited for yet; 0 where there is none."""
    most = 0
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        for child in file.read().split():
            with open(f"/proc/{child}/status") as status:
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
            most = max(most, int(found[1]) * 1024 if found else 0)
    return most


def store(pictures: list[Hostile], seconds: float, alone: bool) -> Iterator[dict]:
    """What becomes of each, stored as ``ingest`` does by default; ``alone``: each has a process of its own."""
    from transforms.data.resizing import ConfinedResizer, Fetched, Storage

    resizer = ConfinedResizer(Storage(512, "keep_ratio", False, "png", 1), 50_000_000, 16)
    for one in pictures:
        content = one.make()
        before = peak(resource.RUSAGE_SELF)
        begun = time.monotonic()
        image, *sizes, reason = resizer(Fetched(content, seconds))
        took = time.monotonic() - begun
        grown = peak(resource.RUSAGE_SELF) - before
        if alone:
            resizer.end()  # so that its memory is counted
        yield {
            "name": one.name,
            "bytes": len(content),
            "seconds": round(took, 2),
            "grown": grown,
            "decoder": max(peak(resource.RUSAGE_CHILDREN), peak_of_child()),
            "sizes": sizes,
            "mean": None if image is None else mean_level(image),
            "reason": reason,
        }


def quick() -> list[Hostile]:
    return [one for one in PICTURES if not one.slow]


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = quick() if words == ["--quick"] else [one for one in PICTURES if one.name in words or not words]
    for found in store(chosen, 10.0, alone=words != ["--quick"]):
        print(json.dumps(found), flush=True)
