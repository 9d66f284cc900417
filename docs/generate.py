"""Write what the site takes from the program itself: `python docs/generate.py`; `make docs` does it first.

commands.md     the --help of each command, as it is printed
shapes.json     `alexnet model summary VARIANT --json` of every variant, for the arithmetic in network.md
network.md      its table of `paper`, between two comments
built.md        what is in each file of the program, between two comments
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.testing import CliRunner

from alexnet.cli import app
from alexnet.network.summary import sizes, summarize
from alexnet.network.variants import VARIANTS

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent / "src" / "alexnet"
FOLDERS = ("", "cli", "server", "ablation", "explain", "training", "search", "export", "report", "inference", "convert")
FOLDERS += ("data", "network", "network/fast", "network/fast/kernels", "recipes", "scratch")
TABLE = "<!-- table of `paper`: written by docs/generate.py -->", "<!-- end of table -->"
FILES = "<!-- files: written by docs/generate.py -->", "<!-- end of files -->"
HEAD = """\
# Commands

What each command says of itself, `alexnet COMMAND --help`, in 80 columns. This page is written by `docs/generate.py`, and
`tests/test_docs.py` holds it to the program. `alexnet --install-completion` teaches your shell to complete them.
"""


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of each command, groups before what is in them."""

    def within(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from within(inner, (*words, name))

    yield from within(typer.main.get_command(app), ())


def help_of(words: tuple[str, ...]) -> str:
    """Return what `alexnet WORDS --help` prints on a terminal of 80 columns (it leaves two free)."""
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="alexnet", terminal_width=78)
    assert done.exit_code == 0, done.output
    return done.output


def commands_page() -> str:
    """Return the text of commands.md."""
    parts = [HEAD]
    for words in commands():
        name = " ".join(("alexnet", *words))
        parts.append(f"{'##' if len(words) < 2 else '###'} {name}\n\n```text\n{help_of(words).strip()}\n```\n")
    return "\n".join(parts)


def shapes() -> str:
    """Return the text of shapes.json: a list of documents, a line each."""
    documents = [json.dumps(summarize(name).to_json(), separators=(",", ":")) for name in VARIANTS]
    return "[\n" + ",\n".join(documents) + "\n]\n"


def table(variant: str) -> str:
    """Return a variant's layers as a table in Markdown."""
    summary = summarize(variant)
    rows = [f"| the image | | | {unbroken(summary.input)} | |"]
    for layer in summary.layers:
        formula = layer.formula.replace("*", "×")
        count = f"{layer.parameters:,}" if layer.parameters else ""
        rows.append(f"| `{layer.name}` | {layer.kind} | {formula} | {unbroken(layer.output)} | {count} |")
    rows.append(f"| in all | | | | {summary.parameters:,} |")
    return "\n".join(["| layer | kind | worked out | output | parameters |", "|---|---|---|---|---|", *rows])


def unbroken(shape: tuple[int, ...]) -> str:
    """Return a shape that stays on one line."""
    return sizes(shape, "&nbsp;x&nbsp;")


def between(marks: tuple[str, str], text: str, new: str) -> str:
    """Return a page with what stands between two comments anew."""
    begin, end = map(re.escape, marks)
    page, count = re.subn(f"({begin}\n).*?({end})", lambda found: f"{found[1]}\n{new}\n\n{found[2]}", text, flags=re.DOTALL)
    assert count == 1, f"{marks[0]} is there {count} times"
    return page


def network_page(text: str) -> str:
    """Return network.md with its table anew."""
    return between(TABLE, text, table("paper"))


def built_page(text: str) -> str:
    """Return built.md with its list of files anew, by folder."""
    parts = []
    for name in FOLDERS:
        folder = SOURCE / name
        files = [file for file in sorted(folder.iterdir()) if file.suffix in (".py", ".toml") and file.stem != "__init__"]
        rows = [f"| `{file.name}` | {says(file)} |" for file in files]
        anchor = f"{{#folder-{name.replace('/', '-')}}}" if name else "{#folder-alexnet}"
        parts += [
            f"### {name or 'alexnet'}/ {anchor}",
            says(folder / "__init__.py") + ".",
            "\n".join(["| file | |", "|---|---|", *rows]),
        ]
    return between(FILES, text, "\n\n".join(parts))


def says(file: Path) -> str:
    """Return the first line of a file's docstring, or of its head."""
    text = file.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) or "" if file.suffix == ".py" else text.removeprefix("# ")
    return said.partition("\n")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    write = {
        "commands.md": lambda _: commands_page(),
        "shapes.json": lambda _: shapes(),
        "network.md": network_page,
        "built.md": built_page,
    }
    for name, page in write.items():
        path = FOLDER / name
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
