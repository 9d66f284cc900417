"""Decode images in separate processes, so that no file can hang or crash the main process.

Workers (decode_worker.py) answer with JSON and bytes, none of which are executed. (multiprocessing is unsuitable: spawn runs
the user's script again, fork is unsafe with OpenMP.) The system kills a worker that takes too long, even inside a C library;
the image is reported, and another worker takes over.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import alexnet
from alexnet.data.decode_worker import CPU_SECONDS, THUMBNAIL, WORK
from alexnet.errors import DataError, ImageError

WALL_SECONDS = 60.0  # limit for waits that take no CPU time, such as a network drive that hangs, and for Windows
WATCH_SECONDS = 1.0  # between looks at that limit
IDLE_KEPT = 2  # idle workers to keep for the next call

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class InMemoryImage:
    """An image without a path: its name in results, and its content: the bytes of a file, pixels, or an error."""

    name: str
    content: bytes | NDArray[np.uint8] | Image.Image | ImageError


Source = Path | bytes | NDArray[np.uint8] | InMemoryImage  # a path, the bytes of a file, pixels, or an image from Python


class Answer(NamedTuple):
    """The reply of a worker: `facts` in JSON, and bytes."""

    facts: dict[str, Any]
    body: bytes

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image at the beginning of the body, H W 3."""
        height, width, channels = self.facts["shape"]
        return np.frombuffer(self.body, np.uint8, height * width * channels).reshape(height, width, channels)

    @property
    def thumbnail(self) -> NDArray[np.uint8]:
        """The thumbnail that ends the body, its values in a row."""
        return np.frombuffer(self.body[-3 * THUMBNAIL**2 :], dtype=np.uint8)


class _Worker:
    """A process that decodes one image at a time."""

    def __init__(self) -> None:
        # Pass on where the package was found, as sys.path may have been changed; -P ignores the current folder.
        paths = [os.environ.get("PYTHONPATH"), str(Path(alexnet.__file__).parent.parent)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-P", "-m", "alexnet.data.decode_worker"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._expired, self._deadline = False, float("inf")
        self._to, self._from = self._process.stdin, self._process.stdout
        if not self._from.readline():
            raise DataError(f"cannot decode images: {' '.join(command)} ended with exit code {self._process.wait()}")

    def ask(self, request: dict[str, Any], content: bytes = b"") -> Answer | ImageError:
        """Send a request and its `content`; return the answer, or an error, after which the process may have died."""
        self._deadline = time.monotonic() + WALL_SECONDS
        _asked.add(self)
        try:
            self._to.write(json.dumps(request).encode() + b"\n")
            self._to.write(content)
            self._to.flush()
            facts: dict[str, Any] = json.loads(self._from.readline())
            body = self._from.read(facts["bytes"])
            if len(body) == facts["bytes"]:
                return ImageError(facts["error"], facts["kind"]) if "error" in facts else Answer(facts, body)
        except (OSError, ValueError):  # the process died
            pass
        finally:
            _asked.discard(self)
        code = self.end()
        if self._expired or code == -getattr(signal, "SIGPROF", 0):
            return ImageError(f"decoding takes more than {CPU_SECONDS:g} seconds", "slow")
        return ImageError(f"the decoder crashed (exit code {code})", "corrupt")

    def expire(self) -> None:
        """Kill the process if its answer is overdue."""
        if time.monotonic() > self._deadline:
            self._expired = True
            self._process.kill()

    @property
    def alive(self) -> bool:
        """Whether the process can decode another image."""
        return not self._expired and self._process.poll() is None

    def end(self) -> int:
        """Kill the process and return its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
        return code


_idle: deque[_Worker] = deque()
_asked: set[_Worker] = set()  # those that have not answered yet
_watch: threading.Thread | None = None
if hasattr(os, "register_at_fork"):
    for workers in (_idle, _asked):
        os.register_at_fork(after_in_child=workers.clear)  # a child must not share the pipes of its parent's workers


def decode_all(
    work: str, sources: Iterable[Source], workers: int, ahead: int = 0, **settings: Any
) -> Generator[tuple[Source, Answer | ImageError], None, None]:
    """Do `work` on each source in parallel; yield each source in order, with the answer or the error.

    `work` is a name of `decode_worker.WORK`, or `module:function`, and takes the `settings`. `workers` processes decode up to
    `ahead` images before their turn, two for each worker at least; arrays and images of Pillow are processed in this process.
    """

    def answered(source: Source) -> tuple[Source, Answer | ImageError]:
        return source, decode_one(work, source, settings)

    try:
        yield from map_ahead(answered, sources, workers, max(ahead, 2 * workers))
    finally:
        while len(_idle) > IDLE_KEPT:
            _idle.pop().end()


def map_ahead(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Yield `function` of each item in order, computed in `workers` threads, for up to `ahead` items in advance."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_one(work: str, source: Source, settings: dict[str, Any]) -> Answer | ImageError:
    """Do `work` on one source and wait for the answer; see `decode_all`."""
    content = source.content if isinstance(source, InMemoryImage) else source
    if isinstance(content, ImageError):
        return content
    if isinstance(content, np.ndarray | Image.Image):
        try:
            return Answer(*WORK[work](content, **settings))
        except ImageError as error:
            return error
    _start_watch()
    worker = _take_worker()
    request = {"work": work, "settings": settings}
    if isinstance(content, bytes):
        answer = worker.ask({**request, "bytes": len(content)}, content)
    else:
        answer = worker.ask({**request, "path": os.path.abspath(content)})  # the worker's current folder may be another
    if worker.alive:
        _idle.append(worker)
    return answer


def _take_worker() -> _Worker:
    """Return an idle worker, or a new one."""
    with suppress(IndexError):
        while not (worker := _idle.pop()).alive:
            worker.end()
        return worker
    return _Worker()


def _start_watch() -> None:
    """Start the thread that kills overdue workers, unless it runs; a timer for each image would take a millisecond."""
    global _watch
    if _watch is None or not _watch.is_alive():  # as after a fork
        _watch = threading.Thread(target=_expire_overdue, daemon=True)
        _watch.start()


def _expire_overdue() -> None:
    while True:
        time.sleep(WATCH_SECONDS)
        for worker in list(_asked):
            worker.expire()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()
