"""A stand-in for `alexnet serve`: the real page files and headers, canned answers with images made from the photo.

python tests/page_server.py [--port 8000] [--side 227] [--slow 1]      # to look at the page without a network
"""

from __future__ import annotations

import argparse
import base64
import email.parser
import email.policy
import io
import json
import mimetypes
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from alexnet.data.decode import decode
from alexnet.errors import ImageError

PAGE = Path(__file__).resolve().parent.parent / "src/alexnet/page/web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LABELS = [
    "English springer",
    "French horn",
    "golf ball",
    "church",
    "parachute",
    "tench",
    "garbage truck",
    "gas pump",
    "cassette player",
    "chain saw",
]
SURE, TORN = [0.914, 0.052, 0.021, 0.0081, 0.0004], [0.412, 0.387, 0.12, 0.05, 0.02]
LAYERS = {
    "conv1": (96, 4.13, 1),
    "conv2": (256, 8.4, 2),
    "conv3": (384, 17.4, 3),
    "conv4": (384, 17.4, 4),
    "conv5": (256, 17.4, 5),
}
MAPS = 16


class PageServer:
    """Serves on a free port of this machine until `stop`; `start` serves again on the same port.

    Tests may change `busy` (number of requests to answer with 429), `key` (required X-API-Key), `slow` (seconds per answer),
    `refuse` (names of files to answer with an error), `side` (pixels of the network's input), `view`, `limits` and `labels`.
    `asked` records each request.
    """

    def __init__(self, port: int = 0) -> None:
        self.port, self.busy, self.key, self.slow, self.side = port, 0, "", 0.0, 227
        self.refuse: set[str] = set()
        self.unknown: set[str] = set()  # names of photos of none of the labels
        self.labels = list(LABELS)
        self.accuracy: dict[str, Any] | None = {"split": "test", "top1": 0.931, "top1_interval": [0.918, 0.942], "images": 1797}
        self.view: dict[str, Any] = {"fit": "crop", "zoom": [1, 1]}
        self.limits = {"bytes": 2_000_000, "pixels": 20_000_000, "files": 16}
        self.asked: list[str] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._http = _Http(("127.0.0.1", self.port), _Handler)
        self._http.ours = self
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def model(self) -> dict[str, Any]:
        description = {"run": "runs/imagenette", "variant": "paper", "labels": self.labels, "input": [3, self.side, self.side]}
        return {**description, **self.view, "temperature": 1.21, "accuracy": self.accuracy, "limits": self.limits}

    def predictions(self, name: str) -> list[dict[str, Any]]:
        start = next(
            (
                i
                for i, label in enumerate(self.labels)
                if set(label.lower().split()) & set(name.lower().replace(".", "-").split("-"))
            ),
            1,
        )
        probabilities = (TORN if "torn" in name else SURE)[: len(self.labels)]
        return [
            {"label": self.labels[(start + i) % len(self.labels)], "probability": probability}
            for i, probability in enumerate(sorted(probabilities, reverse=True))
        ]

    def explanation(self, name: str, photo: Image.Image) -> dict[str, Any]:
        side = self.side
        pixels = ImageOps.fit(photo, (side, side))
        grey = pixels.convert("L")
        maps = {}
        for layer, (channels, stride, depth) in LAYERS.items():
            size = max(1, round(side / stride))
            maps[layer] = {"shape": [channels, size, size], "pictures": [_map(grey, size, depth, i) for i in range(MAPS)]}
        return {
            "image": name,
            "predictions": self.predictions(name),
            "pixels": uri(pixels),
            "heat": {
                "grad_cam": uri(_heat(_blob(side, 0.3), None)),
                "occlusion": uri(_heat(_blob(side, 0.22), ImageOps.mirror(ImageOps.flip(_blob(side, 0.16))))),
                "integrated_gradients": uri(_heat(*_fine(grey))),
            },
            "maps": maps,
        }


