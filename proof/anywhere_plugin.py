"""A pytest plugin for `proof.anywhere`: tests in random order, or only those that train; both by the environment.

ALEXNET_TEST_ORDER is the seed of the order, ALEXNET_TEST_ONLY=training leaves out what trains nothing.
"""

from __future__ import annotations

import inspect
import os
import random
import re

import pytest

# In the text of a test, or of a fixture that it takes.
TRAINS = re.compile(
    r"""\btrain\(|"train"|\bstarted\(|training\.start|\bTrainer\b|\.resume\(|--resume|ablate|find_lr|lr_finder"""
)


def trains(item: pytest.Item) -> bool:
    """Tell whether a test, or a fixture that it takes, trains a network."""
    fixtures = getattr(item, "_fixtureinfo", None)
    functions = [each.func for found in fixtures.name2fixturedefs.values() for each in found] if fixtures else []
    functions.append(inspect.unwrap(getattr(item, "function", trains)))
    return any(TRAINS.search(inspect.getsource(function)) for function in functions)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose and shuffle; the same in every worker."""
    if os.environ.get("ALEXNET_TEST_ONLY") == "training":
        left_out = [item for item in items if not trains(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if trains(item)]
    if order := os.environ.get("ALEXNET_TEST_ORDER"):
        random.Random(order).shuffle(items)  # noqa: S311
