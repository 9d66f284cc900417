"""Whatever comes, the server answers: in time, with no 5xx, in bounded memory, and losing no worker.

    python -m proof.attack [--images 20000] [--seed N] [--quick]

Bodies without end, slow ones, clients that never read, thousands of parts, bombs, wrong types, paths that lead elsewhere,
garbage, damaged images (as `fuzz.py` makes them), and requests that schemathesis invents from /openapi.json, against
`alexnet serve` in a process of its own; all the while somebody asks for a prediction every half second, and must get it.
Prints a table; exit code 1 if anything was not as promised. `--quick` leaves out what waits for the server's own time limits.
"""

from __future__ import annotations

import argparse
import io
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
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from proof.fuzz import CHANGES, damaged, seeds, trained
from proof.served import Server
from proof.watch import Watch

from alexnet.use.serving.limits import Limits

LIMITS = Limits()
MEMORY = 2 << 30  # bytes above rest, at the worst moment: two processes may decode 50 megapixels each, in three copies
REST = 300 << 20  # bytes above rest when all is over
PATIENCE = 20.0  # seconds for a canary's answer
AT_ONCE = 8
FORM = "Content-Type: multipart/form-data; boundary=XX\r\n"
PART = '--XX\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def head(method: str = "POST", path: str = "/predict", more: str = "", length: int | None = None) -> bytes:
    """Return a request's head."""
    length_ = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length_}{more}\r\n".encode("latin-1")


def whole(body: bytes, path: str = "/predict", more: str = "") -> bytes:
    """Return a request, after which the connection is to end."""
    return head("POST", path, f"{more}Connection: close\r\n", len(body)) + body


def form(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a multipart body."""
    return b"".join(PART.format(name).encode() + content + b"\r\n" for name, content in files) + b"--XX--\r\n"


class Attack:
    """A server under attack, and what was not as it should be."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.faults: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()  # by attack and what came of it
        self.slowest: Counter[str] = Counter()  # milliseconds, by attack

    def send(self, name: str, pieces: Iterable[bytes], seconds: float = 60.0) -> bytes:
        """Send pieces until they end or the server has enough; return its answer, and note it."""
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
        """Count an answer; none at all, or a 5xx, is a fault."""
        status = answer[9:12].decode("latin-1") or "closed"
        self.counts[name, status] += 1
        self.slowest[name] = max(self.slowest[name], round(1000 * seconds))
        if status.startswith("5") or (status == "closed" and name not in SILENT):
            self.faults.append(f"{name}: {answer[:200]!r}")

    def together(self, name: str, attacks: Iterable[Iterable[bytes]], at_once: int = AT_ONCE, seconds: float = 60.0) -> None:
        """Send several at the same time."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda pieces: self.send(name, pieces, seconds), attacks))


SILENT = {"nothing said", "head without end"}  # the connection may just be closed


# What is sent


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Iterator[bytes]:
    """Go on for ever."""
    yield first
    while True:
        yield piece
        time.sleep(pause)


def compressed_png(width: int, height: int, mode: str = "L", extra: bytes = b"") -> bytes:
    """Return a PNG of nothing, large where it is decoded."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "png")
    content = file.getvalue()
    return content[:33] + extra + content[33:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def bombs() -> dict[str, bytes]:
    """Return files that are small here and large there."""
    zeros = zlib.compress(bytes(100_000_000), 9)

    def packed(image: Image.Image, kind: str, **how: object) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **how)
        return file.getvalue()

    header = bytearray(compressed_png(8, 8))
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    frames = [Image.new("P", (4000, 4000), i) for i in range(20)]
    return {
        "120 megapixels": compressed_png(12_001, 10_000, "1"),
        "49 megapixels, which decode": compressed_png(7_000, 7_000, "RGB"),
        "49 megapixels of 16 bits": compressed_png(7_000, 7_000, "I;16"),
        "2^62 pixels said": bytes(header),
        "text of 100 MB": compressed_png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zeros)),
        "profile of 100 MB": compressed_png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros)),
        "gif of many frames": packed(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "one row of 40 million": compressed_png(40_000_000, 1),
        "tiff of 81 megapixels": packed(Image.new("1", (9_000, 9_000)), "tiff", compression="group4"),
        "webp of 49 megapixels": packed(Image.new("RGB", (7_000, 7_000)), "webp", lossless=True, method=0),
        "jpeg 2000 of 49 megapixels": packed(Image.new("L", (7_000, 7_000)), "jpeg2000"),
    }


