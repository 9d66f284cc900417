"""Add to the site what the program says about itself: a MkDocs hook (`hooks` in mkdocs.yml).

It adds a page, commands.md, with the --help output of each command, and replaces `<!-- generated: NAME -->` in pages by

shapes    `alexnet model summary VARIANT --json` of every variant, for the calculator in network.md
layers    the layers of `paper`, as a table
files     the source files by folder, with the first line of each
claims    the statements of the four tutorials and where each is here, from tutorials/claims.csv
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import typer
from typer.testing import CliRunner

from alexnet.cli import app
from alexnet.network.summary import sizes, summarize
from alexnet.network.variants import VARIANTS

if TYPE_CHECKING:
    import click
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SOURCE = Path(__file__).parent.parent / "src" / "alexnet"
CLAIMS = Path(__file__).parent / "tutorials" / "claims.csv"
MARK = re.compile(r"<!-- generated: (\w+) -->")
HEAD = """\
# Commands

This page shows the output of `alexnet COMMAND --help` for every command. To enable shell completion, run
`alexnet --install-completion`.
"""


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield the words of each command and the command, each group before its commands."""

    def within(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from within(inner, (*words, name))

    yield from within(typer.main.get_command(app), ())


def commands_page() -> str:
    """Return the text of commands.md: what each command prints on a terminal of 80 columns, of which it leaves two free."""
    parts = [HEAD]
    for words, _ in commands():
        done = CliRunner().invoke(app, [*words, "--help"], prog_name="alexnet", terminal_width=78)
        assert done.exit_code == 0, done.output
        heading = " ".join(("##" if len(words) < 2 else "###", "alexnet", *words))
        parts.append(f"{heading}\n\n```text\n{done.output.strip()}\n```\n")
    return "\n".join(parts)


def shapes() -> str:
    """Return the summaries of all variants, a line each."""
    documents = [json.dumps(summarize(name).to_json(), separators=(",", ":")) for name in VARIANTS]
    return "[\n" + ",\n".join(documents) + "\n]"


def layers() -> str:
    """Return the layers of `paper` as a table in Markdown."""
    summary = summarize("paper")
    rows = [("input", "", "", unbroken(summary.input), "")]
    for layer in summary.layers:
        count = f"{layer.parameters:,}" if layer.parameters else ""
        rows.append((f"`{layer.name}`", layer.kind, layer.formula.replace("*", "×"), unbroken(layer.output), count))
    rows.append(("total", "", "", "", f"{summary.parameters:,}"))
    return table(("layer", "kind", "calculation", "output", "parameters"), rows)


def unbroken(shape: tuple[int, ...]) -> str:
    """Return a shape with non-breaking spaces."""
    return sizes(shape, "&nbsp;x&nbsp;")


def files() -> str:
    """Return the source files, a heading and a table for each folder."""
    parts = []
    for start in sorted(SOURCE.rglob("__init__.py")):
        folder = start.parent
        name = folder.relative_to(SOURCE.parent).as_posix()
        listed = [file for file in sorted(folder.iterdir()) if file.suffix in (".py", ".toml") and file != start]
        rows = [(f"`{file.name}`", first_line(file)) for file in listed]
        parts += [f"### {name}/", f"{first_line(start)}.", table(("file", ""), rows)]
    return "\n\n".join(parts)


def claims() -> str:
    """Return the statements of the tutorials: how many there are, then a table for each section of a text."""
    rows = claim_rows()
    counts = Counter(row["status"] for row in rows)
    parts = [f"{len(rows)} statements: {', '.join(f'{count} {status}' for status, count in counts.most_common())}."]
    for text, rows_of_text in groupby(rows, lambda row: row["text"]):
        parts.append(f"## {text.replace(', ', ' and ')}")
        for section, group in groupby(rows_of_text, lambda row: row["section"]):
            parts += [f"### {section}", table(("the text says", "here", "where"), [claim(row) for row in group])]
    return "\n\n".join(parts)


def claim_rows() -> list[dict[str, str]]:
    """Return the rows of claims.csv."""
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def claim(row: dict[str, str]) -> tuple[str, str, str]:
    """Return a statement as a row of a table: what the text says, what is right here, and where."""
    status = row["status"] if row["status"] == "same" else f"**{row['status']}**"
    note = f": {row['note']}" if row["note"] else ""
    settings = [check.partition(": ")[2] for check in listed(row["check"]) if check.startswith("recipe")]
    where = [place(name) for name in listed(row["where"])] + [f"`{setting}`" for setting in dict.fromkeys(settings)]
    return escaped(row["claim"]), escaped(f"{status}{note}"), escaped(", ".join(where))


def listed(cell: str) -> list[str]:
    """Return the entries of a cell, which semicolons separate."""
    return [entry.strip() for entry in cell.split(";") if entry.strip()]


def place(where: str) -> str:
    """Return where a statement is: a link to a section of a page or to a command, or the name of a test."""
    if where.startswith("tests/"):
        return f"`{where.partition('::')[2]}`"
    if where.startswith("alexnet "):
        return f"[`{where}`](commands.md#{where.replace(' ', '-')})"
    page, _, anchor = where.partition("#")
    name = PurePosixPath(page).stem
    title = name.partition("-")[0] if name[0].isdigit() else name
    return f"[{title}: {anchor.replace('-', ' ')}]({page.replace('.ipynb', '.md')}#{anchor})"


def escaped(cell: str) -> str:
    """Return a table's cell in which no | ends it."""
    return cell.replace("|", "\\|")


def first_line(file: Path) -> str:
    """Return the first line of a file's docstring or header, without its full stop."""
    text = file.read_text(encoding="utf-8")
    head = ast.get_docstring(ast.parse(text)) or "" if file.suffix == ".py" else text.removeprefix("# ")
    return escaped(head.partition("\n")[0].rstrip("."))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of commands."""
    from mkdocs.structure.files import File  # tests import this file without MkDocs

    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in what stands for generated text."""
    return MARK.sub(lambda found: {"shapes": shapes, "layers": layers, "files": files, "claims": claims}[found[1]](), markdown)
