"""`alexnet serve`: a run, a socket, and an end in order."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from alexnet.data.decode import MAX_PIXELS
from alexnet.errors import AlexNetError, Interrupted, error_reason
from alexnet.files import read_json
from alexnet.network.alexnet import AlexNet
from alexnet.run import ModelConfig, RunFolder
from alexnet.server import log
from alexnet.server.app import build
from alexnet.server.engine import Engine
from alexnet.server.limits import Limits
from alexnet.server.middleware import Guard
from alexnet.server.protocol import limited

KEY = "ALEXNET_API_KEY"
HEAD = 16 << 10  # bytes of a request's head
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Server(uvicorn.Server):
    """uvicorn's server, which says where it is, and notes the signal that ended it instead of dying of it.

    Attributes:
        code: the exit code that a shell expects, 128 and the signal's number; None before.
    """

    code: int | None = None

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print where it is as soon as it listens."""
        await super().startup(sockets)
        print(f"{'serve':10}  {self._url}  (Ctrl-C ends it)", flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop taking requests at Ctrl-C and SIGTERM, and answer those that are here; at a second Ctrl-C, do not."""

        def note(number: int, frame: FrameType | None) -> None:
            self.code = 128 + number
            self.handle_exit(number, frame)

        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(folder: RunFolder, network: AlexNet, config: ModelConfig, host: str, port: int) -> None:
    """Answer over HTTP until a signal comes, and then answer what has come.

    Raises:
        AlexNetError: captum is not installed, or nothing can listen there.
        Interrupted: always, at the end.
    """
    try:
        import captum  # noqa: F401 - now and not when somebody asks for an explanation
    except ImportError as error:
        raise AlexNetError(f"serving needs captum ({error}): pip install captum") from error
    limits, listening = Limits(), listen(host, port)
    log.take_over()
    server = make_server(Engine(network, config, limits), folder, config, limits, listening, os.environ.get(KEY) or None)
    with listening:
        server.run([listening])
    preprocessing = "interrupted" if server.code == 130 else "terminated"
    raise Interrupted(f"{preprocessing}: what had come was answered", server.code or 143)


def make_server(
    engine: Engine, folder: RunFolder, config: ModelConfig, limits: Limits, listening: socket.socket, key: str | None
) -> Server:
    """Return a server that is not started yet."""
    address, port = listening.getsockname()[:2]
    local = ipaddress.ip_address(address).is_loopback
    name = f"[{address}]" if ":" in address else address
    app = build(engine, limits, describe(folder, config, limits, key))
    guarded = Guard(app, limits, hosts={*LOOPBACK, name} if local else None, key=key)
    if not local and key is None:
        log.write(level="warning", message=f"whoever reaches this machine may ask: set {KEY} to ask for a key")
    settings = uvicorn.Config(
        guarded,
        http=limited(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEAD,
        timeout_keep_alive=max(1, int(limits.head_seconds)),
        timeout_graceful_shutdown=int(limits.body_seconds + limits.answer_seconds),
    )
    return Server(settings, f"http://{name}:{port}")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address.

    Raises:
        AlexNetError: there is no such address here, or somebody listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it would let two servers listen
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise AlexNetError(f"cannot listen on {host}, port {port}: {error_reason(error)}; try another --port") from error
    return listening


def describe(folder: RunFolder, config: ModelConfig, limits: Limits, key: str | None) -> dict[str, Any]:
    """Return what `GET /model` says.

    Raises:
        RunError: the run's summary cannot be read.
    """
    side = config.preprocessing.input
    return {
        "run": folder.path.resolve().name,
        "variant": config.variant,
        "labels": list(config.labels),
        "input": [3, side, side],
        "temperature": config.temperature,
        "accuracy": _accuracy(read_json(folder.summary)) if folder.summary.exists() else None,
        "limits": {
            "bytes": limits.body,
            "files": limits.files,
            "pixels": MAX_PIXELS,
            "body_seconds": limits.body_seconds,
            "answer_seconds": limits.answer_seconds,
        },
        "key": key is not None,
    }


def _accuracy(summary: dict[str, Any]) -> dict[str, Any] | None:
    for split in ("test", "validation"):
        if found := summary.get(split):
            return {"split": split, "images": found["images"], "top1": found["top1"], "top1_interval": found["top1_interval"]}
    return None
