"""Run the code in README.md and the site's pages, and check their links.

    python -m proof.docs [PAGE…]

Above each block of bash or Python in a page, a comment states how to treat it:

    <!-- run -->             run it; it must succeed. The blocks of a page share a folder, and run in order
    <!-- not run: why -->    skip it

A block with `<!-- output -->` above it must equal the output of the block before, exactly. Folders are temporary and contain
small synthetic photos: `photos/cat`, `photos/dog`, `other-photos/`, `cat.jpg` and `new.jpg`. HOME is empty. Links to files and
headings are checked. If site/ has been built, no page in it may load anything from other hosts.

The notebooks are run by `tests/test_notebooks.py`, not here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proof.pictures import picture

ROOT = Path(__file__).parent.parent
SECONDS = 900  # for a block
SIZE = (96, 80)  # of a made-up photo
CODE = {"bash", "sh", "console", "python", ""}

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|\n)\n((?:    .*\n)(?:(?:    .*)?\n)*)")
MARK = re.compile(r"<!-- (run|output|not run: [^>]+?) -->\s*\Z")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*(?:\{#([\w-]+)\})?$", re.MULTILINE)
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'> ]+|"""
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|pre|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'> ]+|"""
    r"""url\(["']?https?://[^)]+|@import ["']https?://[^"']+"""
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page: its first line, its language, its text, and its comment ("" for none)."""

    line: int
    language: str
    text: str
    mark: str


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page in order; indented blocks have no mark."""
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text, max(0, match.start() - 400), match.start())
        found.append(Block(text.count("\n", 0, match.start()) + 1, match[1], match[2], mark[1] if mark else ""))
    rest = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    found += [Block(rest.count("\n", 0, match.start(1)) + 1, "", match[1], "") for match in INDENTED.finditer(rest)]
    return sorted(found, key=lambda block: block.line)


def make_photos(folder: Path) -> None:
    """Fill `folder` with small synthetic photos: horizontal stripes are cats, vertical stripes dogs."""
    for kind, label in enumerate(("cat", "dog")):
        for number in range(48):
            part = "photos" if number < 40 else "other-photos"
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            picture(kind, 100 * kind + number, SIZE).save(folder / part / label / f"{number}.jpg")
    picture(0, 1000, SIZE).save(folder / "cat.jpg")
    picture(1, 1001, SIZE).save(folder / "new.jpg")


def run(block: Block, folder: Path) -> tuple[str, str]:
    """Run a block in `folder`; return its output, and the reason if it failed, else ""."""
    if block.language == "python":
        script = folder / "block.py"
        script.write_text(block.text, encoding="utf-8")
        command = [sys.executable, script.name]
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.text]
    home = folder / "home"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ALEXNET_")}
    environment = kept | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"not done after {SECONDS} s"
    return done.stdout, "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stderr.strip()[-1500:]}"


def run_page(name: str, text: str) -> Iterator[str]:
    """Run the blocks of a page that are marked to be run; yield what is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="alexnet-docs-") as temporary:
        folder = Path(temporary)
        (folder / "home").mkdir()
        make_photos(folder)
        printed, counts = None, {"run": 0, "compared": 0, "not run": 0}
        began = time.monotonic()
        for block in blocks(text):
            where = f"{name}:{block.line}"
            if block.mark == "run":
                start = time.monotonic()
                printed, why = run(block, folder)
                counts["run"] += 1
                print(f"  {where}: {time.monotonic() - start:.1f} s", flush=True)
                if why:
                    yield f"{where}: {why}"
            elif block.mark == "output":
                counts["compared"] += 1
                if printed is None or printed.rstrip() != block.text.rstrip():
                    yield f"{where}: it prints\n{printed}"
            elif block.mark:
                counts["not run"] += 1
            elif block.language in CODE:
                yield f"{where}: say above this block whether it is run"
        print(f"{name}: {', '.join(f'{n} {what}' for what, n in counts.items())}; {time.monotonic() - began:.0f} s", flush=True)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as MkDocs makes it."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page: those of its headings, and explicit ones."""
    headings = {found[2] or slug(found[1]) for found in HEADING.finditer(FENCE.sub("", text))}
    return headings | set(re.findall(r'\bid="([\w-]+)"', text))


def wrong_links(page: Path, name: str, text: str) -> Iterator[str]:
    """Yield the links of a page that lead to no file or heading; external links are not followed."""
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{name}: no {target}"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{name}: no heading {target}"


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """Yield the resources that pages of the built site would load from other hosts."""
    for file in sorted(site.rglob("*")):
        if file.suffix in (".html", ".css"):
            for found in OUTSIDE.findall(file.read_text(encoding="utf-8")):
                yield f"{file.relative_to(site.parent)}: loads {found}"


def main(names: list[str]) -> int:
    """Check the given pages, or all; return the exit code."""
    pages = [Path(name) for name in names] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    began, faults = time.monotonic(), []
    for page in pages:
        text, name = page.read_text(encoding="utf-8"), str(page.resolve().relative_to(ROOT))
        faults += wrong_links(page, name, text)
        faults += run_page(name, text)
    site = ROOT / "site"
    faults += loaded_from_elsewhere(site)
    unseen = "" if site.exists() else "; site/ is not built, and was not looked at"
    print(f"{len(pages)} pages in {time.monotonic() - began:.0f} s{unseen}")
    for fault in faults:
        print(f"wrong: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    assert shutil.which("bash"), "needs bash"
    sys.exit(main(sys.argv[1:]))
