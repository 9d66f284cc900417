"""The statements of the four tutorials (docs/tutorials/claims.csv): each is where the table says, with the right figures."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from proof import docs, notebooks

from alexnet import recipe
from alexnet.network.summary import Summary, sizes, summarize
from alexnet.network.variants import VARIANTS

ROOT = Path(__file__).parent.parent
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
NOTEBOOK_PAGE = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))["page"]
ROWS = GENERATE["claim_rows"]()
COMMANDS = {" ".join(("alexnet", *words)) for words, _ in GENERATE["commands"]()}
FENCE = re.compile(r"^```[^\n]*\n.*?^```$", re.MULTILINE | re.DOTALL)
SIZE_UNITS = {"KB": 2**10, "MB": 2**20}  # as Keras prints them


@cache
def sections(name: str) -> dict[str, str]:
    """Return the text of each section of a page, with its subsections, by anchor; "" is the whole page."""
    path = ROOT / "docs" / name
    if path.suffix == ".ipynb":
        text, _ = NOTEBOOK_PAGE(notebooks.read(path), path.stem)
    else:
        text = GENERATE["on_page_markdown"](path.read_text(encoding="utf-8"))
    prose = FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)  # the same length; # is a comment in code
    found = [(len(match[0]) - len(match[0].lstrip("#")), match) for match in docs.HEADING.finditer(prose)]
    parts = {"": text}
    for number, (level, match) in enumerate(found):
        end = next((later.start() for depth, later in found[number + 1 :] if depth <= level), len(text))
        parts.setdefault(match[2] or docs.slug(match[1]), text[match.start() : end])
    return parts


def section(where: str) -> str | None:
    """Return the text of a place such as `glossary.md#dropout`, or None if it does not exist."""
    page, _, anchor = where.partition("#")
    return sections(page).get(anchor) if (ROOT / "docs" / page).is_file() else None


def exists(where: str) -> bool:
    """Say whether a place exists: a test, a command, or a section of a page."""
    if where.startswith("tests/"):
        file, _, name = where.partition("::")
        path = ROOT / file
        return path.is_file() and re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    return where in COMMANDS if where.startswith("alexnet ") else section(where) is not None


def plain(text: str) -> str:
    """Return a text in lower case, without emphasis and with single spaces, to search in."""
    return " ".join(re.sub(r"[*`]|&nbsp;", lambda mark: " " if mark[0] == "&nbsp;" else "", text).lower().split())


def not_shown(row: dict[str, str]) -> list[str]:
    """Return what a row is about but none of its sections shows."""
    pages = [where for where in GENERATE["listed"](row["where"]) if not where.startswith(("tests/", "alexnet "))]
    text = plain(" ".join(section(where) or "" for where in pages))
    return [words for words in GENERATE["listed"](row["shows"]) if not occurs(plain(words), text)]


def occurs(words: str, text: str) -> bool:
    """Say whether words begin a word of a text, and a number is one of its numbers: 2 is not in 12, 2.5 or 2,000."""
    start, end = r"(?<!\w)(?<!\d[.,])" if words[0].isalnum() else "", r"(?![.,]?\d)" if words[-1].isdigit() else ""
    return re.search(start + re.escape(words) + end, text) is not None


def holds(check: str) -> bool:
    """Say whether a check of claims.csv is true. There are four forms:

    recipe cifar10: optimizer.lr = 0.001
    variant cifar10: conv1 = 55 x 55 x 96, 34,944     (or `parameters`, `trainable`, `not trainable`, `towers`, `dropout`)
    25 of 32 = 78.12 %
    18750 in batches of 32 = 586                      (or `in whole batches`)
    """
    left, _, right = check.partition(" = ")
    if match := re.fullmatch(r"recipe ([\w-]+): (\w+)\.(\w+)", left):
        value = getattr(getattr(recipe.load(match[1]), match[2]), match[3])
        return (list(value) if isinstance(value, tuple) else value) == tomllib.loads(f"value = {right}")["value"]
    if match := re.fullmatch(r"variant ([\w-]+): ([\w ]+)", left):
        return variant_figure(match[1], match[2], right) == right
    if match := re.fullmatch(r"(\d+) of (\d+)", left):
        return right == f"{100 * int(match[1]) / int(match[2]):.2f} %"
    match = re.fullmatch(r"(\d+) in (whole )?batches of (\d+)", left)
    assert match, f"no form of check: {check}"
    images, size = int(match[1]), int(match[3])
    return int(right) == (images // size if match[2] else -(-images // size))


@cache
def summary(name: str) -> Summary:
    """Return the summary of a variant."""
    return summarize(name)


def variant_figure(name: str, what: str, form: str) -> str:
    """Return a figure of a variant in the form of the one expected: a count, megabytes, or a layer's output and parameters."""
    found = summary(name)
    if what in ("towers", "dropout"):
        return str(getattr(VARIANTS[name], what))
    counts = {"parameters": found.parameters, "trainable": found.trainable}
    counts["not trainable"] = found.parameters - found.trainable
    if what in counts:
        unit = form[-2:]
        return f"{4 * counts[what] / SIZE_UNITS[unit]:.2f} {unit}" if unit in SIZE_UNITS else f"{counts[what]:,}"
    layer = next(layer for layer in found.layers if layer.name == what)
    return f"{sizes(layer.output)}, {layer.parameters:,}"


