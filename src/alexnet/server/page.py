"""The files of the page: those that lie in the folder, and nothing else."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from alexnet.errors import printable
from alexnet.server.limits import Refused

FOLDER = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
}


def page_file(name: str) -> Response:
    """Return a file of the page; its name is looked up among those that are there, never made a path.

    Raises:
        Refused: there is none.
    """
    there = {file.name: file for file in FOLDER.iterdir() if file.suffix in TYPES} if FOLDER.is_dir() else {}
    if name not in there:
        raise Refused(404, f"no file {printable(name[:100])!r} here")
    return Response(there[name].read_bytes(), media_type=TYPES[there[name].suffix], headers={"cache-control": "no-cache"})
