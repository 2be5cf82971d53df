"""Pictures as bytes and as numbers, and where a sample's picture lies in the lake."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from transforms.kernels.thumbnails import SIDE

# Pillow only warns between its limit and twice its limit; ours is checked when a picture is opened. Said once: filters are the
# process's, and threads decode pictures.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

MAX_PIXELS = 64_000_000
"""A stored picture with more pixels than this is refused before it is decoded: a few bytes can claim gigabytes."""


def decode(content: bytes) -> Image.Image:
    """An encoded picture as RGB.

    Args:
        content: jpg, png, webp or whatever else Pillow reads; gray, palette, 16 bit, CMYK, with or without alpha.

    Returns:
        an RGB picture, loaded. What is transparent shows white, as a browser would.

    Raises:
        ValueError: for what can't be decoded, with the reason.
    """
    try:
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
        picture.load()
        return _as_rgb(picture)
    except UnidentifiedImageError as error:
        # Pillow's own text has an address in memory, and a reason that differs from run to run is no fact.
        raise ValueError("cannot decode the picture: it has no format that Pillow knows") from error
    # Pillow's plugins raise these, and more kinds than one would think, for bytes that are no picture.
    except (OSError, SyntaxError, TypeError, ValueError, EOFError, IndexError, OverflowError) as error:
        raise ValueError(f"cannot decode the picture: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot decode the picture: {error}") from error


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
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow clips 16-bit gray at 255 where it should scale.
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode != "F" and values.max(initial=0) > 255:
            values = values / 257
        picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
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
