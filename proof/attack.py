"""Attack `alexnet serve`: every request is answered in time, without a 5xx, in bounded memory, and no worker is lost.

    python -m proof.attack [--images 20000] [--seed N] [--quick]

Sends bodies much larger than the limit, slow bodies, thousands of parts, decompression bombs, wrong types, path traversals,
garbage, damaged images (as `fuzz.py` makes them), and requests that schemathesis generates from /openapi.json; leaves answers
unread; and opens more connections than the limit. Meanwhile a client requests a prediction every half second, and must get it.
Prints a table; the exit code is 1 if a check fails. `--quick` skips what waits for the server's own time limits. Slow headers
and idle connections are left to a proxy (docs/limits.md).
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from proof.fuzz import made, seeds, trained
from proof.pictures import encoded
from proof.processes import memory, served, watched_memory

from alexnet.server.limits import Limits

LIMITS = Limits()
MEMORY = 2 << 30  # bytes above the idle level, at the peak: two processes may decode 50 megapixels each, in three copies
REST = 300 << 20  # bytes above the idle level when all attacks are over
PATIENCE = 20.0  # seconds for an answer to the regular client
AT_ONCE = 8
HUGE = 640  # pieces of 64 KiB: more than the limit on a body
SILENT = {"head too large"}  # the connection may simply be closed
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

FORM = "Content-Type: multipart/form-data; boundary=XX\r\n"
PART = '--XX\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
CLOSE = "Connection: close\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"


def head(method: str = "POST", path: str = "/predict", more: str = "", length: int | None = None) -> bytes:
    """Return a request's head."""
    length_ = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length_}{more}\r\n".encode("latin-1")


def whole(body: bytes, path: str = "/predict", more: str = "") -> bytes:
    """Return a request that asks to close the connection afterwards."""
    return head("POST", path, f"{more}{CLOSE}", len(body)) + body


