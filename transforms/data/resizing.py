"""A downloaded picture → how it is stored: decoded, resized and encoded by img2dataset's Resizer, in a process of its own.

img2dataset decodes in the worker, whatever comes: nothing bounds its memory or its time, and what has 16 bits a channel comes
out white. Here the same Resizer runs in ``store.confined``, and is handed pixels of 8 bits: decoded by OpenCV as img2dataset
does, where OpenCV and ``store.pictures.decode`` agree, else by the latter.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from transforms.data.download import Fetched, told
from transforms.data.img2dataset_modules import img2dataset_module
from transforms.data.orientation import orientation, upright
from transforms.store.confined import Confined, Exceeded
from transforms.store.pictures import NoPicture, decode, memory_to_decode, opened

BY_OPENCV = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP")
"""Formats whose pictures of 8 bits come out of OpenCV as they do out of Pillow, in less time."""

_PNG = re.compile(rb"\x89PNG\r\n\x1a\n....IHDR(....)(....)(.)(.)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Storage:
    """How pictures are stored: img2dataset's Resizer.

    Attributes:
        image_size: side in pixels.
        resize_mode: no, keep_ratio, center_crop, border or keep_ratio_largest.
        upscale: whether smaller pictures are enlarged.
        encode_format: jpg, png or webp.
        encode_quality: 0 to 100; for png the compression, 0 to 9.
    """

    image_size: int
    resize_mode: str
    upscale: bool
    encode_format: str
    encode_quality: int


class ConfinedResizer:
    """In the place of img2dataset's Resizer: called with a ``Fetched``, it answers with what that would.

    Args:
        storage: how pictures are stored.
        max_pixels: of a picture.
        max_aspect_ratio: of its sides.
        turns: whether what EXIF says of its orientation is heeded. The hash is of the bytes as they came.
    """

    def __init__(self, storage: Storage, max_pixels: int, max_aspect_ratio: float, turns: bool = False):
        self._options = {
            "storage": dataclasses.asdict(storage),
            "max_pixels": max_pixels,
            "max_aspect_ratio": max_aspect_ratio,
            "turns": turns,
        }
        self._process = _process(memory_to_decode(max_pixels))
        self.fault: OSError | None = None
        """Of the machine, which could start no process: what came since is no fact about pictures."""

    def __call__(self, stream: Fetched, _: object = None) -> tuple[Any, ...]:
        """(encoded picture, width, height, original width, original height, reason); nulls and a reason where it failed."""
        try:
            image, found = self._process(stream.getvalue(), stream.seconds, **self._options)
            return image, *found["sizes"], None
        except (ValueError, Exceeded) as error:
            return None, None, None, None, None, told(error)
        except OSError as error:
            # img2dataset would print a traceback for each picture, and make a row of each.
            self.fault = error
            return None, None, None, None, None, str(error)

    def end(self) -> None:
        """Ends its process; the next call starts another."""
        self._process.end()


@functools.cache
def _process(memory: int) -> Confined:
    """One process for all buckets of a worker, whose Resizer takes a second to import."""
    return Confined("transforms.data.resizing:prepared", memory)


# -- in the process of its own ----------------------------------------------------------------------------------------


def prepared() -> Callable[..., tuple[bytes, dict[str, Any]]]:
    """``resized``, with all imported that it needs: what that takes is not the pictures'."""
    _resizer_module()
    return resized


def resized(
    content: bytes, storage: dict[str, Any], max_pixels: int, max_aspect_ratio: float, turns: bool
) -> tuple[bytes, dict[str, list[int]]]:
    """A picture as it is stored, in the form of ``confined.Confined``.

    Args:
        content: as it was sent.
        storage: fields of ``Storage``.
        max_pixels, max_aspect_ratio: limits.
        turns: whether it is turned as its EXIF says.

    Returns:
        the encoded picture, and sizes: width and height as stored, and as they were.
    """
    pixels = pixels_of(content, max_pixels, max_aspect_ratio)
    if turns:
        pixels = upright(pixels, orientation(content))
    module = _resizer_module()
    # It decodes by itself, and its own way with transparency takes 80 bytes a pixel.
    module.cv2.imdecode = lambda *_: pixels
    resizer = module.Resizer(
        image_size=storage["image_size"],
        resize_mode=storage["resize_mode"],
        resize_only_if_bigger=not storage["upscale"],
        encode_quality=storage["encode_quality"],
        encode_format=storage["encode_format"],
    )
    image, *sizes, fault = resizer(io.BytesIO(b"-"))
    if fault is not None:
        # It makes a text of whatever was raised.
        if not fault or "Insufficient memory" in fault:
            raise MemoryError
        raise ValueError(fault)
    return image, {"sizes": sizes}


def pixels_of(content: bytes, max_pixels: int, max_aspect_ratio: float) -> np.ndarray:
    """The pixels of a picture, as OpenCV has them: (H, W, 3) uint8 in the order blue, green, red, or (H, W) for gray.

    What is transparent shows white. ValueError for what can't be decoded, or is beyond a limit.
    """
    try:
        picture = opened(content, max_pixels)
        width, height = picture.size
        by_opencv = picture.format in BY_OPENCV
        gray_with_key = picture.mode in ("1", "L") and "transparency" in picture.info  # of which OpenCV knows nothing
    except NoPicture:
        # Broken PNG files are common. OpenCV forgives more of them than Pillow, and their size stands in the same place always.
        if not (found := _PNG.match(content)):
            raise
        width, height = (int.from_bytes(side, "big") for side in found.groups()[:2])
        by_opencv, gray_with_key = True, False
        if not 0 < width * height <= max_pixels:
            raise ValueError(f"cannot decode the picture: {width} x {height} pixels are more than {max_pixels:,}") from None
    if max(width, height) > max_aspect_ratio * min(width, height):
        ratio = f"{max(width, height) / min(width, height):.4g} : 1"
        raise ValueError(f"{width} x {height} pixels are {ratio}, more than {max_aspect_ratio:g} : 1")
    deep = (found := _PNG.match(content)) is not None and found[3] == b"\x10"
    if not by_opencv or deep or gray_with_key:
        return np.asarray(decode(content, max_pixels))[:, :, ::-1]
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise ValueError(f"cannot decode the picture: {error.err}") from error
    if pixels is None:  # then the other says why not
        return np.asarray(decode(content, max_pixels))[:, :, ::-1]
    if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
        raise ValueError(f"cannot decode the picture: {pixels.dtype} of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return on_white(pixels) if pixels.shape[2:] == (4,) else pixels


def on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 over white: (H, W, 3) uint8, to the last bit what img2dataset makes of it."""
    alpha, colour = np.arange(256)[:, None], np.arange(256)
    table = np.rint((alpha / 255 * colour + 255 - alpha).clip(min=0, max=255)).astype(np.uint8).ravel()
    made = np.empty((*pixels.shape[:2], 3), np.uint8)
    rows = max(1, (1 << 20) // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        band = pixels[top : top + rows]
        places = (band[:, :, 3:].astype(np.uint16) << 8) | band[:, :, :3]
        np.take(table, places, out=made[top : top + rows])
    return made


@functools.cache
def _resizer_module() -> ModuleType:
    """img2dataset's module of the Resizer, with an OpenCV of its own."""
    module = img2dataset_module("resizer")
    # Its own, so that what it decodes with can be changed for it alone.
    module.cv2 = SimpleNamespace(**vars(module.cv2))  # type: ignore[attr-defined]
    return module
