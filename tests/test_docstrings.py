"""Docstrings of the public API state arguments and results, their shapes and units, and the errors to expect.

The public API is everything that `alexnet.__all__` and docs/python.md name, and the methods of those classes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import alexnet
from alexnet import errors

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.AlexNetError)}

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:[ ]+.*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)
SHAPE = re.compile(r"\b[NCHSI] (x )?([CHWSI3]|classes|units)\b|, N\b|`\w+` N\b|\bone a (label|class)\b|classes x classes")
DTYPE = re.compile(r"float32|float64|uint8|int64|[Cc]ounts")
ARRAYS = (np.ndarray, NDArray)  # from NumPy 2.5 on, NDArray is a different kind of alias
UNIT = re.compile(r"\bshare|0 to 1|second|minute|pixel|percent|factor|\bnats?\b|points|times|dataset's units|[Rr]ate")


def public() -> Mapping[str, Any]:
    """Return the public API by name: functions, classes, and the public methods and properties of those classes."""
    names: dict[str, Any] = {name: getattr(alexnet, name) for name in alexnet.__all__}
    for module, name in re.findall(r"^::: (alexnet[\w.]*)\.(\w+)$", PAGE, re.MULTILINE):
        value = getattr(import_module(module), name, None)
        assert value is not None, f"docs/python.md lists {module}.{name}, which is not there"
        names |= {error: getattr(errors, error) for error in sorted(ERRORS)} if inspect.ismodule(value) else {name: value}
    for name, value in list(names.items()):
        if inspect.isclass(value):
            members = {member: part for member, part in vars(value).items() if not member.startswith("_")}
            names |= {f"{name}.{m}": part for m, part in members.items() if inspect.isroutine(part) or is_property(part)}
    return names


def is_property(value: Any) -> bool:
    return isinstance(value, property | cached_property)


def function(value: Any) -> Callable[..., Any]:
    """Return the function behind a property or a class."""
    result = getattr(value, "fget", None) or getattr(value, "func", None) or value
    return result.__init__ if inspect.isclass(result) else result


def text_of(value: Any) -> str:
    """Return a docstring; for a class, joined with its constructor's."""
    text = inspect.getdoc(value if not is_property(value) else function(value)) or ""
    if inspect.isclass(value) and "__init__" in vars(value):
        text += f"\n\n{inspect.getdoc(value.__init__) or ''}"
    return f"{text}\n"


def referred(text: str, others: Mapping[str, Any]) -> str:
    """Return the docstrings that a text refers to, as in "as for `train`"."""
    names = re.findall(r"(?:as for|as|of) `([\w.]+)`", text)
    return "".join(text_of(others[n]) for name in names for n in (name, f"Run.{name}") if n in others)


def types_in(hint: Any) -> Iterator[Any]:
    """Yield the types in an annotation."""
    yield hint
    for inner in typing.get_args(hint):
        yield from types_in(inner)


def lacks(value: Any, others: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a docstring lacks."""
    text = text_of(value)
    if not text.strip():
        yield "a docstring"
        return
    sections = dict(SECTION.findall(text))
    entries = dict(ENTRY.findall(sections.get("Args", "") + sections.get("Attributes", "")))
    hints = typing.get_type_hints(function(value))
    returned = hints.pop("return", type(None))
    fields = getattr(value, "__dataclass_fields__", getattr(value, "_fields", ())) if inspect.isclass(value) else ()
    hints = typing.get_type_hints(value) if fields else hints
    for parameter in fields or hints:
        if parameter not in entries and f"`{parameter}`" not in text:
            yield f"what {parameter!r} is"
    if returned is not type(None) and not is_property(value) and not re.search(r"\b([Rr]eturns?|[Yy]ields?)\b", text):
        yield "what it returns"
    named = dict(ENTRY.findall(sections.get("Raises", "")))
    for error in named.keys() - ERRORS:
        yield f"an error of alexnet.errors in the place of {error!r}"
    bases = tuple(getattr(errors, error) for error in named.keys() & ERRORS)
    for error in raised(function(value)):
        if not issubclass(getattr(errors, error), bases):
            yield f"that it raises {error}"
    result = text.replace(sections.get("Args", "\0"), "")
    for what, hint in {**hints, "the result": returned}.items():
        description = result if what == "the result" else entries.get(what, text)
        description, kinds = description + referred(description, others), list(types_in(hint))
        if any(kind is Tensor or typing.get_origin(kind) in ARRAYS for kind in kinds):
            if not SHAPE.search(description):
                yield f"the shape of {what}"
            if not DTYPE.search(description):
                yield f"the dtype of {what}"
        if float in kinds and not UNIT.search(description):
            yield f"the unit of {what}"
    if re.search(r"\bpaper\b|\b2012\b", text) and not re.search(r"section|figure|2012 source", text):
        yield "the place in the paper"


def raised(result: Callable[..., Any]) -> set[str]:
    """Return which of our errors a function raises in its own body."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(result)))
    except (OSError, TypeError):  # generated, as a dataclass's __init__ is
        return set()
    calls = [node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {getattr(call, "id", getattr(call, "attr", "")) for call in calls} & ERRORS


def test_docstrings_are_complete() -> None:
    names = public()
    missing = [f"{name} lacks {what}" for name, value in names.items() for what in lacks(value, names)]
    assert not missing


def test_api_functions_are_exported() -> None:
    from alexnet import api

    inside = {n for n, v in vars(api).items() if getattr(v, "__module__", "") == api.__name__ and not n.startswith("_")}
    assert inside <= set(alexnet.__all__)


def bare(images: Tensor, seconds: float) -> NDArray[np.float32]:
    raise errors.DataError("no")


def half(images: Tensor, seconds: float) -> NDArray[np.float32]:
    """Count `images`, N C H W, as in the paper.

    Raises:
        KeyError: never.
    """
    raise errors.DataError("no")


def full(images: Tensor, seconds: float) -> NDArray[np.float32]:
    """Return the mean of images, as in the paper (section 4.1), C H W float32.

    Args:
        images: N C H W float32.
        seconds: to wait, in seconds.

    Raises:
        AlexNetError: always.
    """
    raise errors.DataError("no")


def same_as_full(images: Tensor) -> Tensor:
    """Yield what `full` returns; `images` as for `full`."""
    return torch.empty(0)


def test_missing_docstring_parts_are_detected() -> None:
    assert list(lacks(bare, {})) == ["a docstring"]
    assert list(lacks(half, {})) == [
        "what 'seconds' is",
        "what it returns",
        "an error of alexnet.errors in the place of 'KeyError'",
        "that it raises DataError",
        "the dtype of images",
        "the unit of seconds",
        "the dtype of the result",
        "the place in the paper",
    ]
    assert list(lacks(full, {})) == []
    parts = [f"the {kind} of {what}" for what in ("images", "the result") for kind in ("shape", "dtype")]
    assert list(lacks(same_as_full, {})) == parts
    assert list(lacks(same_as_full, {"full": full})) == []
