"""A request's body -> images in memory, counted and timed while it comes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from alexnet.errors import printable
from alexnet.network.device import give_back_memory
from alexnet.server.limits import Limits, Refused, Rooms

FIELDS = ("images", "image", "files", "file")  # of a form; the first is the one that is told
RAW_TYPE = re.compile(rb"image/.+|application/octet-stream")
TEXT = re.compile(rb"[\t\n\r -~]+")
RAW_NAME = "image"
NAME_LENGTH = 200
LARGE = 16 << 20  # bytes held at once, after which memory is given back
PART_HEADERS = 8
PART_HEADER_BYTES = 2048


class Upload(NamedTuple):
    """An image as it came: what its sender calls it, fit to be printed and never opened, and a file's bytes."""

    name: str
    content: bytes


class _Reader(Protocol):
    """Takes a body piece by piece."""

    def write(self, chunk: bytes) -> None: ...

    def end(self) -> list[Upload]: ...

    def forget(self) -> None: ...


@asynccontextmanager
async def received(request: Request, limits: Limits, rooms: Rooms) -> AsyncIterator[list[Upload]]:
    """Read the images of a request; their bytes count as held while the context lasts.

    Raises:
        Refused: too large, too many, too slow, of no form that can be read.
    """
    _declared(request, limits)
    rooms.requests.check()
    reader, size = _reader(request, limits), 0
    try:
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    if size + len(chunk) > limits.body:  # before it is held: to come again would not help
                        raise _too_large(limits)
                    rooms.held.take(len(chunk))
                    size += len(chunk)
                    reader.write(chunk)
        except TimeoutError as error:
            raise Refused(408, f"the body took more than {limits.body_seconds:g} s to come") from error
        uploads = reader.end()
        if not uploads:
            raise Refused(400, f"no image came: send it with {_curl(request)}")
        request.scope["alexnet.images"] = len(uploads)  # for the log
        with rooms.requests.taking(), rooms.images.taking(len(uploads)):
            yield uploads
    finally:
        reader.forget()
        rooms.held.give(size)
        if rooms.held.taken == 0 and rooms.held.peak > LARGE:
            rooms.held.peak = 0
            asyncio.get_running_loop().call_later(1, give_back_memory)  # when nothing refers to it any more


def _declared(request: Request, limits: Limits) -> None:
    """Refuse by the head alone what can be: nothing of the body is read."""
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Refused(415, f"a body in the encoding {_short(encoding)!r}: send the file as it is")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.body:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the body is larger than {limits.body:,} bytes: send fewer or smaller images at a time")


def _reader(request: Request, limits: Limits) -> _Reader:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return _Form(options.get(b"boundary", b""), limits.files)
    if kind in (b"", b"application/octet-stream"):  # the same, by RFC 9110, 8.3; but text is no image
        return _Raw(Refused(415, f"text is not read: send the image file itself with {_curl(request)}"))
    if not RAW_TYPE.fullmatch(kind):
        told = _short(kind.decode("latin-1"))
        raise Refused(415, f"a body of {told} is not read: send the image file itself with {_curl(request)}")
    return _Raw()


def _curl(request: Request) -> str:
    """Return the command that sends an image to where this request went."""
    place = f"{request.scope['scheme']}://{request.headers.get('host', 'HOST')}{request.scope['path']}"
    return f"curl -F {FIELDS[0]}=@photo.jpg {_short(place)}"


class _Raw:
    """One image, the whole body; `text` is raised where it is text instead."""

    def __init__(self, text: Refused | None = None) -> None:
        self._text, self._chunks = text, list[bytes]()

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def end(self) -> list[Upload]:
        content = b"".join(self._chunks)
        if self._text is not None and TEXT.fullmatch(content[:512]):
            raise self._text
        return [Upload(RAW_NAME, content)] if content else []

    def forget(self) -> None:
        self._chunks = []


class _Form:
    """Several images in memory; no temporary files, as the whole body is bounded."""

    def __init__(self, boundary: bytes, most: int) -> None:
        if not re.fullmatch(rb"[ -~]{1,70}", boundary):  # RFC 2046, 5.1.1
            raise Refused(400, "multipart/form-data without a boundary, or with one that cannot be")
        self._most, self._complete, self._uploads = most, False, list[Upload]()
        self._name, self._value, self._headers, self._chunks = bytearray(), bytearray(), dict[bytes, bytes](), list[bytes]()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._named,
                "on_part_data": lambda data, start, end: self._chunks.append(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._done,
            },
            max_header_count=PART_HEADERS,
            max_header_size=PART_HEADER_BYTES,
        )

    def write(self, chunk: bytes) -> None:
        if self._complete or not chunk:
            return  # what follows the last boundary is nobody's
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refused(400, "the body is no well-formed multipart/form-data") from error

    def end(self) -> list[Upload]:
        if not self._complete:
            raise Refused(400, "the body is no well-formed multipart/form-data: it ends before its last boundary")
        return self._uploads

    def forget(self) -> None:
        """Let go of what came: a form and its parser refer to each other, so Python would keep it for long."""
        self._chunks, self._uploads = [], []

    def _begin(self) -> None:
        if len(self._uploads) == self._most:
            raise Refused(413, f"more than {self._most} images: send fewer at a time")
        self._headers, self._chunks = {}, []

    def _header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _named(self) -> None:
        """Look at a part's field before its content is kept."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode(errors="replace")
        if field not in FIELDS:
            raise Refused(400, f"the field {_short(field)!r} is not known: images go in {FIELDS[0]!r}")
        name = options.get(b"filename", b"").decode(errors="replace")
        self._file = _short(name) or f"{RAW_NAME}-{len(self._uploads) + 1}"

    def _end(self) -> None:
        self._uploads.append(Upload(self._file, b"".join(self._chunks)))

    def _done(self) -> None:
        self._complete = True


def _short(text: str) -> str:
    return printable(text[:NAME_LENGTH])
