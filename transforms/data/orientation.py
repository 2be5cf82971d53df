"""Pictures the right way up: what a camera notes as EXIF orientation, and whoever trains on a folder applies."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

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


class Turning:
    """img2dataset's Resizer with pictures turned before they are resized. The hash is of the bytes as they came.

    Args:
        resizer: (stream, boxes) → picture, sizes, error.
    """

    def __init__(self, resizer: Callable[..., tuple]):
        self.resizer = resizer

    def __call__(self, stream: io.BytesIO, *rest: Any) -> tuple:
        content = stream.getvalue()
        said = orientation(content)
        if said == 1:
            return self.resizer(stream, *rest)
        import cv2

        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            pixels = None
        if pixels is None:
            return self.resizer(stream, *rest)  # which says why not
        turned = cv2.imencode(".png", upright(pixels, said), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
        return self.resizer(io.BytesIO(turned.tobytes()), *rest)
