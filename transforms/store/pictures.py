"""Pictures as bytes and as numbers, and where a sample's picture lies in the lake."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from transforms.kernels.distances import MAX_ASPECT_RATIO
from transforms.kernels.thumbnails import SIDE
from transforms.store import avif
from transforms.store.confined import Confined, Exceeded

# Pillow only warns between its limit and twice its limit; ours is checked when a picture is opened. Said once: filters are the
# process's, and threads decode pictures.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

MAX_PIXELS = 64_000_000
"""A stored picture with more pixels than this is refused before it is decoded: a few bytes can claim gigabytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""The formats that are opened, whatever a file is called; Pillow's names. All else is refused unread: among the rest are
some for which Pillow starts other programs (EPS starts Ghostscript), and many that nobody has tried to attack yet."""

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II\*\0|MM\0\*|II\+\0|MM\0\+|....ftypavi[fs]"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|P[1-6fF]\s",
    re.DOTALL,
)

LONGEST_MAGIC = 12
"""Bytes that ``begins_like_a_picture`` looks at."""


def begins_like_a_picture(content: bytes) -> bool:
    """Whether bytes begin as a file in one of ``FORMATS`` does."""
    return _MAGIC.match(content) is not None


MAX_SCANS = 100
"""A JPEG with more scans is refused. Encoders make ten; each costs a pass over all pixels, and 20,000 fit into a small file."""

_BAND_PIXELS = 1 << 22
"""Pixels that are converted at once: what is between the formats takes many times what a picture does."""


def opened(content: bytes, max_pixels: int | None = None) -> Image.Image:
    """An encoded picture, with its header read and nothing decoded.

    Args:
        content: one of ``FORMATS``.
        max_pixels: that it may have; ``MAX_PIXELS`` unless said.

    Raises:
        ValueError: for what can't be opened or is too large, with the reason.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        # Pillow's own text has an address in memory, and a reason that differs from run to run is no fact.
        raise NoPicture(f"cannot decode the picture: it has no format that is read here ({', '.join(FORMATS)})") from error
    except (*_FAULTS, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode the picture: {error}") from error
    if picture.width * picture.height > most:
        raise ValueError(f"cannot decode the picture: {picture.width} x {picture.height} pixels are more than {most:,}")
    if picture.format == "AVIF":
        for said, coded in avif.sizes(content):
            if coded != said:
                held = f"says {said[0]} x {said[1]} pixels and holds {coded[0]} x {coded[1]}"
                raise ValueError(f"cannot decode the picture: an AVIF that {held}")
    if picture.format in ("JPEG", "MPO") and has_too_many_scans(content):
        raise ValueError(f"cannot decode the picture: a JPEG of more than {MAX_SCANS} scans")
    return picture


class NoPicture(ValueError):
    """What is in no format that is read here: no picture, or one of another kind."""


# Pillow's plugins raise these, and more kinds than one would think, for bytes that are no picture.
_FAULTS = (OSError, SyntaxError, TypeError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error)


def decode(content: bytes, max_pixels: int | None = None) -> Image.Image:
    """An encoded picture as RGB.

    Args:
        content: one of ``FORMATS``; gray, palette, 16 bit, CMYK, with or without alpha.
        max_pixels: that it may have; ``MAX_PIXELS`` unless said.

    Returns:
        an RGB picture, loaded. What is transparent shows white, as a browser would; 16 bits a channel are scaled to 8, and so
        are floating-point samples from 0 to 1.

    Raises:
        ValueError: for what can't be decoded, with the reason. What has no scale (floating-point samples over 255, integers of
            32 bits) can't be.
    """
    picture = opened(content, max_pixels)
    try:
        picture.load()
        return _as_rgb(picture)
    except _FAULTS as error:
        if str(error) == f"decoder error {_OUT_OF_MEMORY}":
            raise MemoryError from error
        raise ValueError(f"cannot decode the picture: {error}") from error


_OUT_OF_MEMORY = -9
"""What decoders in C, libtiff among them, tell Pillow."""


def memory_to_decode(pixels: int) -> int:
    """Bytes that a process may need to decode so many pixels, beyond what it has: the picture, and the most frugal way there.

    Six bytes a pixel are a picture of four channels and its three as RGB, less what goes on beside; or a progressive JPEG's
    coefficients and its three.
    """
    return (256 << 20) + 6 * pixels


def decode_raw(content: bytes) -> tuple[bytes, dict[str, int]]:
    """``decode`` in the form of ``confined.Confined``: the pixels, and how many there are."""
    picture = decode(content)
    return picture.tobytes(), {"width": picture.width, "height": picture.height}


def raw_decoder() -> Callable[[bytes], tuple[bytes, dict[str, int]]]:
    """``decode_raw``, with all of Pillow imported that it needs: what that takes is not the pictures'."""
    Image.init()
    return decode_raw


def decode_stranger(content: bytes) -> np.ndarray:
    """``decode`` for what others made, in a process that has a limit of memory and time: (H, W, 3) uint8.

    Raises:
        ValueError: for what can't be decoded within those, with the reason.
    """
    try:
        pixels, size = _strangers(content, STRANGERS_SECONDS)
    except Exceeded as error:
        raise ValueError(f"cannot decode the picture: {error}") from error
    return np.frombuffer(pixels, np.uint8).reshape(size["height"], size["width"], 3)


STRANGERS_SECONDS = 30.0
"""For one picture that somebody brings."""

_strangers = Confined("transforms.store.pictures:raw_decoder", memory=memory_to_decode(MAX_PIXELS))


def has_too_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more than ``MAX_SCANS``."""
    # What begins a scan stands nowhere in its pixels; it may in a thumbnail, or in what follows the picture.
    if content.count(b"\xff\xda") <= MAX_SCANS:
        return False
    place, scans = 2, 0
    while found := _MARKER.search(content, place):
        marker, place = found.group()[-1], found.end()
        if marker == 0xD9 or scans > MAX_SCANS:
            break
        scans += marker == 0xDA
        if marker != 0x01:  # the others that have no length are no end of a run of pixels
            place += int.from_bytes(content[place : place + 2], "big")
    return scans > MAX_SCANS


_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd8]")


class DamagedPicture(ValueError):
    """A picture of the lake that can't be decoded or compared: changed since it was stored, or stored without limits."""


def stored_array(content: bytes) -> np.ndarray:
    """A picture of the lake as (H, W, 3) uint8: the one place where those that are compared are read.

    Raises:
        DamagedPicture: for what can't be decoded, or has sides that differ by more than ``MAX_ASPECT_RATIO``.
    """
    try:
        picture = decode_array(content)
    except ValueError as error:
        raise DamagedPicture(str(error)) from error
    height, width = picture.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DamagedPicture(f"{width} x {height} pixels are more than {MAX_ASPECT_RATIO:g} : 1")
    return picture


def decode_array(content: bytes) -> np.ndarray:
    """The same as (H, W, 3) uint8: plain JPEG by OpenCV, whose decoder is Pillow's, and which threads can use side by side."""
    if _is_plain_jpeg(content):
        import cv2

        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is not None:
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return to_array(decode(content))


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether these are bytes of a JPEG of three colours, none of Adobe's spaces, and no more than ``MAX_PIXELS``."""
    # One that is cut short is Pillow's matter, which refuses it.
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
        return False
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[place + at : place + at + 2], "big") for at in (5, 7))
            return content[place + 9] == 3 and 0 < height * width <= MAX_PIXELS
        if marker in (0xDA, 0xEE):
            return False
        place += 2 + length
    return False


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    white = _white_level(picture)
    rows = max(1, _BAND_PIXELS // picture.width)
    if rows >= picture.height:
        return _band_as_rgb(picture, white)
    made = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        made.paste(_band_as_rgb(picture.crop((0, top, picture.width, bottom)), white), (0, top))
    return made


def _white_level(picture: Image.Image) -> float | None:
    """The sample that is white, where a picture has others than bytes; negative where it is black, and 0 white."""
    if picture.mode.startswith("I;16"):
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        white = float((1 << (bits[0] if isinstance(bits, tuple) else bits)) - 1)
        return -white if tags.get(_PHOTOMETRIC) == 0 else white
    if picture.mode == "I":
        if picture.format != "PPM":
            raise ValueError("integers of 32 bits, or signed ones, which don't say what is white")
        return 65535.0
    if picture.mode == "F":
        values = np.asarray(picture)
        least, most = float(values.min()), float(values.max())
        if not 0 <= least <= most <= 255:  # nor is what is no number
            raise ValueError(f"floating-point samples from {least:g} to {most:g}, expected 0 to 1")
        return 1.0 if most <= 1 else 255.0
    return None


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


def _band_as_rgb(picture: Image.Image, white: float | None) -> Image.Image:
    if white is not None:
        # Pillow clips at 255 where it should scale.
        values = np.asarray(picture, dtype=np.float64) * (255 / abs(white))
        levels = values.clip(0, 255).round().astype(np.uint8)
        picture = Image.fromarray(255 - levels if white < 0 else levels)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return picture.convert("RGB")


def thumbnail(picture: Image.Image | np.ndarray) -> bytes:
    """A tiny picture of ``kernels.thumbnails``: 8 × 8 RGB, row by row, each pixel the mean of its share of the picture."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def to_array(picture: Image.Image) -> np.ndarray:
    """An RGB picture as (H, W, 3) uint8."""
    return np.asarray(picture, dtype=np.uint8)


def encode_png(picture: Image.Image | np.ndarray) -> bytes:
    """An RGB picture, or (H, W, 3) uint8, as PNG: nothing is lost."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture of {picture.dtype} {picture.shape}, expected uint8 (H, W, 3)")
        picture = Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
