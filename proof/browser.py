"""Chromium, for the report and the page."""

from __future__ import annotations

import os
import shutil
from typing import Any

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"  # pixels beyond the window


def program() -> str | None:
    """Return the browser's program, which CHROMIUM may name; None where there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def launched(play: Any) -> Any:
    """Start the browser, by playwright's `sync_playwright()`."""
    return play.chromium.launch(executable_path=program(), args=ARGUMENTS)
