"""Helpers for test_serve.py: send requests to a server."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proof.pictures import picture

import alexnet
from alexnet.server.engine import Engine


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Gated(Engine):
    """An engine that records the size of each batch, and blocks before the network until `open` is set."""

    def __init__(self, run: alexnet.Run) -> None:
        super().__init__(run.network, run.config)
        self.open, self.sizes, self.computing = threading.Event(), list[int](), 0
        self.open.set()

    def forward(self, images: list[Any]) -> list[Any]:
        self.computing = len(images)
        self.open.wait(60)
        self.sizes.append(len(images))
        return super().forward(images)


@dataclass
class Client:
    port: int
    engine: Gated

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **more: Any) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {}, **more)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def predict(self, body: Any, path: str = "/predict", **headers: str) -> Reply:
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def form(self, files: list[tuple[str, bytes]], path: str = "/predict", field: str = "images") -> Reply:
        return self.predict(multipart(files, field), path, Content_Type="multipart/form-data; boundary=XX")

    def raw(self, sent: bytes) -> bytes:
        """Send raw bytes, and return everything received until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def multipart(files: list[tuple[str, bytes]], field: str = "images") -> bytes:
    head = '--XX\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n'
    return b"".join(head.format(field, name).encode() + content + b"\r\n" for name, content in files) + b"--XX--\r\n"


def photo(kind: int = 0, seed: int = 0, **how: Any) -> bytes:
    file = io.BytesIO()
    picture(kind, seed).save(file, **{"format": "PNG", **how})
    return file.getvalue()


def until(true: Callable[[], Any]) -> None:
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)
