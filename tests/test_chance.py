"""Tests are deterministic: no test draws random numbers without a seed, and global generators are seeded."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import THREADS, drawn_at_random

UNSEEDED = {"default_rng", "Random", "SeedSequence", "seed", "RandomState"}  # without an argument
NEVER = {"SystemRandom", "urandom", "time_ns", "uuid1", "uuid4", "token_bytes", "token_hex"}


def unseeded_calls(source: str) -> list[str]:
    """Return the calls in Python source whose results vary from run to run."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in NEVER or (name in UNSEEDED and not node.args and not node.keywords):
                result.append(ast.unparse(node))
    return result


def test_random_draws_in_tests_are_seeded() -> None:
    result = {path.name: unseeded_calls(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("*.py")}
    assert not {name: calls for name, calls in result.items() if calls}


def test_random_draws_without_a_seed_are_detected() -> None:
    assert unseeded_calls("np.random.default_rng()\nrandom.Random()\nf(time.time_ns())") == [
        *("np.random.default_rng()", "random.Random()", "time.time_ns()")
    ]
    assert not unseeded_calls("np.random.default_rng(0)\nrandom.Random('a')")


@pytest.mark.parametrize("_", range(2))
def test_seed_depends_on_the_test_name(_: int, request: pytest.FixtureRequest) -> None:
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - the shared one is tested
    assert drawn == drawn_at_random(request.node.nodeid)


@pytest.fixture(scope="session")
def drawn_in_session() -> tuple[tuple[float, float, float], int]:
    return (random.random(), float(np.random.rand()), float(torch.rand(()))), torch.get_num_threads()  # noqa: NPY002


def test_fixtures_of_the_session_are_seeded(drawn_in_session: tuple[tuple[float, float, float], int]) -> None:
    assert drawn_in_session == (drawn_at_random("drawn_in_session"), THREADS)
