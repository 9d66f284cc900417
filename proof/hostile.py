"""What no client should send: requests that are no good, bodies without end, files that are small here and large there."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator

from PIL import Image
from proof.pictures import encoded

FORM = "Content-Type: multipart/form-data; boundary=XX\r\n"
PART = '--XX\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
CLOSE = "Connection: close\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"


def head(method: str = "POST", path: str = "/predict", more: str = "", length: int | None = None) -> bytes:
    """Return a request's head."""
    length_ = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length_}{more}\r\n".encode("latin-1")


def whole(body: bytes, path: str = "/predict", more: str = "") -> bytes:
    """Return a request, after which the connection is to end."""
    return head("POST", path, f"{more}{CLOSE}", len(body)) + body


def form(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a multipart body."""
    return b"".join(PART.format(name).encode() + content + b"\r\n" for name, content in files) + b"--XX--\r\n"


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Iterator[bytes]:
    """Go on for ever."""
    yield first
    while True:
        yield piece
        time.sleep(pause)


# Requests

TYPES = ("text/html", "application/json", "application/x-www-form-urlencoded", "image/svg+xml", "", ";;;=", "é" * 200)
PATHS = (
    *("/../../etc/passwd", "/static/../../api.py", "/static/%2e%2e%2fapi.py", "/static/..%5capi.py", "/static//etc/passwd"),
    *("/static/index.html%00.png", "/static/" + "a" * 9000, "/" + "%ff" * 50, "//evil.example/", "http://evil.example/", "*"),
)
QUERIES = ("top=-1", "top=1e9", "top=9" + "9" * 999, "top=%00", "top=1&top=x", "top[]=1", "&" * 2000)
BOUNDARIES = ("", "; boundary=", f"; boundary={'x' * 9000}")
NO_IMAGES = (b"", b"{}", b"\0" * 100_000, b"GIF89a", b"\xff\xd8\xff")
METHODS = ("PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "A" * 50)
HOSTS = (b"", b"Host: evil\r\n", b"Host: a\r\nHost: b\r\n")
LENGTHS = ("-1", "x", "9" * 30, "1, 1", "1e3")
ENCODINGS = (CHUNKED, "Transfer-Encoding: gzip\r\n", "Content-Encoding: br\r\nContent-Length: 4\r\n")
GARBAGE = (
    *(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\0" * 100_000, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    b"A" * 200_000,
)
NAMED = b'--XX\r\nContent-Disposition: form-data; name="images"'
FORMS = (
    *(b"", b"--XX", b"--XX--", b"\r\n" * 10_000, NAMED),
    NAMED + b'; filename="' + b"a" * 100_000 + b'"\r\n\r\nx\r\n--XX--\r\n',
    b"--XX\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\nx\r\n--XX--\r\n",
    b"--XX\r\n\r\nx\r\n--XX--\r\n",
    NAMED.replace(b"images", b"__proto__") + b"\r\n\r\nx\r\n--XX--\r\n",
    form([("../../../etc/passwd", b"x"), ("C:\\a\\b", b"x"), ("a\x00b", b"x"), ("", b"x")]),
)


def odd_requests() -> dict[str, list[bytes]]:
    """Return requests that are no good, by what is wrong with them."""
    return {
        "thousands of parts": [whole(form([("a", b"a")] * 20_000), more=FORM), whole(form([("a", b"")] * 400_000), more=FORM)],
        "parts that are none": [whole(body, more=FORM) for body in FORMS],
        "boundaries": [whole(b"--x--", more=f"Content-Type: multipart/form-data{text}\r\n") for text in BOUNDARIES],
        "wrong types": [whole(b"<html>", more=f"Content-Type: {kind}\r\n") for kind in TYPES],
        "no images": [whole(body, route) for body in NO_IMAGES for route in ("/predict", "/explain")],
        "paths": [head("GET", path, CLOSE) for path in PATHS],
        "queries": [whole(b"x", f"/predict?{query}") for query in QUERIES],
        "methods": [head(method, "/predict", CLOSE, 0) for method in METHODS],
        "hosts": [f"GET / HTTP/1.1\r\n{CLOSE}".encode() + host + b"\r\n" for host in HOSTS],
        "lengths": [head(more=f"Content-Length: {length}\r\n{CLOSE}") + b"x" for length in LENGTHS],
        "encodings": [head(more=f"{encoding}{CLOSE}") + b"zz\r\n" for encoding in ENCODINGS],
        "smuggling": [head(more=f"{CHUNKED}{CLOSE}", length=5) + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"],
        "garbage": list(GARBAGE),
    }


# Files


def blank_png(width: int, height: int, mode: str = "L", extra: bytes = b"") -> bytes:
    """Return a PNG of nothing, large where it is decoded."""
    content = encoded(Image.new(mode, (width, height)), "png")
    return content[:33] + extra + content[33:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def bombs() -> dict[str, bytes]:
    """Return files that are small here and large there."""
    zeros = zlib.compress(bytes(100_000_000), 9)
    header = bytearray(blank_png(8, 8))
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    frames = [Image.new("P", (4000, 4000), i) for i in range(20)]
    return {
        "120 megapixels": blank_png(12_001, 10_000, "1"),
        "49 megapixels, which decode": blank_png(7_000, 7_000, "RGB"),
        "49 megapixels of 16 bits": blank_png(7_000, 7_000, "I;16"),
        "2^62 pixels said": bytes(header),
        "text of 100 MB": blank_png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zeros)),
        "profile of 100 MB": blank_png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros)),
        "gif of many frames": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "one row of 40 million": blank_png(40_000_000, 1),
        "tiff of 81 megapixels": encoded(Image.new("1", (9_000, 9_000)), "tiff", compression="group4"),
        "webp of 49 megapixels": encoded(Image.new("RGB", (7_000, 7_000)), "webp", lossless=True, method=0),
        "jpeg 2000 of 49 megapixels": encoded(Image.new("L", (7_000, 7_000)), "jpeg2000"),
    }
