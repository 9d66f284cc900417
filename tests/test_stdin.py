"""Lists of image names on standard input."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.cli.images import image_names
from alexnet.errors import DataError
from listings import WORDS


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[str | Path]]:
    def names(content: bytes) -> list[str | Path]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="cp1252"))
        return image_names(["first.png", "-"])[1:]

    return names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"\xef\xbb\xbfa.png\r\n\r\n  \r\nb.png", ["a.png", "b.png"]),
        ("a.png\r\nü.png\r\n".encode("utf-16"), ["a.png", "ü.png"]),
        (codecs.BOM_UTF16_BE + "a.png\nü.png".encode("utf-16-be"), ["a.png", "ü.png"]),
        (b"./a.png\0./b\nc.png\0./d\r.png\0", ["./a.png", "./b\nc.png", "./d\r.png"]),
        (b"./a.png\0./b.png\0\n", ["./a.png", "./b.png"]),
        ("a\u2028b.png\n".encode(), ["a\u2028b.png"]),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_image_names_on_stdin(stdin: Callable[[bytes], list[str | Path]], content: bytes, names: list[str]) -> None:
    assert stdin(content) == list(map(Path, names))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input has no file names"),
        (b" \n\0", "standard input has no file names"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "standard input is an image, but - stands for a list of names"),
        (b"\x89PNG\r\n\x1a\n\0\0", "standard input is an image, but - stands for a list of names"),
    ],
)
def test_stdin_without_names_is_refused(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(DataError, match=message):
        image_names(["-"])


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_image_names_not_utf8_on_stdin(stdin: Callable[[bytes], list[str | Path]]) -> None:
    assert [os.fsencode(name) for name in stdin(b"\xff.png\n\xc3\xa9.png\n")] == [b"\xff.png", b"\xc3\xa9.png"]


@given(
    st.lists(WORDS, min_size=1),
    st.sampled_from(["\n", "\r\n", "\0"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
)
def test_image_names_on_stdin_read_back(names: list[str], end: str, encoding: str, ended: bool) -> None:
    content = (end.join(names) + (end if ended or len(names) == 1 else "")).encode(encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="utf-8"))
        assert image_names(["-"]) == [Path(name) for name in names]