def named(row: dict[str, str]) -> str:
    return f"{row['text']}, {row['section']}: {row['claim']}"


def test_every_statement_has_a_status_and_a_place() -> None:
    assert {row["status"] for row in ROWS} == {"same", "corrected", "by design"}
    assert not [named(row) for row in ROWS if not (row["where"] or row["check"])]
    assert not [named(row) for row in ROWS if row["status"] != "same" and not row["note"]]
    assert not [key for key, count in Counter(map(named, ROWS)).items() if count > 1]


def test_all_four_texts_are_covered() -> None:
    counts = Counter(text for row in ROWS for text in row["text"].split(", "))
    assert sorted(counts) == ["000", "001", "002", "003"]
    assert min(counts.values()) > 50


def test_places_of_statements_exist() -> None:
    wrong = [f"{named(row)}  {where}" for row in ROWS for where in GENERATE["listed"](row["where"]) if not exists(where)]
    assert not wrong, "\n".join(wrong)


def test_sections_show_what_the_statement_is_about() -> None:
    wrong = [f"{named(row)}  {row['where']} without {words}" for row in ROWS if (words := not_shown(row))]
    assert not wrong, "\n".join(wrong)


def test_figures_of_statements_are_true() -> None:
    wrong = [f"{named(row)}  {check}" for row in ROWS for check in GENERATE["listed"](row["check"]) if not holds(check)]
    assert not wrong, "\n".join(wrong)


def test_page_of_statements_has_every_row() -> None:
    page = GENERATE["on_page_markdown"]((ROOT / "docs" / "tutorial-claims.md").read_text(encoding="utf-8"))
    lines = page.splitlines()
    for row in ROWS:
        assert any(line.startswith(f"| {GENERATE['escaped'](row['claim'])} | ") for line in lines), named(row)
    assert f"{len(ROWS)} statements: " in page


@pytest.mark.parametrize(
    "where",
    ["glossary.md#no-such-heading", "no-such-page.md#dropout", "tests/test_network.py::test_no_such", "alexnet no-such"],
)
def test_places_that_do_not_exist_are_detected(where: str) -> None:
    assert not exists(where)
    assert not_shown({"where": where, "shows": "dropout"}) == ["dropout"]


@pytest.mark.parametrize(
    "check",
    [
        "recipe cifar10: optimizer.lr = 0.01",
        "variant annotated: parameters = 46,818,065",
        "variant annotated: parameters = 178.61 MB",
        "variant annotated: conv1 = 55 x 55 x 96, 34,944",
        "25 of 32 = 78.13 %",
        "18750 in batches of 32 = 585",
        "18750 in whole batches of 32 = 586",
    ],
)
def test_wrong_figures_are_detected(check: str) -> None:
    assert not holds(check)
