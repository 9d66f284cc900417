"""A server under load: no failures, no growing memory, and its speed compared with a plain loop over the same images.

    ALEXNET_TEST_DATA=… python -m proof.load RUN [--requests 10000] [--at-once 32]

Real JPEGs are sent to `alexnet serve RUN`, a separate process, with `--at-once` concurrent requests, and then one at a time,
where no batch has more than one image. The peer is a plain loop in one process: decode the same bytes, preprocess, call
onnxruntime with batches as large as the number of concurrent requests. Requirements for the server, with its clients on the
same machine: all answers correct, no growth of memory over the second half, and at least 0.6 times the loop's images per
second. Prints a table; the exit code is 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmarks.inference import export, session
from proof.processes import served, watched_memory
from torch.nn.functional import interpolate

import alexnet
from alexnet.data import decode
from alexnet.data.preprocessing import fit_image, to_input

WANTED = 0.6  # relative to the loop's images per second
GROWTH = 16 << 20  # bytes over the second half: a few pages are not a leak
AGREEING = 0.97  # fraction of equal best labels: the server computes in bfloat16 if the hardware does, onnxruntime in float32
PHOTOS = 1000
FOLDERS = ("cats-dogs", "imagenette")  # photos, not thumbnails
HEAD = "POST /predict?top=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


class Answers(NamedTuple):
    """The results of a load test: label by request, seconds by request, and failures."""

    labels: list[str | None]
    latencies: list[float]
    failures: list[str]
    seconds: float

    def figures(self) -> dict[str, float]:
        """Return images per second, and the median and the 99th percentile of milliseconds."""
        median, p99 = np.quantile(self.latencies, [0.5, 0.99]) * 1e3
        return {"images_per_second": len(self.latencies) / self.seconds, "median_ms": float(median), "p99_ms": float(p99)}


def photos() -> list[bytes]:
    """Return JPEG files, shuffled."""
    data = os.environ.get("ALEXNET_TEST_DATA") or sys.exit("ALEXNET_TEST_DATA names no folder of real images")
    inside = [path for name in FOLDERS for path in Path(data, name).rglob("*")]
    found = sorted(path for path in inside if path.suffix.lower() in (".jpg", ".jpeg"))
    return [found[i].read_bytes() for i in np.random.default_rng(0).permutation(len(found))[:PHOTOS]]


async def ask(port: int, bodies: Iterator[tuple[int, bytes]], answers: Answers) -> None:
    """Send one request after another over one connection, as long as there are any."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i, body in bodies:
        began = time.perf_counter()
        writer.write(HEAD.format(len(body)).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        answers.latencies.append(time.perf_counter() - began)
        try:
            answers.labels[i] = json.loads(content)[0]["predictions"][0]["label"]
        except (ValueError, KeyError, TypeError):
            answers.failures.append(f"request {i}: {head.splitlines()[0].decode()}: {content[:100]!r}")
    writer.close()


async def load(port: int, files: list[bytes], requests: int, at_once: int) -> Answers:
    """Send all requests, `at_once` of them concurrently."""
    answers, began = Answers([None] * requests, [], [], 0.0), time.perf_counter()
    bodies = enumerate(islice(cycle(files), requests))
    for ended in await asyncio.gather(*(ask(port, bodies, answers) for _ in range(at_once)), return_exceptions=True):
        if ended is not None:
            answers.failures.append(f"a connection: {ended!r}")
    return answers._replace(seconds=time.perf_counter() - began)


class Loop:
    """The peer: decode, preprocess, run onnxruntime."""

    def __init__(self, run: alexnet.Run) -> None:
        self._run, self._preprocessing = run, run.config.preprocessing
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export(run.network, self._preprocessing.input, path)
            self._session = session(path, torch.get_num_threads())
        [self._name] = [given.name for given in self._session.get_inputs()]

    def labels(self, files: list[bytes], batch: int) -> tuple[list[str], float]:
        """Return the best label of each file, and the images per second."""
        preprocessing, found, began = self._preprocessing, list[str](), time.perf_counter()
        for start in range(0, len(files), batch):
            some = files[start : start + batch]
            images = [fit_image(decode.stored_pixels(file, **preprocessing.decode_options()), preprocessing) for file in some]
            x = to_input(torch.from_numpy(np.stack(images)), preprocessing)
            if preprocessing.upscale > 1:
                x = interpolate(x, scale_factor=preprocessing.upscale, mode="nearest-exact")
            logits = self._session.run(None, {self._name: x.contiguous().numpy()})[0]
            found += [self._run.labels[i] for i in logits.argmax(1)]
        return found, len(files) / (time.perf_counter() - began)


def growth(samples: list[tuple[float, int]]) -> float:
    """Return the growth of memory over the samples in bytes, by a straight-line fit."""
    times, used = np.array(samples, dtype=np.float64).T
    return float(np.polyfit(times - times[0], used, 1)[0] * (times[-1] - times[0])) if len(samples) > 2 else 0.0


def measure(options: argparse.Namespace) -> bool:
    """Put the server under load, run the loop, and print the table; return whether all requirements are met."""
    files, at_once = photos(), options.at_once
    some = list(islice(cycle(files), min(options.requests, 2 * PHOTOS)))
    loop = Loop(alexnet.load(options.run))
    loop.labels(some[:64], at_once)
    _, before = loop.labels(some, at_once)
    with served(options.run) as server:
        asyncio.run(load(server.port, files, 2 * at_once, at_once))
        with watched_memory(server.process.pid) as samples:
            many = asyncio.run(load(server.port, files, options.requests, at_once))
        single = asyncio.run(load(server.port, files, max(100, options.requests // 10), 1))
    expected, after = loop.labels(some, at_once)

    size = statistics.median(map(len, files)) / 1e3
    print(f"{os.cpu_count()} cores, {len(files):,} JPEG files of {size:.0f} KB (median)")
    row = "{:34} {:7,}  {images_per_second:7.1f} images/s  median {median_ms:6.1f} ms  p99 {p99_ms:6.1f} ms"
    print(row.format(f"server, {at_once} at a time", len(many.latencies), **many.figures()))
    print(row.format("server, one at a time", len(single.latencies), **single.figures()))
    slow, fast = sorted((before, after))
    print(f"{f'loop, onnxruntime, batches of {at_once}':34} {len(some):7,}  {slow:7.1f} to {fast:.1f} images/s")
    pace = options.requests / many.seconds
    print(f"the server is {pace / fast:.2f} to {pace / slow:.2f} times as fast as the loop, wanted {WANTED} or more")
    agreeing = float(np.mean([a == b for a, b in zip(many.labels, expected, strict=False)]))
    print(f"the same best label in {agreeing:.1%} of the images")
    half = samples[len(samples) // 2 :]
    first, last, grown = half[0][1], half[-1][1], growth(half)
    print(f"memory {first / 1e6:.0f} MB at half, {last / 1e6:.0f} MB at the end, {grown / 1e6:+.1f} MB on the line through it")
    failures = many.failures + single.failures
    print("\n".join(failures[:20]) or "no failure")
    figures = {**many.figures(), "images_per_second": pace, "single": single.figures()["images_per_second"]}
    figures |= {"loop": [before, after], "ratio": pace / statistics.mean((before, after)), "agreeing": agreeing}
    print(json.dumps({"benchmark": "load", **figures, "grown": grown, "failures": len(failures)}))
    return not failures and figures["ratio"] >= WANTED and grown < GROWTH and agreeing > AGREEING


def main() -> int:
    """Measure, and return the exit code."""
    parser = argparse.ArgumentParser(description="A server under load; see the file's head.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=32)
    return 0 if measure(parser.parse_args()) else 1


if __name__ == "__main__":
    os.environ["ORT_DISABLE_ALL_LOGGING"] = "1"
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
