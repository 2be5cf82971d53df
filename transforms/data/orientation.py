"""Pictures the right way up: what a camera notes as EXIF orientation, and whoever trains on a folder applies."""

from __future__ import annotations

import io

import numpy as np

ORIENTATION = 0x0112
"""EXIF's tag: 1 for a picture that stands as it is stored, 2 to 8 for one that doesn't."""


def orientation(content: bytes) -> int:
    """What a picture's header says of its orientation, 1 to 8; 1 where it says nothing or can't be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            # TIFF is turned by its decoder. Other formats' EXIF is looked at where it stands in front of the pixels: Pillow
            # would decode a whole PNG to find it behind them.
            if picture.format == "TIFF" or "exif" not in picture.info:
                return 1
            said = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything here, and the decoder will tell what is wrong
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def upright(pixels: np.ndarray, said: int) -> np.ndarray:
    """(H, W, …) as it is stored → as ``said`` by its EXIF orientation, (W, H, …) from 5 on."""
    if said >= 5:
        pixels = pixels.swapaxes(0, 1)
    if said in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if said in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
