"""Open an exported page in a real browser: the answers of `predict` for odd photos, its own files alone, offline, by keyboard.

    python -m proof.static_page RUN [--page FOLDER] [--out build/static-page]

Exports the page of RUN, or takes the one in FOLDER, and serves it from a subfolder of a plain host of files. 50 photos of
unusual kinds go to it and to `predict`, which computes in float32: probabilities within 0.01 are required for 99 % of those
that the browser reads. Heat maps of one photo of each kind are compared with those of `explain`. Screenshots of a phone and a
desktop are saved for inspection. Prints load time, memory and latency, and a line of JSON; the exit code is 1 if a requirement
is not met. Needs playwright and Chromium (CHROMIUM is its path); AXE is the path of axe.min.js.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from proof.export import CLOSE, KINDS, SHARE, Make
from proof.pages import OVERFLOW, WIDTHS, launched
from proof.pictures import encoded

import alexnet
from alexnet.data.decode import decode
from alexnet.explain.attribution import Explanation, explain, shares
from alexnet.export.browser import ask, program
from alexnet.export.page import at_full_size

PHOTOS, TIMED = 50, 5
ALIKE = 0.95  # correlation of two heat maps, at least: the page's weights have 8 bits
ODD: dict[str, Make] = {
    **KINDS,
    "WebP": lambda image, _: encoded(image, "WEBP"),
    "progressive": lambda image, _: encoded(image, "JPEG", progressive=True, quality=70),
}
AXE = "axe.run().then(found => found.violations.filter(one => ['serious', 'critical'].includes(one.impact)).map(one => one.id))"


# The opacity of each pixel of the heat map that the page shows.
PAINTED = """() => {
  const image = document.getElementById("heat");
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data].filter((_, i) => i % 4 === 3);
}"""


class Host(SimpleHTTPRequestHandler):
    """A plain host of files that prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def odd_photos(run: alexnet.Run) -> list[tuple[str, bytes]]:
    """Return photos of the run's validation images, each with its kind."""
    rng, table = np.random.default_rng(2012), run.dataset(split="val")[0].table
    photos = [decode(table.source(row)) for row in table.rows("val")[:PHOTOS]]
    kinds = list(ODD)
    names = [kinds[i % len(kinds)] for i in range(PHOTOS)]
    return [(kind, ODD[kind](photos[i % len(photos)], rng)) for i, kind in enumerate(names)]


def compared(run: alexnet.Run, page: Path) -> tuple[dict[str, Any], list[str]]:
    """Return how the page's answers compare with those of `predict`, and what is wrong with them."""
    plain = alexnet.load(run.path)
    plain.config = run.config.model_copy(update={"precision": "float32"})
    photos = odd_photos(run)
    browser = program()
    assert browser is not None, "no Chromium: CHROMIUM names it"
    theirs = ask(browser, page, [content for _, content in photos])
    ours = plain.predict([at_full_size(content) for _, content in photos], top=len(run.labels))
    away: dict[str, list[float]] = {}
    unread = []
    for (kind, _), one, other in zip(photos, ours, theirs, strict=True):
        if "error" in one or "error" in other:
            unread.append(f"{kind}: {one.get('error', other.get('error'))}")
            continue
        rows = [{each["label"]: each["probability"] for each in answer["predictions"]} for answer in (one, other)]
        away.setdefault(kind, []).append(max(abs(rows[0][label] - rows[1][label]) for label in run.labels))
    for kind, values in away.items():
        print(f"{kind:12} {len(values):3} photos, farthest {max(values):.5f}")
    every = np.array([value for values in away.values() for value in values])
    found = {"photos": len(every), "farthest": float(every.max()), "close": float((every <= CLOSE).mean()), "unread": unread}
    return found, [f"only {found['close']:.1%} are close"] * (found["close"] < SHARE)


def painted(run: alexnet.Run, photo: Path | bytes) -> NDArray[np.float32]:
    """Return the opacity of each pixel of the heat map that `explain` draws."""
    [(_, found)] = explain(run.network, run.config, [photo], method="grad_cam")
    assert isinstance(found, Explanation)
    return 255 * shares(found.heat_maps["grad_cam"])[1].ravel()


