"""Error messages list a few names and truncate long ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import LONGEST_NAME, format_names, suggest, truncate


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
