"""Connections: how many, and how long each may take for what uvicorn itself waits for without end."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexnet.server.headers import plain_answer
from alexnet.server.limits import Limits


class Connection(H11Protocol):
    """A connection with limits: those of the class, see `limited`."""

    limits = Limits()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._deadline: asyncio.TimerHandle | None = None  # for a request's head, from the first byte that is waited for
        self._stuck: asyncio.TimerHandle | None = None  # for the client to take what it is sent
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._part(plain_answer(429, "Too Many Requests", "too many connections: try again in 1 s"))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what a client sends."""
        if self.transport.is_closing():  # an answer was given already, to a request that was none
            return
        self._begun = True
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request, if the connection stays."""
        self._begun = False
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Note that the client does not take what it is sent."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it does again."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, where nothing was answered yet."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # a body that breaks off: its request has nobody to answer
            self.cycle.message_event.set()
        started = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE)
        self._part(b"" if started else plain_answer(400, "Bad Request", "what came is no well-formed HTTP request"))

    def _watch(self) -> None:
        """Set the deadline while a request's head is waited for; requests that are here have limits of their own."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if not answering and self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.limits.head_seconds, self._late)

    def _late(self) -> None:
        self._deadline = None
        answer = plain_answer(408, "Request Timeout", f"no request came in {self.limits.head_seconds:g} s")
        self._part(answer if self._begun else b"")

    def _part(self, answer: bytes) -> None:
        """Send an answer and close; a client that does not even take that is left."""
        self.transport.write(answer)
        self.transport.close()
        self._stuck = self.loop.call_later(self.limits.linger_seconds, self.transport.abort)


def limited(limits: Limits) -> type[Connection]:
    """Return the class of connections with these limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
