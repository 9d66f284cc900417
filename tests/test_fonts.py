"""Labels of any script in figures: drawn in a font that has the characters, or as code points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from alexnet import fonts
from alexnet.cli import app
from alexnet.plotting import shorten
from alexnet.search.contact_sheet import write_sheet

CAT, DOG = "猫", "犬"


@pytest.fixture
def no_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose only font is the one that comes with matplotlib."""
    caches = (fonts.font_of, fonts._other_fonts)
    monkeypatch.setattr(fonts, "_warned", [])
    for one in caches:
        one.cache_clear()
    monkeypatch.setattr(fonts.font_manager, "findSystemFonts", list)
    yield
    for one in caches:
        one.cache_clear()


@pytest.mark.parametrize("text", ["Tree frog", "café", "Übergröße", "кошка", "γάτα", "القط", "$x_1$", "a\u200db", "☺\ufe0f"])
def test_text_of_the_main_font_is_unchanged(text: str, no_others: None) -> None:
    assert fonts.legible(text) == text


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (CAT, "U+732B"),
        (f"{DOG}12", "U+72AC12"),
        ("고양이", "U+ACE0-C591-C774"),
        ("\u1100\u1169", "U+ACE0"),  # jamo, as macOS stores names
        ("बिल्ली cat", "U+092C-093F-0932-094D-0932-0940 cat"),
        ("แมว", "U+0E41-0E21-0E27"),
        ("\U0001f98a", "U+1F98A"),
        ("cafe\u0301", "café"),
    ],
)
def test_characters_without_font_become_code_points(text: str, drawn: str, no_others: None) -> None:
    assert fonts.legible(text) == drawn


def test_missing_font_message_is_printed_once(no_others: None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        fonts.legible(CAT)
        fonts.legible(DOG)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert CAT in lines[0]
    assert "install" in lines[0]


def test_damaged_fonts_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noto.ttf").write_bytes(b"no font")
    assert fonts._characters(tmp_path / "noto.ttf") == frozenset()
    assert fonts._characters(tmp_path / "none.ttf") == frozenset()


def test_installed_font_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matplotlib's own fonts, STIX has letters that DejaVu Sans lacks."""
    stix = next(
        Path(font.fname) for font in fonts.font_manager.fontManager.ttflist if Path(font.fname).name == "STIXGeneral.ttf"
    )
    codes = sorted(fonts._characters(stix) - fonts._characters(fonts._default_font()))
    letter = next(chr(code) for code in codes if chr(code).isprintable() and not chr(code).isspace())
    fonts.font_of.cache_clear()
    monkeypatch.setattr(fonts, "_other_fonts", lambda: [stix])
    try:
        figure = Figure()
        text = figure.text(0, 0, f"a{letter}")
        fonts.set_fonts(figure)
        assert text.get_text() == f"a{letter}"
        assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
        assert list(fonts.font_runs(f"a{letter}b")) == [
            (fonts._default_font(), "a"),
            (stix, letter),
            (fonts._default_font(), "b"),
        ]
    finally:
        fonts.font_of.cache_clear()


@pytest.mark.parametrize("place", ["text", "tick"])
def test_labels_without_font_stay_distinct_without_warnings(no_others: None, tmp_path: Path, place: str) -> None:
    """Distinct characters stay distinct with and without fonts; missing glyphs would be drawn as identical boxes."""
    drawn = []
    for label in (CAT, DOG):
        figure = Figure(figsize=(2, 1))
        if place == "text":
            figure.text(0, 0.5, label)
        else:
            figure.subplots().set_yticks([0.5], [label])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fonts.save(figure, tmp_path / "a.png", "png")
            fonts.save(figure, tmp_path / "a.svg", "svg")
        drawn.append(np.asarray(Image.open(tmp_path / "a.png")))
    assert not np.array_equal(*drawn)


def test_commands_draw_labels_of_any_script(tmp_path: Path) -> None:
    labels = (CAT, DOG, "고양이", "القط", "बिल्ली", "แมว", "\U0001f98a", "三花猫" * 20)
    folder = tmp_path / "photos"
    for label in labels:
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / label / f"{label[:3]}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = CliRunner().invoke(app, ["data", "show", str(folder), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    images = sorted(folder.rglob("*.png"))
    write_sheet(tmp_path / "b.png", images, [{"neighbours": []} for _ in images])
    assert np.asarray(Image.open(tmp_path / "b.png")).std() > 10


def test_wide_characters_count_twice() -> None:
    assert shorten("猫" * 10, 20) == "猫" * 10
    assert shorten("猫" * 11, 20) == f"{'猫' * 9}…"
    assert shorten("猫" * 11, 20, end=True) == f"…{'猫' * 9}"
    assert shorten("cat" * 10, 8) == "catcatc…"
    assert shorten("cat" * 10, 8, end=True) == "…atcatcat"[:1] + "atcatcat"[-7:]
