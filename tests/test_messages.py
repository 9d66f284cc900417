"""Messages list a few names, truncate long ones, and agree with their numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alexnet import errors
from alexnet.errors import LONGEST_NAME, counted, format_names, suggest, truncate


@given(st.text(max_size=300), st.integers(3, 120))
def test_truncate_keeps_both_ends(text: str, most: int) -> None:
    shown = truncate(text, most)
    assert len(shown) <= most
    end = (most - 1) // 2
    assert shown == (text if len(text) <= most else text[: most - 1 - end] + "…" + text[len(text) - end :])


def test_format_names_says_how_many_more() -> None:
    assert format_names(["a", "b"]) == "'a', 'b'"
    assert format_names([f"c{i:04}" for i in range(1300)], most=2) == "'c0000', 'c0001' and 1,298 more"
    assert len(format_names(["x" * 10_000] * 1300)) < 1000


def test_suggest_truncates_names() -> None:
    assert suggest("x" * 100_000, ["adam", "sgd"]) == "use one of: adam, sgd"
    assert len(suggest("y" * 200, ["y" * 201])) < LONGEST_NAME + 30


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1298)] == ["0 images", "1 image", "2 images", "1,298 images"]
    nouns = ("class", "batch", "epoch", "new image")
    assert [counted(1, noun) for noun in nouns] == ["1 class", "1 batch", "1 epoch", "1 new image"]
    assert [counted(2, noun) for noun in nouns] == ["2 classes", "2 batches", "2 epochs", "2 new images"]
    assert [counted(minutes, "minute") for minutes in (0.5, 1.0, 12.0)] == ["0.5 minutes", "1 minute", "12 minutes"]
    assert counted(np.int64(12_345_678), "image") == "12,345,678 images"


NOUNS = "images|photos|epochs|files|classes|steps|batches|seeds|runs|threads|processes|minutes|trainings|towers|mistakes|models"
BEFORE_PLURAL = re.compile(rf"^ (?:\w+ )?(?:{NOUNS})\b(?!/)")
NEVER_ONE = {  # what stands before a plural and is never 1, or is not a count
    "len(uploads)",  # more than one image to explain
    "size",  # a batch that is then halved
    "len(values)",  # a single epoch has a sentence of its own
    "len(labels)",  # of a confusion matrix too large for a table
    "len(rows)",  # more than fit on a contact sheet
    *("self.towers", "summary.towers"),  # named if there are several
    "sizes",  # of all splits
    "images.mean",
    *("count", "its.photos"),  # of a dataset in several files; of a built-in one
    *("file", "other", "inside[0]"),  # paths
}


def uncounted() -> Iterator[str]:
    """Yield the values in f-strings that stand before a noun in the plural, as in `1 images`."""
    root = Path(errors.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.parent.name == "scratch":  # imports nothing of ours
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in pairwise(parts):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant) and BEFORE_PLURAL.match(text.value):
                    yield ast.unparse(value.value)


def test_numbers_before_a_plural_are_counted() -> None:
    assert set(uncounted()) <= NEVER_ONE
