"""Open the reports of runs in a real browser: no overflow, no errors, the same metrics as `evaluate`, small and fast to write.

    python -m proof.pages RUN… [--out build/pages]

Each report is rewritten and opened in Chromium, on a phone and on a desktop, light and dark, and in print; screenshots of all
are saved in the folder for inspection. Needs playwright and Chromium (CHROMIUM is the path of the browser).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alexnet

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

WIDTHS = {"phone": 360, "desktop": 1280}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"  # pixels beyond the window
SECONDS, BYTES = 20.0, 3_000_000
FIGURES = {"top1": "#top1", "ece": "#ece data", "ece_raw": "#ece-raw data"}


def program() -> str | None:
    """Return the path of the browser, which CHROMIUM may set; None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def launched(play: Playwright) -> Browser:
    """Start the browser."""
    return play.chromium.launch(executable_path=program(), args=ARGUMENTS)


def faults(run: alexnet.Run, browser: Browser, out: Path) -> list[str]:
    """Return what is wrong with the report of a run; screenshots go to the folder `out`."""
    began = time.monotonic()
    page = run.report()
    seconds, size = time.monotonic() - began, page.stat().st_size
    print(f"{run.path}: report written in {seconds:.1f} s, {size / 1e6:.2f} MB")
    found = [f"{seconds:.1f} s to write"] * (seconds > SECONDS) + [f"{size} bytes"] * (size > BYTES)
    metrics = run.evaluate().to_json()
    for width, pixels in WIDTHS.items():
        for scheme in ("light", "dark"):
            found += opened(page, browser, pixels, scheme, metrics, out / f"{run.path.name}-{width}-{scheme}.png")
    context = browser.new_context()
    paper = context.new_page()
    paper.goto(page.absolute().as_uri())
    paper.pdf(path=out / f"{run.path.name}.pdf", format="A4")
    context.close()
    return found


def opened(page: Path, browser: Browser, width: int, scheme: str, metrics: dict[str, Any], picture: Path) -> list[str]:
    """Return what is wrong with a report at one width and in one colour scheme; `metrics` is the JSON of `evaluate`."""
    found: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    tab = context.new_page()
    tab.on("console", lambda message: found.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: found.append(f"error: {error}"))
    tab.on("request", lambda request: found.append(f"asks for {request.url}") if request.url.startswith("http") else None)
    tab.goto(page.absolute().as_uri())
    if beyond := tab.evaluate(OVERFLOW):
        found.append(f"{beyond} pixels too wide")
    for key, where in FIGURES.items():
        if float(tab.locator(where).first.get_attribute("value") or "nan") != metrics[key]:
            found.append(f"{key} is not what evaluate says: {metrics[key]}")
    heads = tab.locator("table.sortable th button")
    for head in range(heads.count()):
        heads.nth(head).click()
    tab.screenshot(path=picture, full_page=True)
    context.close()
    return [f"{picture.stem}: {fault}" for fault in found]


def main() -> int:
    """Check each given run, print the problems, and return the exit code."""
    parser = argparse.ArgumentParser(description="Open reports in a browser; see the file's head.")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("build/pages"))
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # tests import this file without playwright

    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = launched(play)
        wrong = [fault for run in options.runs for fault in faults(alexnet.load(run), browser, options.out)]
        browser.close()
    print("\n".join(wrong) or f"nothing is wrong; look at {options.out}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
