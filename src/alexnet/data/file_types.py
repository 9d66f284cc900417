"""Recognize files that are not readable images by their first bytes, so that the error can name the format."""

from __future__ import annotations

import re

HEAD = 512  # bytes to read
JPEG_SIZES = re.compile(rb"\xff[\xc0-\xc3]..(.)", re.DOTALL)  # a frame header, whose first field is the bits per sample

KINDS = (
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "an AVIF image that is damaged, or needs a newer Pillow: save it as JPEG"),
    (re.compile(rb".{4}ftyp(?:hei[cmsx]|hev[cmx]|mif1|msf1)", re.DOTALL), "a HEIC photo: save it as JPEG"),
    (re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL), "a video: save frames of it as images"),
    (re.compile(rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIRO|IIU\0", re.DOTALL), "a camera's RAW photo: save it as JPEG"),
    (re.compile(rb".{128}DICM", re.DOTALL), "a DICOM file: save it as PNG, all on one scale"),
    (re.compile(rb".{344}(?:n\+1|ni1)\0", re.DOTALL), "a NIfTI file: save its slices as PNG, all on one scale"),
    (re.compile(rb"\x93NUMPY|\x89HDF"), "a file of arrays: save them as PNG, all on one scale"),
    (re.compile(rb"8BPS"), "a Photoshop file: save it as PNG"),
    (re.compile(rb"\xff\x0a|\0{3}\x0cJXL "), "a JPEG XL image: save it as PNG"),
    (re.compile(rb"%PDF|%!PS"), "a PDF or PostScript file: save it as PNG"),
    (re.compile(rb"(?:<\?xml.*)?\s*(?:<!--.*)?<svg", re.DOTALL), "an SVG drawing: save it as PNG"),
    (re.compile(rb"\s*<(?:!doctype )?html", re.IGNORECASE), "a web page: download the image itself"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: run git lfs pull"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive: unpack it"),
)


def image_format(head: bytes) -> str:
    """Return the format of a file with these first bytes and what to do about it; empty if it is unknown."""
    if head.startswith(b"\xff\xd8") and (sizes := JPEG_SIZES.search(head)) and sizes[1] in b"\x0c\x10":
        return f"a JPEG of {sizes[1][0]}-bit samples: save it as PNG or TIFF"
    return next((description for pattern, description in KINDS if pattern.match(head)), "")
