"""ASGI middleware: an access log as lines of JSON on standard error, and HEAD answered like GET."""

import json
import logging
import time
from datetime import UTC, datetime

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ACCESS_LOG = logging.getLogger("alexnet.access")


class AccessLog:
    """Logs each request, and answers HEAD like GET, which FastAPI does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the server's startup and shutdown."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path, state = scope["method"], scope["path"], scope["state"]
        began, status = time.monotonic(), 499  # nginx's status for the log: the client disconnected before the answer

        async def send_noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            # uvicorn leaves out the body of an answer to HEAD.
            await self._app({**scope, "method": "GET"} if method == "HEAD" else scope, receive, send_noted)
        except ClientDisconnect:
            pass
        except Exception:
            status = 500
            raise
        finally:
            if status != 200 or not path.startswith("/static/"):  # the page has a dozen files
                milliseconds = round(1000 * (time.monotonic() - began), 1)
                fields = {"method": method, "path": path[:200], "status": status, "milliseconds": milliseconds}
                ACCESS_LOG.info({**fields, "bytes": state.get("bytes", 0), "images": state.get("images", 0)})


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON, in ASCII, so that file names cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line; the fields of a dict message are included."""
        level = {"level": record.levelname.lower(), "message": record.getMessage().strip()}
        fields = record.msg if isinstance(record.msg, dict) else level
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})


def configure_logging() -> None:
    """Log requests, and warnings and errors of all libraries, except warnings about invalid requests."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name, level in (("alexnet.access", "INFO"), ("uvicorn.error", "ERROR"), ("python_multipart", "ERROR")):
        logging.getLogger(name).setLevel(level)
