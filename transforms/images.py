"""Pictures as bytes and as numbers, and where a sample's picture lies in the lake."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from transforms.lake import Lake, open_parquet, read_parquet

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
        with warnings.catch_warnings():
            # Pillow only warns between its limit and twice its limit; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
        picture.load()
        return _as_rgb(picture)
    # Pillow's plugins raise these, and more kinds than one would think, for bytes that are no picture.
    except (OSError, SyntaxError, TypeError, ValueError, EOFError, IndexError, OverflowError) as error:
        raise ValueError(f"cannot decode the picture: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot decode the picture: {error}") from error


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
