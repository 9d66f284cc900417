"""The server's log: a line of JSON for each request, and for what went wrong; nothing of an image, and not its name."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any


def write(**fields: Any) -> None:
    """Write a line to standard error."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError, ValueError):  # nobody reads any more: no reason not to answer
        print(json.dumps({"time": time, **fields}), file=sys.stderr, flush=True)  # ASCII: no name steers a terminal


class _Lines(logging.Handler):
    """What libraries say, as such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"level": record.levelname.lower(), "message": record.getMessage().strip()}
        if record.exc_info:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        write(**fields)


def take_over() -> None:
    """Let all that libraries say from warnings on be written as such lines."""
    logging.basicConfig(handlers=[_Lines()], level=logging.WARNING, force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are about what clients send
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
