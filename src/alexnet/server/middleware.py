"""Before and after every request: who may ask, what a browser is told, what is noted, how a connection ends."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alexnet.server import log
from alexnet.server.headers import RAW_HEADERS, error_body
from alexnet.server.limits import Limits, Refused

CLOSE = (b"connection", b"close")
PATH_LENGTH = 200
CLIENT_LEFT = 499  # in the log, as nginx has it: there was nobody to answer


class Guard:
    """An application around another one."""

    def __init__(self, app: ASGIApp, limits: Limits, *, hosts: Collection[str] | None, key: str | None) -> None:
        """Guard `app`: only requests to `hosts` (None: to any), and POSTs with the `key` (None: without one)."""
        self._app, self._limits, self._hosts = app, limits, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, or what the server says of its own start and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        headers = dict(scope["headers"])
        try:
            if refused := self._refused(scope["method"], headers):
                await exchange.refuse(refused)
            else:
                # HEAD is answered as GET; uvicorn, which knows better, leaves the body out.
                asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(asked, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        finally:
            exchange.note()

    def _refused(self, method: str, headers: dict[bytes, bytes]) -> Refused | None:
        host = _hostname(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            # A page elsewhere whose name was made to lead to this machine (DNS rebinding) would pass for one of ours.
            return Refused(421, "this server answers to localhost alone: start it with --host to be asked by other names")
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            return Refused(403, "a page of another site may not ask")
        if self._key is not None and not self._knows(headers):
            wanted = {"WWW-Authenticate": "Bearer"}
            return Refused(401, "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY", wanted)
        return None

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        assert self._key is not None
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = (bearer.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b""))
        return any([hmac.compare_digest(one, self._key) for one in given])  # both, however the first one ends


def _hostname(host: str) -> str:
    """Return the name of a Host header, without its port."""
    return (host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]).lower()


class _Exchange:
    """A request and its answer, on their way."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.status = CLIENT_LEFT
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self._began, self._bytes = time.monotonic(), 0
        names = {name for name, _ in scope["headers"]}
        self._unread = bool(names & {b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._unread = self._unread and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer with our headers, and read a little on where the body was not wanted to its end.

        A connection that is closed while something arrives is reset, and the answer may be lost on its way.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in RAW_HEADERS if header[0] not in own)]
            if self._unread:
                message["headers"].append(CLOSE)
        elif self._unread and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(self._limits.linger_seconds):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            pass

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error."""
        body = error_body(str(refused))
        headers: dict[str, str] = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    def note(self) -> None:
        """Write the log's line; none for the files of the page, of which there are a dozen, where all is well."""
        if self._scope["path"].startswith("/static/") and self.status == 200:
            return
        fields: dict[str, Any] = {
            "method": self._scope["method"][:PATH_LENGTH],
            "path": self._scope["path"][:PATH_LENGTH],
            "status": self.status,
            "milliseconds": round(1000 * (time.monotonic() - self._began), 1),
            "bytes": self._bytes,
            "images": self._scope.get("alexnet.images", 0),
        }
        log.write(**fields)
