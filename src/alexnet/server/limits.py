"""Limits of the server, and quotas shared by all requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.exceptions import HTTPException


@dataclass(frozen=True)
class Limits:
    """The server's limits; those of a single image, pixels and seconds, are in `data/decode.py`."""

    bytes: int = 32 << 20  # of a request
    files: int = 64  # of a request
    all_bytes: int = 256 << 20  # of all requests waiting for an answer
    images: int = 512  # of all requests waiting for an answer
    explanations: int = 4  # computed, one at a time, or waiting
    connections: int = 512  # open at once; more get 503
    head: int = 16 << 10  # bytes of a request's headers
    idle_seconds: int = 10  # between two requests on a connection
    body_seconds: float = 30.0  # until a request's body has arrived
    answer_seconds: float = 60.0  # from then until the answer


def busy(reason: str) -> HTTPException:
    """Return status 429 with `Retry-After`."""
    return HTTPException(429, f"{reason}: try again in 1 s", {"Retry-After": "1"})


class Quotas:
    """Counts resources shared by all requests; exceeding a limit raises status 429."""

    def __init__(self, limits: Limits) -> None:
        self.limits = {"bytes": limits.all_bytes, "images": limits.images, "explanations": limits.explanations}
        self.used = dict.fromkeys(self.limits, 0)

    def check(self, name: str, count: int = 1) -> None:
        """Raise if `count` more would exceed a limit."""
        if self.used[name] + count > self.limits[name]:
            raise busy(f"too many {name} are waiting")

    @contextmanager
    def use(self, name: str, count: int = 1) -> Iterator[None]:
        """Use `count` more while the context lasts."""
        self.check(name, count)
        self.used[name] += count
        try:
            yield
        finally:
            self.used[name] -= count