def heat_maps(tab: Any, run: alexnet.Run) -> tuple[dict[str, Any], list[str]]:
    """Return how the page's heat maps of a photo of each kind compare with those of `explain`, and what is wrong with them."""
    alike = []
    for kind, photo in odd_photos(run)[: len(ODD)]:
        before = tab.locator("#heat").get_attribute("src")
        tab.set_input_files("#files", {"name": kind, "mimeType": "image/any", "buffer": photo})
        tab.wait_for_function(
            "before => ![null, before].includes(document.getElementById('heat').getAttribute('src'))", arg=before
        )
        theirs, ours = np.array(tab.evaluate(PAINTED)), painted(run, photo)
        alike.append(float(np.corrcoef(theirs, ours)[0, 1]))
    found = {"maps": len(alike), "lowest_correlation": min(alike), "median_correlation": statistics.median(alike)}
    return found, [f"a heat map correlates by {min(alike):.3f} alone"] * (min(alike) < ALIKE)


def memory() -> float:
    """Return the memory of all processes of the browser, in MB."""
    return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True) if "chrom" in child.name()) / 1e6


def opened(
    address: str, width: int, photo: Path, out: Path, offline: bool, run: alexnet.Run
) -> tuple[dict[str, Any], list[str]]:
    """Return figures of the page at one width, and what is wrong with it."""
    from playwright.sync_api import expect, sync_playwright

    found: list[str] = []
    with sync_playwright() as play:
        browser = launched(play)
        context = browser.new_context(viewport={"width": width, "height": 800})
        context.on("request", lambda one: None if one.url.startswith((address, "blob:", "data:")) else found.append(one.url))
        tab = context.new_page()
        tab.set_default_timeout(300_000)
        tab.on("console", lambda message: found.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: found.append(f"error: {error}"))

        def check(name: str) -> None:
            tab.screenshot(path=out / f"{width}-{name}.png", full_page=True)
            found.extend([f"{name}: {beyond} pixels too wide"] if (beyond := tab.evaluate(OVERFLOW)) else [])
            if axe := os.environ.get("AXE"):
                tab.evaluate(Path(axe).read_text(encoding="utf-8"))
                found.extend(f"{name}: axe: {fault}" for fault in tab.evaluate(AXE))

        began = time.perf_counter()
        tab.goto(address)
        check("loading")
        tab.locator("#loading").wait_for(state="hidden", timeout=300_000)
        loaded = time.perf_counter() - began
        check("empty")
        tab.on("filechooser", lambda chooser: chooser.set_files(photo))
        while tab.evaluate("document.activeElement.id") != "choose":
            tab.keyboard.press("Tab")
        seconds = []
        for i in range(TIMED):
            began = time.perf_counter()
            tab.keyboard.press("Enter")
            done = tab.locator("#thumbs [data-state=answered]" if i else "#stage[data-state=answered]")
            expect(done).to_have_count(i + 1, timeout=300_000)
            seconds.append(time.perf_counter() - began)
        tab.locator("#heat[src]").wait_for(state="attached")
        tab.wait_for_timeout(1000)  # it fades in
        check("answer")
        figures = {"load_s": loaded, "answer_s": statistics.median(seconds), "memory_mb": memory()}
        if offline:
            figures["heat"], faults = heat_maps(tab, run)
            found += faults
            tab.evaluate("navigator.serviceWorker.ready.then(() => null)")
            context.set_offline(True)
            tab.reload()
            tab.set_input_files("#files", photo)
            tab.locator("#stage[data-state=answered]").wait_for()
        browser.close()
    return figures, found


def main() -> int:
    """Export, compare, open, print the problems, and return the exit code."""
    parser = argparse.ArgumentParser(description="Open an exported page in a browser; see the file's head.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/static-page"))
    options = parser.parse_args()
    run, out = alexnet.load(options.run), options.out
    page = options.page or out / "site" / "page"
    if options.page is None:
        run.export_page(page)
    out.mkdir(parents=True, exist_ok=True)
    found, wrong = compared(run, page)
    photo = out / "photo.jpg"
    photo.write_bytes(encoded(decode(run.dataset(split="val")[0].table.source(0)), "JPEG"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=str(page.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{page.name}/"
        for name, width in WIDTHS.items():
            figures, faults = opened(address, width, photo, out, offline=name == "desktop", run=run)
            found[name] = figures
            wrong += faults
        server.shutdown()
    print("\n".join(wrong) or f"nothing is wrong; look at {out}")
    size = sum(file.stat().st_size for file in page.rglob("*") if file.is_file())
    print(json.dumps({"proof": "static_page", "run": str(options.run), "bytes": size, **found}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
