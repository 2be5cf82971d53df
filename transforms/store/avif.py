"""How large the pictures are that an AVIF holds, as they are coded.

An AVIF says its size in its container (``ispe``), and AV1 says it again where the picture is coded. The standard wants both the
same; libavif goes by the container, decodes whatever there is, and scales it. So a file may say 64 x 64 and cost 100,000,000
pixels, and only this tells before they are decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Size = tuple[int, int]


def sizes(content: bytes) -> Iterator[tuple[Size, Size]]:
    """((width, height) as said, the same as coded) of each coded picture of an AVIF: tiles and alpha are such, too.

    What can't be understood is left out: whether it can be decoded is the decoder's matter.
    """
    try:
        meta = next(box for kind, box in _boxes(content) if kind == b"meta")[4:]
        inside = dict(_boxes(meta))
        said, places = _said(inside[b"iprp"]), _places(inside[b"iloc"])
    except (StopIteration, KeyError, struct.error, IndexError):
        return
    # Extents may overlap, so that a small file would name a large one: of all together no more is read than the file has.
    left = len(content)
    for item in said.keys() & places.keys():
        units = b""
        for in_file, first, length in places[item]:
            held = content if in_file else inside.get(b"idat", b"")
            part = held[first : first + min(length or left, left)]
            units += part
            left -= len(part)
        for coded in _coded(units):
            yield said[item], coded


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, what is inside) of the boxes that follow each other."""
    place = 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, place + 8)
            head = 16
        end = len(content) if length == 0 else place + length
        if end < place + head:
            return
        yield kind, content[place + head : end]
        place = end


def _said(properties: bytes) -> dict[int, Size]:
    """Item → the size that its ``ispe`` says."""
    inside = dict(_boxes(properties))
    every = list(_boxes(inside[b"ipco"]))
    said: dict[int, Size] = {}
    for kind, box in _boxes(properties):
        if kind != b"ipma":
            continue
        read = _Reader(box)
        version, flags = read.take(1), read.take(3)
        for _ in range(read.take(4)):
            item = read.take(2 if version < 1 else 4)
            for _ in range(read.take(1)):
                index = read.take(2) & 0x7FFF if flags & 1 else read.take(1) & 0x7F
                if 0 < index <= len(every) and every[index - 1][0] == b"ispe":
                    said[item] = struct.unpack_from(">II", every[index - 1][1], 4)
    return said


def _places(box: bytes) -> dict[int, list[tuple[bool, int, int]]]:
    """Item → its extents: whether it lies in the file (else in ``idat``), where it begins, how long it is (0: to the end)."""
    read = _Reader(box)
    version = read.take(1)
    read.take(3)
    lengths, bases = read.take(1), read.take(1)
    places = {}
    for _ in range(read.take(2 if version < 2 else 4)):
        item = read.take(2 if version < 2 else 4)
        method = read.take(2) & 15 if version else 0
        read.take(2)
        base = read.take(bases >> 4)
        extents = []
        for _ in range(read.take(2)):
            read.take(bases & 15 if version else 0)
            first, length = read.take(lengths >> 4), read.take(lengths & 15)
            extents.append((method == 0, base + first, length))
        places[item] = extents
    return places


class _Reader:
    """Whole numbers of bytes, one after the other. IndexError past the end."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, length: int) -> int:
        self.place += length
        if self.place > len(self.content):
            raise IndexError("past the end")
        return int.from_bytes(self.content[self.place - length : self.place], "big")


_SEQUENCE_HEADER = 1
"""Of AV1's units the one that says how large pictures are."""

_LONGEST = 512
"""Bytes up to the size in it, at most."""


def _coded(units: bytes) -> Iterator[Size]:
    """The sizes that the sequence headers of AV1 say."""
    place = 0
    while place < len(units):
        head = units[place]
        place += 2 if head & 4 else 1
        length = len(units) - place
        if head & 2:
            length = shift = 0
            while place < len(units):
                byte = units[place]
                length |= (byte & 0x7F) << shift
                place, shift = place + 1, shift + 7
                if byte < 0x80 or shift == 56:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER and (size := _of_sequence_header(units[place : place + min(length, _LONGEST)])):
            yield size
        place += length


def _of_sequence_header(content: bytes) -> Size | None:
    """The largest size that pictures may have, of AV1's ``sequence_header_obu`` (section 5.5.1); None where it is cut."""
    bits, place = int.from_bytes(content, "big"), len(content) * 8

    def take(length: int) -> int:
        nonlocal place
        place -= length
        return bits >> place & ((1 << length) - 1) if place >= 0 else 0

    take(4)  # profile, still picture
    if take(1):  # reduced
        take(5)
    else:
        delay = 0
        if take(1):  # timing
            take(64)
            if take(1):
                zeros = 0
                while place > 0 and not take(1):
                    zeros += 1
                take(zeros)
            if take(1):  # decoder model
                delay = take(5) + 1
                take(42)
        display = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay and take(1):
                take(2 * delay + 1)
            if display and take(1):
                take(4)
    across, along = take(4) + 1, take(4) + 1
    size = take(across) + 1, take(along) + 1
    return size if place >= 0 else None