class _Http(ThreadingHTTPServer):
    ours: PageServer
    allow_reuse_address = True
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/model":
            return self._answer(self.server.ours.model())
        name = "index.html" if self.path == "/" else self.path.removeprefix("/static/")
        file = PAGE / name
        if file.parent != PAGE or not file.is_file():
            return self._json(404, {"error": f"no {self.path} here"})
        return self._send(200, mimetypes.guess_type(name)[0] or "application/octet-stream", file.read_bytes())

    def do_POST(self) -> None:
        ours = self.server.ours
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(ours.slow)
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = list(email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts())
        found = [(str(part.get_filename()), part.get_payload(decode=True)) for part in parts]
        ours.asked.append(f"{self.path.split('?')[0]} {' '.join(name for name, _ in found)}")
        if any(name in ours.refuse for name, _ in found):
            return self._json(400, {"error": "the photo cannot be read: its data end too early"})
        answers = [self._photo(name, data) for name, data in found]
        return self._answer(answers if self.path.startswith("/predict") else answers[0])

    def _photo(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            photo = decode(data)
        except ImageError as error:
            return {"image": name, "error": f"{name}: {error}"}
        ours = self.server.ours
        if self.path == "/explain":
            return ours.explanation(name, photo)
        if self.path == "/preview":
            return {"image": name, "preview": uri(photo)}
        return {"image": name, "predictions": ours.predictions(name), "known": name not in ours.unknown}

    def _answer(self, value: Any) -> None:
        ours = self.server.ours
        if ours.key and self.headers["X-API-Key"] != ours.key:
            return self._json(401, {"error": "This server needs a key."})
        if ours.busy:
            ours.busy -= 1
            return self._json(429, {"error": "The server is busy."}, {"Retry-After": "2"})
        return self._json(200, value)

    def _json(self, status: int, value: Any, more: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), more)

    def _send(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-store",
        }
        for name, value in {**headers, "X-Content-Type-Options": "nosniff", **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _blob(side: int, radius: float) -> Image.Image:
    small = Image.new("L", (64, 64))
    ImageDraw.Draw(small).ellipse([32 - 64 * radius, 26 - 64 * radius, 32 + 64 * radius, 26 + 64 * radius], fill=255)
    return small.filter(ImageFilter.GaussianBlur(6)).resize((side, side), Image.Resampling.BICUBIC)


def _heat(good: Image.Image, bad: Image.Image | None) -> Image.Image:
    orange, blue = Image.new("RGB", good.size, "#d55e00"), Image.new("RGB", good.size, "#0072b2")
    if bad is None:
        orange.putalpha(good)
        return orange
    heat = Image.composite(orange, blue, ImageChops.subtract(good, bad).point(lambda v: 255 * (v > 0)))
    heat.putalpha(ImageChops.lighter(good, bad))
    return heat


def _fine(grey: Image.Image) -> tuple[Image.Image, Image.Image]:
    inside = _blob(grey.width, 0.34)
    soft = grey.filter(ImageFilter.GaussianBlur(1.2))
    return tuple(  # type: ignore[return-value]
        ImageChops.multiply(ImageChops.subtract(*pair).point(lambda v: min(255, v * 9)), inside)
        for pair in ((grey, soft), (soft, grey))
    )


def _map(grey: Image.Image, size: int, depth: int, place: int) -> str:
    """Return edges at one angle, and what remains of them at a lower resolution."""
    kernel = [
        [-1, 0, 1, -2, 0, 2, -1, 0, 1],
        [1, 2, 1, 0, 0, 0, -1, -2, -1],
        [0, 1, 2, -1, 0, 1, -2, -1, 0],
        [0, -1, 0, -1, 4, -1, 0, -1, 0],
    ]
    values = [value * (1 if place % 8 < 4 else -1) for value in kernel[place % 4]]
    found = grey.filter(ImageFilter.GaussianBlur(depth / 3 + place // 8)).filter(ImageFilter.Kernel((3, 3), values, scale=1))
    found = ImageOps.autocontrast(found.resize((size, size), Image.Resampling.BOX), cutoff=1)
    return uri(ImageOps.colorize(ImageChops.offset(found, 0, 0), (0, 32, 76), (255, 233, 69), mid=(124, 123, 120)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--side", type=int, default=227)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    server = PageServer(options.port)
    server.side, server.slow = options.side, options.slow
    print(server.url)
    threading.Event().wait()
