"""Ask a page for its answers, in a real browser that runs without a window."""

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alexnet.errors import RunError
from alexnet.progress import track

PATIENCE = 300.0  # seconds without an answer: a slow machine loads the network, then answers one photo after another
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
ARGUMENTS = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
TYPES = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}  # Windows may say otherwise
# `base`: the page lies in a subfolder, as it may on any host.
ASK = b"""<!doctype html><meta charset="utf-8"><base href="page/">
<script type="module">
import { model, predict } from "./static/backend.js";
const send = (answer) => fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
try {
  await model(() => {});
  for (const name of await (await fetch("/images")).json())
    await send((await predict([await (await fetch(name)).blob()], () => {}, Infinity))[0]);
} catch (error) {
  await send({ failed: String(error) });
}
</script>
"""


def program() -> str | None:
    """Return the path of a browser, which CHROMIUM may set; None if there is none."""
    given = os.environ.get("CHROMIUM")
    if given and shutil.which(given) is None:
        raise RunError(f"CHROMIUM is {given!r}, which is not a program: set it to the path of a browser, or unset it")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


def ask(browser: str, folder: Path, images: list[bytes]) -> list[dict[str, Any]]:
    """Return the answers of the page in `folder` to image files, with all labels; `{"error"}` for one it cannot read."""
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = partial(_Handler, directory=str(folder), images=images, answers=answers)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # which the sandbox refuses
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        command = [browser, *ARGUMENTS, *root, f"--user-data-dir={profile}", address]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return [_next(answers, browser) for _ in track(images, "Comparing in the browser", len(images))]
        finally:
            process.terminate()
            process.wait()
            server.shutdown()


def _next(answers: queue.Queue[dict[str, Any]], browser: str) -> dict[str, Any]:
    try:
        answer = answers.get(timeout=PATIENCE)
    except queue.Empty:
        raise RunError(f"the page was not written: {browser} gave no answer in {PATIENCE:.0f} s") from None
    if "failed" in answer:
        raise RunError(f"the page was not written: it fails in {browser}: {answer['failed']}")
    return answer


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder as `/page/`, what asks it as `/`, and the images; takes the answers."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def __init__(self, *args: Any, images: list[bytes], answers: queue.Queue[dict[str, Any]], **options: Any) -> None:
        self._images, self._answers = images, answers
        super().__init__(*args, **options)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send a file of the page, or what the browser needs to ask it."""
        if self.path.startswith("/page/"):
            self.path = self.path.removeprefix("/page")
            super().do_GET()
        elif self.path.startswith("/image/"):
            self._send(self._images[int(self.path.removeprefix("/image/"))], "image/any")
        elif self.path == "/images":
            self._send(json.dumps([f"/image/{i}" for i in range(len(self._images))]).encode(), "application/json")
        else:
            self._send(ASK, "text/html")

    def do_POST(self) -> None:
        """Take an answer."""
        self._answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(b"", "text/plain")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
