"""Images in the body of a request, as the body itself or as a multipart form, kept in memory."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from alexnet.errors import printable
from alexnet.network.device import give_back_memory
from alexnet.server.limits import Limits, Quotas, busy

FIELDS = ("images", "image", "files", "file")  # of a form; error messages use the first
NAME_LENGTH = 200
LARGE = 16 << 20  # bytes of a body, after which freed memory goes back to the system


class Upload(NamedTuple):
    """An image file; `name` is the client's name for it, for display only."""

    name: str
    content: bytes


@asynccontextmanager
async def read_uploads(request: Request, limits: Limits, quotas: Quotas) -> AsyncIterator[list[Upload]]:
    """Read the images of a request, or raise HTTPException; quotas and a time limit hold while the context lasts."""
    quotas.check("images")
    size, uploads = 0, list[Upload]()

    async def stream() -> AsyncGenerator[bytes, None]:
        nonlocal size
        too_large = f"the body is larger than {limits.bytes:,} bytes: send fewer or smaller images at a time"
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limits.bytes:
            raise HTTPException(413, too_large)
        async for chunk in request.stream():
            if size + len(chunk) > limits.bytes:
                raise HTTPException(413, too_large)
            quotas.check("bytes", len(chunk))
            quotas.used["bytes"] += len(chunk)
            size += len(chunk)
            yield chunk

    try:
        async with asyncio.timeout(limits.body_seconds) as timeout:
            uploads = await _read(request, stream(), limits.files)
            request.state.images = len(uploads)
            timeout.reschedule(asyncio.get_running_loop().time() + limits.answer_seconds)
            with quotas.use("images", len(uploads)):
                yield uploads
    except TimeoutError as error:
        if uploads:
            raise busy("the server is overloaded") from error
        raise HTTPException(408, f"the body did not arrive within {limits.body_seconds:g} s") from error
    finally:
        request.state.bytes = size
        quotas.used["bytes"] -= size
        if size > LARGE:
            asyncio.get_running_loop().call_later(1, give_back_memory)  # when nothing refers to the body any more


async def _read(request: Request, stream: AsyncGenerator[bytes, None], max_files: int) -> list[Upload]:
    encoding = request.headers.get("content-encoding", "identity").lower()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    untyped = kind in ("", "application/octet-stream")  # equivalent by RFC 9110, 8.3
    if encoding != "identity":
        raise _refuse(request, 415, f"content encoding {encoding} is not supported")
    if kind == "multipart/form-data":
        uploads = await _read_form(request, stream, max_files)
    elif untyped or re.fullmatch("image/.+", kind):
        content = b"".join([chunk async for chunk in stream])
        if untyped and re.fullmatch(rb"[\t\n\r -~]+", content[:512]):
            raise _refuse(request, 415, "text is not supported")
        uploads = [Upload("image", content)] if content else []
    else:
        raise _refuse(request, 415, f"content type {kind} is not supported")
    if not uploads:
        raise _refuse(request, 400, "no image in the request")
    return uploads


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None], max_files: int) -> list[Upload]:
    parser = MultiPartParser(request.headers, stream, max_files=max_files, max_fields=max_files)
    parser.spool_max_size = 1 << 40  # no temporary files: the size of the whole body is limited
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(413 if "Too many" in error.message else 400, printable(error.message)) from error
    uploads: list[Upload] = []
    try:
        for field, file in form.multi_items():
            if field not in FIELDS or not isinstance(file, UploadFile):
                raise _refuse(request, 400, f"the field {field[:NAME_LENGTH]!r} is not an image file")
            name = printable((file.filename or "")[:NAME_LENGTH]) or f"image-{len(uploads) + 1}"
            uploads.append(Upload(name, await file.read()))
        return uploads
    finally:
        await form.close()


def _refuse(request: Request, status: int, reason: str) -> HTTPException:
    command = f"curl -F {FIELDS[0]}=@photo.jpg {request.url.replace(query='')}"
    return HTTPException(status, printable(f"{reason[:NAME_LENGTH]}: send the image file itself with {command[:NAME_LENGTH]}"))