def odd_requests() -> dict[str, list[bytes]]:
    """Return requests that are no good, by what is wrong with them."""
    kinds = ("text/html", "application/json", "application/x-www-form-urlencoded", "image/svg+xml", "", ";;;=", "é" * 200)
    paths = [
        "/../../etc/passwd",
        "/static/../../api.py",
        "/static/%2e%2e%2fapi.py",
        "/static/..%5capi.py",
        "/static//etc/passwd",
    ]
    paths += [
        "/static/index.html%00.png",
        "/static/" + "a" * 9000,
        "/" + "%ff" * 50,
        "//evil.example/",
        "http://evil.example/",
        "*",
    ]
    queries = ["top=-1", "top=1e9", "top=9" + "9" * 999, "top=%00", "top=1&top=x", "top[]=1", "&" * 2000]
    part = b'--XX\r\nContent-Disposition: form-data; name="images"'
    forms = [
        b"",
        b"--XX",
        b"--XX--",
        b"\r\n" * 10_000,
        part,
        part + b'; filename="' + b"a" * 100_000 + b'"\r\n\r\nx\r\n--XX--\r\n',
        b"--XX\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\nx\r\n--XX--\r\n",
        b"--XX\r\n\r\nx\r\n--XX--\r\n",
        part.replace(b"images", b"__proto__") + b"\r\n\r\nx\r\n--XX--\r\n",
        form([("../../../etc/passwd", b"x"), ("C:\\a\\b", b"x"), ("a\x00b", b"x"), ("", b"x")]),
    ]
    return {
        "thousands of parts": [whole(form([("a", b"a")] * 20_000), more=FORM), whole(form([("a", b"")] * 400_000), more=FORM)],
        "parts that are none": [whole(body, more=FORM) for body in forms],
        "boundaries": [
            whole(b"--x--", more=f"Content-Type: multipart/form-data{b}\r\n")
            for b in ("", "; boundary=", f"; boundary={'x' * 9000}")
        ],
        "wrong types": [whole(b"<html>", more=f"Content-Type: {kind}\r\n") for kind in kinds],
        "no images": [
            whole(body, route)
            for body in (b"", b"{}", b"\0" * 100_000, b"GIF89a", b"\xff\xd8\xff")
            for route in ("/predict", "/explain")
        ],
        "paths": [head("GET", path, "Connection: close\r\n") for path in paths],
        "queries": [whole(b"x", f"/predict?{query}") for query in queries],
        "methods": [
            head(method, "/predict", "Connection: close\r\n", 0)
            for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "A" * 50)
        ],
        "hosts": [
            b"GET / HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n"
            for host in (b"", b"Host: evil\r\n", b"Host: a\r\nHost: b\r\n")
        ],
        "lengths": [
            head("POST", "/predict", f"Content-Length: {n}\r\nConnection: close\r\n") + b"x"
            for n in ("-1", "x", "9" * 30, "1, 1", "1e3")
        ],
        "encodings": [
            head("POST", "/predict", f"{e}Connection: close\r\n") + b"zz\r\n"
            for e in (
                "Transfer-Encoding: chunked\r\n",
                "Transfer-Encoding: gzip\r\n",
                "Content-Encoding: br\r\nContent-Length: 4\r\n",
            )
        ],
        "smuggling": [
            head("POST", "/predict", "Transfer-Encoding: chunked\r\nConnection: close\r\n", 5)
            + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        ],
        "garbage": [
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"\0" * 100_000,
            b"GET\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"A" * 200_000,
        ],
    }


# Attacks


def bodies(attack: Attack) -> None:
    """Send what has no end."""
    piece = bytes(1 << 16)
    chunked = head("POST", "/predict", "Transfer-Encoding: chunked\r\n")
    declared = head("POST", "/predict", "", 1 << 40)
    part = PART.format("a").encode()
    attack.together("body without end", (endless(declared, piece) for _ in range(AT_ONCE)))
    attack.together("chunks without end", (endless(chunked, b"10000\r\n" + piece + b"\r\n") for _ in range(AT_ONCE)))
    started = head("POST", "/predict", f"Transfer-Encoding: chunked\r\n{FORM}") + b"%x\r\n%s\r\n" % (len(part), part)
    attack.together("file without end", (endless(started, b"10000\r\n" + piece + b"\r\n") for _ in range(AT_ONCE)))
    attack.together("head without end", (endless(b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 100) for _ in range(AT_ONCE)))
    attack.together("body to a GET without end", (endless(head("GET", "/model", "", 1 << 40), piece) for _ in range(AT_ONCE)))
    large = bytes(LIMITS.body)
    attack.together("as large as may be", ([whole(large)] for _ in range(3 * AT_ONCE)), 3 * AT_ONCE)


