"""What messages show of names: a few of many, and none at any length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import LONGEST_NAME, format_names, suggest, truncate


@given(st.text(max_size=300), st.integers(3, 120))
def test_a_shortened_name_keeps_both_ends_and_is_no_longer_than_asked(text: str, most: int) -> None:
    shown = truncate(text, most)
    assert len(shown) <= most
    end = (most - 1) // 2
    assert shown == (text if len(text) <= most else text[: most - 1 - end] + "…" + text[len(text) - end :])


def test_a_list_of_names_is_cut_and_says_how_many_more() -> None:
    assert format_names(["a", "b"]) == "'a', 'b'"
    assert format_names([f"c{i:04}" for i in range(1300)], most=2) == "'c0000', 'c0001' and 1,298 more"
    assert len(format_names(["x" * 10_000] * 1300)) < 1000


def test_known_names_at_any_length_are_cut_in_a_suggestion() -> None:
    assert suggest("x" * 100_000, ["adam", "sgd"]) == "known are: adam, sgd"
    assert len(suggest("y" * 200, ["y" * 201])) < LONGEST_NAME + 30