def form(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a multipart body."""
    return b"".join(PART.format(name).encode() + content + b"\r\n" for name, content in files) + b"--XX--\r\n"


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Iterator[bytes]:
    """Go on for ever."""
    yield first
    while True:
        yield piece
        time.sleep(pause)


class Attack:
    """A server under attack, and the problems found."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.faults: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()  # by attack and outcome
        self.slowest: Counter[str] = Counter()  # milliseconds, by attack
        self.crowded = threading.Event()  # more connections are open than the server allows: 503 is right

    def send(self, name: str, pieces: Iterable[bytes], seconds: float = 60.0) -> bytes:
        """Send pieces until they end or the server stops reading; record and return its answer."""
        began, answer = time.monotonic(), b""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except OSError:  # it has heard enough
                pass
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except TimeoutError:
                self.faults.append(f"{name}: no end in {seconds:g} s after {answer[:60]!r}")
            except OSError:
                pass  # reset: what was read before counts
        self.note(name, answer, time.monotonic() - began)
        return answer

    def note(self, name: str, answer: bytes, seconds: float) -> None:
        """Count an answer; a missing answer or a 5xx is a problem."""
        status = answer[9:12].decode("latin-1") or "closed"
        self.counts[name, status] += 1
        self.took(name, seconds)
        if (status.startswith("5") and not self.crowded.is_set()) or (status == "closed" and name not in SILENT):
            self.faults.append(f"{name}: {answer[:200]!r}")

    def took(self, name: str, seconds: float) -> None:
        """Record how long something took."""
        self.slowest[name] = max(self.slowest[name], round(1000 * seconds))

    def together(self, name: str, attacks: Iterable[Iterable[bytes]], at_once: int = AT_ONCE, seconds: float = 60.0) -> None:
        """Send several requests concurrently."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda pieces: self.send(name, pieces, seconds), attacks))


# Requests

TYPES = ("text/html", "application/json", "application/x-www-form-urlencoded", "image/svg+xml", "", ";;;=", "é" * 200)
PATHS = (
    *("/../../etc/passwd", "/static/../../api.py", "/static/%2e%2e%2fapi.py", "/static/..%5capi.py", "/static//etc/passwd"),
    *("/static/index.html%00.png", "/static/" + "a" * 9000, "/" + "%ff" * 50, "//evil.example/", "http://evil.example/", "*"),
)
QUERIES = ("top=-1", "top=1e9", "top=9" + "9" * 999, "top=%00", "top=1&top=x", "top[]=1", "&" * 2000)
BOUNDARIES = ("", "; boundary=", f"; boundary={'x' * 9000}")
NO_IMAGES = (b"", b"{}", b"\0" * 100_000, b"GIF89a", b"\xff\xd8\xff")
METHODS = ("PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "A" * 50)
HOSTS = (b"", b"Host: evil\r\n", b"Host: a\r\nHost: b\r\n")
LENGTHS = ("-1", "x", "9" * 30, "1, 1", "1e3")
ENCODINGS = (CHUNKED, "Transfer-Encoding: gzip\r\n", "Content-Encoding: br\r\nContent-Length: 4\r\n")
GARBAGE = (
    *(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\0" * 100_000, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    b"A" * 200_000,
)
NAMED = b'--XX\r\nContent-Disposition: form-data; name="images"'
FORMS = (
    *(b"", b"--XX", b"--XX--", b"\r\n" * 10_000, NAMED),
    NAMED + b'; filename="' + b"a" * 100_000 + b'"\r\n\r\nx\r\n--XX--\r\n',
    b"--XX\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\nx\r\n--XX--\r\n",
    b"--XX\r\n\r\nx\r\n--XX--\r\n",
    NAMED.replace(b"images", b"__proto__") + b"\r\n\r\nx\r\n--XX--\r\n",
    form([("../../../etc/passwd", b"x"), ("C:\\a\\b", b"x"), ("a\x00b", b"x"), ("", b"x")]),
)


def odd_requests() -> dict[str, list[bytes]]:
    """Return invalid requests, by what is wrong with them."""
    return {
        "thousands of parts": [whole(form([("a", b"a")] * 20_000), more=FORM), whole(form([("a", b"")] * 400_000), more=FORM)],
        "parts that are none": [whole(body, more=FORM) for body in FORMS],
        "boundaries": [whole(b"--x--", more=f"Content-Type: multipart/form-data{text}\r\n") for text in BOUNDARIES],
        "wrong types": [whole(b"<html>", more=f"Content-Type: {kind}\r\n") for kind in TYPES],
        "no images": [whole(body, route) for body in NO_IMAGES for route in ("/predict", "/explain")],
        "paths": [head("GET", path, CLOSE) for path in PATHS],
        "queries": [whole(b"x", f"/predict?{query}") for query in QUERIES],
        "methods": [head(method, "/predict", CLOSE, 0) for method in METHODS],
        "hosts": [f"GET / HTTP/1.1\r\n{CLOSE}".encode() + host + b"\r\n" for host in HOSTS],
        "lengths": [head(more=f"Content-Length: {length}\r\n{CLOSE}") + b"x" for length in LENGTHS],
        "encodings": [head(more=f"{encoding}{CLOSE}") + b"zz\r\n" for encoding in ENCODINGS],
        "smuggling": [head(more=f"{CHUNKED}{CLOSE}", length=5) + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"],
        "garbage": list(GARBAGE),
    }


# Files


def blank_png(width: int, height: int, mode: str = "L", extra: bytes = b"") -> bytes:
    """Return an empty PNG that is large when decoded."""
    content = encoded(Image.new(mode, (width, height)), "png")
    return content[:33] + extra + content[33:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def bombs() -> dict[str, bytes]:
    """Return files that are small but large when decoded."""
    zeros = zlib.compress(bytes(100_000_000), 9)
    header = bytearray(blank_png(8, 8))
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    frames = [Image.new("P", (4000, 4000), i) for i in range(20)]
    return {
        "120 megapixels": blank_png(12_001, 10_000, "1"),
        "49 megapixels, which decode": blank_png(7_000, 7_000, "RGB"),
        "49 megapixels of 16 bits": blank_png(7_000, 7_000, "I;16"),
        "2^62 pixels said": bytes(header),
        "text of 100 MB": blank_png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zeros)),
        "profile of 100 MB": blank_png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros)),
        "gif of many frames": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "one row of 40 million": blank_png(40_000_000, 1),
        "tiff of 81 megapixels": encoded(Image.new("1", (9_000, 9_000)), "tiff", compression="group4"),
        "webp of 49 megapixels": encoded(Image.new("RGB", (7_000, 7_000)), "webp", lossless=True, method=0),
        "jpeg 2000 of 49 megapixels": encoded(Image.new("L", (7_000, 7_000)), "jpeg2000"),
    }


# Attacks


def odd(attack: Attack) -> None:
    """Send invalid requests."""
    for name, requests in odd_requests().items():
        attack.together(name, ([request] for request in requests))


def bodies(attack: Attack) -> None:
    """Send bodies much larger than the limit."""
    piece = bytes(1 << 16)
    part = PART.format("a").encode()
    started = head(more=f"{CHUNKED}{CLOSE}{FORM}") + b"%x\r\n%s\r\n" % (len(part), part)

    def huge(first: bytes, piece: bytes, last: bytes = b"") -> list[Iterable[bytes]]:
        return [chain(islice(endless(first, piece), HUGE + 1), [last]) for _ in range(AT_ONCE)]

    chunk, end = b"10000\r\n" + piece + b"\r\n", b"0\r\n\r\n"
    attack.together("huge body", huge(head("POST", "/predict", CLOSE, HUGE << 16), piece))
    attack.together("huge body in chunks", huge(head(more=f"{CHUNKED}{CLOSE}"), chunk, end))
    attack.together("huge file in a form", huge(started, chunk, end))
    attack.together("head too large", huge(b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 100))
    attack.together("huge body to a GET", huge(head("GET", "/model", CLOSE, HUGE << 16), piece))
    large = bytes(LIMITS.bytes)
    attack.together("as large as may be", ([whole(large)] for _ in range(3 * AT_ONCE)), 3 * AT_ONCE)


def slow(attack: Attack) -> None:
    """Send bodies slowly, do not read the answers, open too many connections."""
    seconds, first = LIMITS.body_seconds + 30, head("POST", "/predict", CLOSE, 1 << 20)
    attack.together("slow bodies", [islice(endless(first, b"x", 1.0), int(seconds)) for _ in range(60)], 60, seconds)
    held = [socket.create_connection(("127.0.0.1", attack.port), 60) for _ in range(20)]
    for connection in held:  # their answers are not read
        connection.settimeout(1)
        try:
            for _ in range(200):
                connection.sendall(head("GET", "/openapi.json") * 20)
        except OSError:
            continue
    attack.send("after clients that never read", [whole(b"x")])
    for connection in held:
        connection.close()
    attack.crowded.set()
    many: list[socket.socket] = []
    try:
        many += [socket.create_connection(("127.0.0.1", attack.port), 5) for _ in range(LIMITS.connections + 100)]
    except OSError as error:
        attack.faults.append(f"connections: {error}")
    answer = attack.send("connection too many", [head("GET", "/model", CLOSE)])
    if not answer.startswith(b"HTTP/1.1 503"):
        attack.faults.append(f"connections: {answer[:100]!r}")
    for connection in many:
        connection.close()
    time.sleep(1)
    attack.crowded.clear()
    attack.send("and after that", [whole(b"x")])


def fuzz(attack: Attack, count: int, seed: int) -> None:
    """Send damaged images, sixteen per request, and occasionally request an explanation."""
    chance = np.random.default_rng(seed)
    started = seeds(chance)

    def file(i: int) -> tuple[str, bytes]:
        name, _, content = made(i, started, chance)
        return f"{i}.{name.split()[0]}", content

    def ask(files: list[tuple[str, bytes]]) -> None:
        answer = attack.send("damaged images", [whole(form(files), more=FORM)])
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        if [one["image"] for one in found] != [name for name, _ in files]:
            attack.faults.append(f"damaged images: {answer[:200]!r}")
        for one in found:
            attack.counts["each of them", "read" if "predictions" in one else "refused"] += 1
            if "crashed" in one.get("error", "") or ("predictions" in one) == ("error" in one):
                attack.faults.append(f"damaged images: {one}")

    requests = ([file(i) for i in range(start, min(start + 16, count))] for start in range(0, count, 16))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for answered in [pool.submit(ask, files) for files in requests]:
            if error := answered.exception():
                attack.faults.append(f"damaged images: {error!r}")
    attack.together("damaged, to be explained", ([whole(file(i)[1], "/explain")] for i in range(min(40, count))), 3)


def invented(attack: Attack, examples: int) -> None:
    """Let schemathesis invent requests."""
    url = f"http://127.0.0.1:{attack.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", CHECKS, "--max-examples", str(examples)]
    command += ["--request-timeout", "30", "--suppress-health-check", "all", "--continue-on-failure", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    attack.counts["schemathesis", "exit code 0" if done.returncode == 0 else f"exit code {done.returncode}"] += 1
    if done.returncode:
        attack.faults.append(f"schemathesis: {done.stdout[-3000:]}{done.stderr[-1000:]}")


def canary(attack: Attack, image: bytes, ended: threading.Event) -> None:
    """Request a prediction every half second; after a 429, retry as the answer says, for a limited time."""
    while not ended.wait(0.5):
        began = time.monotonic()
        while True:
            try:
                answer = attack.send("canary", [whole(image)])
            except OSError as error:
                answer = repr(error).encode()
            if answer.startswith(b"HTTP/1.1 200 ") and b"predictions" in answer:
                break
            if time.monotonic() - began > PATIENCE:
                attack.faults.append(f"canary: none in {PATIENCE:g} s, but {answer[:100]!r}")
                break
            time.sleep(1)
        attack.took("canary, until answered", time.monotonic() - began)


def run(attack: Attack, options: argparse.Namespace) -> None:
    """Run all attacks, one after another."""
    steps: dict[str, Callable[[], None]] = {
        "odd requests": lambda: odd(attack),
        "bodies": lambda: bodies(attack),
        "bombs": lambda: attack.together("bombs", ([whole(bomb)] for bomb in list(bombs().values()) * 2), 4, 120),
        "damaged images": lambda: fuzz(attack, options.images, options.seed),
        "invented": lambda: invented(attack, max(10, options.images // 100)),
        "slow": lambda: slow(attack),
    }
    if options.quick:
        steps.pop("slow")
    for name, step in steps.items():
        began = time.monotonic()
        step()
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Attack, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Attack a server; see the file's head.")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, served(trained(Path(folder)).path) as server:
        attack, ended = Attack(server.port), threading.Event()
        image = seeds(np.random.default_rng(0))["JPEG"][0]
        attack.send("before", [whole(image)])
        attack.send("before", [whole(image, "/explain")])
        workers = len(psutil.Process(server.process.pid).children())
        rest = memory(server.process.pid)
        with watched_memory(server.process.pid, 0.05) as samples:
            asking = threading.Thread(target=canary, args=(attack, image, ended), daemon=True)
            asking.start()
            run(attack, options)
            ended.set()
            asking.join()
            time.sleep(3)
        peak, last = max(used for _, used in samples) - rest, samples[-1][1] - rest
        if (left := len(psutil.Process(server.process.pid).children())) != workers:
            attack.faults.append(f"{left} workers are left of {workers}")
        tracebacks = [line for line in server.log().splitlines() if '"traceback"' in line]
    attack.faults += [f"the log: {line[:1000]}" for line in tracebacks[:5]]
    attack.faults += [f"{peak / 1e6:.0f} MB above rest at most are more than {MEMORY / 1e6:.0f}"] if peak > MEMORY else []
    attack.faults += [f"{last / 1e6:.0f} MB above rest at the end are more than {REST / 1e6:.0f}"] if last > REST else []
    for name in dict.fromkeys([*(name for name, _ in attack.counts), *attack.slowest]):
        came = ", ".join(f"{status}: {n:,}" for (which, status), n in sorted(attack.counts.items()) if which == name)
        print(f"{name:30} {attack.slowest[name] / 1000:7.1f} s at most   {came}")
    print(f"memory {peak / 1e6:.0f} MB above rest at most, {last / 1e6:.0f} MB at the end; {workers} workers, none lost")
    print("\n".join(attack.faults[:40]) or "every request was answered in time, and none with a 5xx")
    return 1 if attack.faults else 0


if __name__ == "__main__":
    sys.exit(main())