def slow(attack: Attack) -> None:
    """Keep the server waiting."""
    seconds = LIMITS.body_seconds + 30
    slow_bodies = [endless(head("POST", "/predict", "", 1 << 20), b"x", 1.0) for _ in range(60)]
    slow_heads = [endless(b"GET / HTTP/1.1\r\n", b"X: y\r\n", 1.0) for _ in range(60)]
    silent = [[b""] for _ in range(60)]
    with ThreadPoolExecutor(3) as pool:
        waiting = (("slow bodies", slow_bodies), ("slow heads", slow_heads), ("nothing said", silent))
        for done in [pool.submit(attack.together, name, pieces, 60, seconds) for name, pieces in waiting]:
            done.result()
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
    many: list[socket.socket] = []
    try:
        many += [socket.create_connection(("127.0.0.1", attack.port), 5) for _ in range(LIMITS.connections + 100)]
    except OSError as error:
        attack.faults.append(f"connections: {error}")
    answer = attack.send("connection too many", [head("GET", "/model", "Connection: close\r\n")])
    if not answer.startswith(b"HTTP/1.1 429"):
        attack.faults.append(f"connections: {answer[:100]!r}")
    for connection in many:
        connection.close()
    time.sleep(1)
    attack.send("and after that", [whole(b"x")])


def fuzz(attack: Attack, count: int, seed: int) -> None:
    """Send damaged images, sixteen in a request, and now and then one to be explained."""
    chance = np.random.default_rng(seed)
    started = seeds(chance)
    names = list(started)

    def made(i: int) -> tuple[str, bytes]:
        name, change = names[i % len(names)], CHANGES[i // len(names) % len(CHANGES)]
        other = started[names[int(chance.integers(len(names)))]]
        return f"{i}.{name.split()[0]}", damaged(
            started[name][int(chance.integers(len(started[name])))], other[0], change, chance
        )

    def ask(files: list[tuple[str, bytes]]) -> None:
        answer = attack.send("damaged images", [whole(form(files), more=FORM)])
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        if [one["image"] for one in found] != [name for name, _ in files]:
            attack.faults.append(f"damaged images: {answer[:200]!r}")
        for one in found:
            attack.counts["each of them", "read" if "predictions" in one else "told why not"] += 1
            if "crashed" in one.get("error", "") or ("predictions" in one) == ("error" in one):
                attack.faults.append(f"damaged images: {one}")

    requests = ([made(i) for i in range(start, min(start + 16, count))] for start in range(0, count, 16))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for answered in [pool.submit(ask, files) for files in requests]:
            if error := answered.exception():
                attack.faults.append(f"damaged images: {error!r}")
    attack.together("damaged, to be explained", ([whole(made(i)[1], "/explain")] for i in range(min(40, count))), 3)


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
    """Ask for a prediction every half second; a 429 is no answer, so ask again, as it says, but not for long."""
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
        attack.slowest["canary, until answered"] = max(
            attack.slowest["canary, until answered"], round(1000 * (time.monotonic() - began))
        )


def run(attack: Attack, options: argparse.Namespace) -> None:
    """Attack in every way, one after the other."""
    steps: dict[str, Callable[[], None]] = {
        "odd requests": lambda: (
            [attack.together(name, ([r] for r in requests)) for name, requests in odd_requests().items()] and None
        ),
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
    """Attack, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description="Attack a server; see the file's head.")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Server(trained(Path(folder)).path) as server:
        attack, ended = Attack(server.port), threading.Event()
        image = seeds(np.random.default_rng(0))["JPEG"][0]
        attack.send("before", [whole(image)])
        attack.send("before", [whole(image, "/explain")])
        workers = len(psutil.Process(server.process.pid).children())
        watch = Watch(server.process.pid, 0.05)
        rest = watch.now()
        singing = threading.Thread(target=canary, args=(attack, image, ended))
        with watch:
            singing.start()
            run(attack, options)
            ended.set()
            singing.join()
            time.sleep(3)
        peak, last = max(used for _, used in watch.samples) - rest, watch.samples[-1][1] - rest
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
