"""How much the server takes at a time, and what it says to what it does not take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

AGAIN = 1  # seconds after which to come again, of an answer; of an explanation three times as many


@dataclass(frozen=True)
class Limits:
    """The server's limits; pixels and time for each image are those of `data.decode` and `data.worker`, as everywhere.

    Attributes:
        body: bytes of a request.
        files: images of a request.
        held: bytes of all requests that have come and are not answered.
        requests: being answered or waiting to be.
        images: of all these requests.
        explanations: being computed or waiting to be; one is computed at a time.
        connections: open at once.
        head_seconds: for a request's head to come, and between requests.
        body_seconds: for a request's body to come.
        answer_seconds: for an answer, once the body is there.
        send_seconds: for a client to take what it is sent.
        linger_seconds: to read on after an answer that did not need the whole body.
    """

    body: int = 32 << 20
    files: int = 64
    held: int = 256 << 20
    requests: int = 128
    images: int = 512
    explanations: int = 4
    connections: int = 512
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    send_seconds: float = 30.0
    linger_seconds: float = 2.0


class Refused(Exception):
    """A request that is not answered; the message is one line for the client, `status` an HTTP status from 400 on."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def busy(what: str, seconds: int = AGAIN) -> Refused:
    """Return the refusal of what would be too much now, and not later."""
    return Refused(429, f"{what}: try again in {seconds} s", {"Retry-After": str(seconds)})


class Room:
    """Counts something that is there for a while, and refuses what would be too much."""

    def __init__(self, most: int, full: str, again: int = AGAIN) -> None:
        self.most, self.taken, self.peak, self._full, self._again = most, 0, 0, full, again

    def check(self, count: int = 1) -> None:
        """Refuse if so many more would be too much."""
        if self.taken + count > self.most:
            raise busy(self._full, self._again)

    def take(self, count: int = 1) -> None:
        """Count so many more, or refuse."""
        self.check(count)
        self.taken += count
        self.peak = max(self.peak, self.taken)

    def give(self, count: int = 1) -> None:
        """Count so many less."""
        self.taken -= count

    @contextmanager
    def taking(self, count: int = 1) -> Iterator[None]:
        """Count so many while the context lasts, or refuse."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)


@dataclass
class Rooms:
    """What all requests share."""

    limits: Limits
    requests: Room = field(init=False)
    images: Room = field(init=False)
    held: Room = field(init=False)
    explanations: Room = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Room(self.limits.requests, "too many requests wait for an answer")
        self.images = Room(self.limits.images, "too many images wait for an answer")
        self.held = Room(self.limits.held, "too much waits for an answer")
        self.explanations = Room(self.limits.explanations, "too many images wait to be explained", 3 * AGAIN)
