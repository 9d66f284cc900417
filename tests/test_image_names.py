"""Names of images: files, folders and patterns, and names that hold a pattern's characters themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.data.sources import open_table
from alexnet.errors import DataError, format_names
from alexnet.inference.predict import find_images

FILES = (
    *("photos [2020]/a.png", "photos [2020]/b.png", "photos [2020]/c.jpg", "photos 2/d.png"),
    *("album/x [1]/e.png", "album/y/f.png", "album/.hidden/g.png", "star*.png", "what?.png", "[ab].png", "a.png"),
    *("hidden/.a.png", "empty/.b/c.png"),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("photos [2020]/*.png", ["photos [2020]/a.png", "photos [2020]/b.png"]),
        ("photos [2020]", ["photos [2020]/a.png", "photos [2020]/b.png", "photos [2020]/c.jpg"]),
        ("photos [0-9]/*.png", ["photos 2/d.png"]),
        ("*/x [1]/*.png", ["album/x [1]/e.png"]),
        ("star*.png", ["star*.png"]),
        ("what?.png", ["what?.png"]),
        ("[ab].png", ["[ab].png"]),
        ("[a].png", ["a.png"]),
        ("album/*", ["album/x [1]/e.png", "album/y/f.png"]),
        ("album/**", ["album/x [1]/e.png", "album/y/f.png"]),
        ("album/**/*.png", ["album/x [1]/e.png", "album/y/f.png"]),
        ("album/**/**/f.png", ["album/y/f.png"]),
        ("none.png", ["none.png"]),
        ("no [such].d/x", None),
        ("album/.hid*/*", ["album/.hidden/g.png"]),
        ("*.gif", None),
        ("photos [2020]/*.gif", None),
        ("e*", None),
    ],
)
def test_a_name_means_files(name: str, found: list[str] | None, here: Path) -> None:
    for asked in (name, str(here / name)):
        if found is None:
            with pytest.raises(DataError, match="no image"):
                find_images([asked])
        else:
            root = here if asked != name else Path()
            assert find_images([asked]) == [root / each for each in found]


def test_a_path_is_no_pattern(here: Path) -> None:
    assert find_images([Path("*.png")]) == [Path("*.png")]
    assert find_images([Path("[ab].png")]) == [Path("[ab].png")]


def test_runs_in_a_folder_are_passed_over_and_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("runs/a/recipe.toml", "runs/a/environment.json", "runs/a/explain/1-explained.png", "index/search.json"):
        (here / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "album" / name).touch()
    (here / "album" / "y" / "recipe.toml").touch()  # of a cake
    photos = [Path("album/x [1]/e.png"), Path("album/y/f.png")]
    for asked in ("album", "album/**/*.png"):
        assert [file for file in find_images([asked]) if file.suffix == ".png"] == photos
        assert (
            f"passed over {format_names([Path('album/index'), Path('album/runs/a')])}: made by alexnet"
            in capsys.readouterr().err
        )
    assert find_images(["album/runs", "a.png"]) == [Path("a.png")]
    assert find_images([Path("album/runs/a/explain")]) == [Path("album/runs/a/explain/1-explained.png")]


def test_a_name_that_no_system_takes_is_answered_and_cut_in_messages(here: Path) -> None:
    long = "x" * 5000
    assert find_images([long, "a.png"]) == [Path(long), Path("a.png")]
    with pytest.raises(DataError, match="no file matches it") as caught:
        find_images([f"*{long}"])
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["empty", "hidden"])
def test_a_folder_without_visible_files_is_one_line(name: str, here: Path, trained: alexnet.Run) -> None:
    for command in (["predict"], ["explain"], ["search", "query"]):
        result = CliRunner().invoke(app, [*command, str(trained.path), name])
        assert result.exit_code == 1
        assert isinstance(result.exception, DataError)
        assert str(result.exception).startswith(f"no image in '{name}': it holds no files")


def test_an_empty_name_is_wrong_usage(trained: alexnet.Run, here: Path) -> None:
    run = str(trained.path)
    commands = [["predict", run, ""], ["explain", run, ""], ["search", "query", run, ""], ["search", "index", run, ""]]
    for command in [*commands, ["train", ""], ["data", "check", ""], ["predict", run, "a.png", ""]]:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, command
        assert "an argument is empty" in result.output
    for call in (trained.predict, trained.index):
        with pytest.raises(DataError, match="is empty"):
            call("")  # type: ignore[operator]
    with pytest.raises(DataError, match="is empty"):
        open_table("")


def test_names_on_standard_input_are_no_patterns(trained: alexnet.Run, here: Path) -> None:
    result = CliRunner().invoke(app, ["predict", str(trained.path), "-", "--jsonl"], input="[ab].png\n*.png\n")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.partition('", "')[0] for line in lines] == ['{"image": "[ab].png', '{"image": "*.png']
