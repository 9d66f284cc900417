"""HEIC files, put together box by box from images that pillow-heif encodes: grids, turns, auxiliary images, several photos."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from proof.pictures import heic as as_heic


@dataclass
class Item:
    """An item of a file: its kind and data, property boxes, and references as (kind, item numbers)."""

    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()
    refers: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    hidden: bool = False


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    """Return a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each box."""
    while content:
        size, kind = struct.unpack_from(">I4s", content)
        yield kind, content[8:size]
        content = content[size:]


def coded(image: Image.Image, **options: Any) -> Item:
    """Return an image as an item, with the properties that the decoder needs."""
    outer = dict(boxes(as_heic(image, **options)))
    inner = dict(boxes(outer[b"meta"][4:]))
    known = dict(boxes(dict(boxes(inner[b"iprp"]))[b"ipco"]))
    properties = tuple(box(kind, known[kind]) for kind in (b"hvcC", b"ispe", b"colr", b"pixi") if kind in known)
    return Item(b"hvc1", outer[b"mdat"], properties)


def grid(image: Image.Image, side: int, first: int, **options: Any) -> list[Item]:
    """Return an image as a grid of tiles of `side` pixels, the grid first; `first` is its number in the file."""
    columns, rows = -(-image.width // side), -(-image.height // side)
    boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
    tiles = [coded(image.crop(part), **options) for part in boxes]
    for tile in tiles:
        tile.hidden = True
    data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *image.size)
    numbers = tuple(range(first + 1, first + 1 + len(tiles)))
    return [Item(b"grid", data, (ispe(*image.size),), ((b"dimg", numbers),)), *tiles]


def ispe(width: int, height: int) -> bytes:
    return full(b"ispe", struct.pack(">II", width, height))


def turns(angle: int, mirror: int | None = None) -> tuple[bytes, ...]:
    """Return properties: a turn by `angle` x 90 degrees anticlockwise; then rows (0) or columns (1) in reverse order."""
    return (box(b"irot", bytes([angle])), *([] if mirror is None else [box(b"imir", bytes([mirror]))]))


def auxiliary(kind: str) -> bytes:
    return full(b"auxC", kind.encode() + b"\0")


def exif(orientation: int, photo: int) -> Item:
    """Return an item of EXIF data for the photo of that number."""
    data = Image.Exif()
    data[0x0112] = orientation
    return Item(b"Exif", struct.pack(">I", 0) + data.tobytes().removeprefix(b"Exif\0\0"), (), ((b"cdsc", (photo,)),), True)


def heic(items: list[Item], primary: int = 1, brand: bytes = b"heic", others: tuple[bytes, ...] = (b"mif1", b"heic")) -> bytes:
    """Return a file of these items, which are numbered from 1."""
    head = box(b"ftyp", brand, bytes(4), *others)
    length = len(head) + len(_meta(items, primary, 0))
    return head + _meta(items, primary, length + 8) + box(b"mdat", *(item.data for item in items))


def _meta(items: list[Item], primary: int, start: int) -> bytes:
    """Return the box that describes the items, whose data begin at `start`."""
    known = list(dict.fromkeys(one for item in items for one in item.properties))
    places, infos, uses, refers = b"", b"", b"", b""
    for number, item in enumerate(items, 1):
        places += struct.pack(">HHHII", number, 0, 1, start, len(item.data))
        start += len(item.data)
        infos += full(b"infe", struct.pack(">HH4s", number, 0, item.kind), b"\0", version=2, flags=int(item.hidden))
        indices = [known.index(one) + 1 | 0x80 * (one[4:8] in (b"hvcC", b"irot", b"imir")) for one in item.properties]
        uses += struct.pack(">HB", number, len(indices)) + bytes(indices) if indices else b""
        refers += b"".join(box(kind, struct.pack(f">HH{len(to)}H", number, len(to), *to)) for kind, to in item.refers)
    used = sum(bool(item.properties) for item in items)
    return full(
        b"meta",
        full(b"hdlr", bytes(4), b"pict", bytes(13)),
        full(b"pitm", struct.pack(">H", primary)),
        full(b"iloc", b"\x44\0", struct.pack(">H", len(items)), places),
        full(b"iinf", struct.pack(">H", len(items)), infos),
        full(b"iref", refers) if refers else b"",
        box(b"iprp", box(b"ipco", *known), full(b"ipma", struct.pack(">I", used), uses)),
    )
