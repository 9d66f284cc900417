"""Image arguments: files, folders and glob patterns, and names that contain the characters of patterns."""

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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_image_names_and_glob_patterns(name: str, expected: list[str] | None, folder: Path) -> None:
    for argument in (name, str(folder / name)):
        if expected is None:
            with pytest.raises(DataError, match="no image"):
                find_images([argument])
        else:
            root = folder if argument != name else Path()
            assert find_images([argument]) == [root / each for each in expected]


def test_path_object_is_no_glob_pattern(folder: Path) -> None:
    assert find_images([Path("*.png")]) == [Path("*.png")]
    assert find_images([Path("[ab].png")]) == [Path("[ab].png")]


def test_run_inside_an_image_folder_is_skipped_with_a_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("runs/a/recipe.toml", "runs/a/environment.json", "runs/a/explain/1-explained.png", "index/search.json"):
        (folder / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "album" / name).touch()
    (folder / "album" / "y" / "recipe.toml").touch()  # of a cake
    photos = [Path("album/x [1]/e.png"), Path("album/y/f.png")]
    for argument in ("album", "album/**/*.png"):
        assert [file for file in find_images([argument]) if file.suffix == ".png"] == photos
        assert (
            f"skipped {format_names([Path('album/index'), Path('album/runs/a')])}: made by alexnet" in capsys.readouterr().err
        )
    assert find_images(["album/runs", "a.png"]) == [Path("a.png")]
    assert find_images([Path("album/runs/a/explain")]) == [Path("album/runs/a/explain/1-explained.png")]


def test_too_long_image_name_is_truncated(folder: Path) -> None:
    long = "x" * 5000
    assert find_images([long, "a.png"]) == [Path(long), Path("a.png")]
    with pytest.raises(DataError, match="no file matches it") as caught:
        find_images([f"*{long}"])
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["empty", "hidden"])
def test_folder_without_images_is_one_line(name: str, folder: Path, trained: alexnet.Run) -> None:
    for command in (["predict"], ["explain"], ["search", "query"]):
        result = CliRunner().invoke(app, [*command, str(trained.path), name])
        assert result.exit_code == 1
        assert isinstance(result.exception, DataError)
        assert str(result.exception).startswith(f"no image in '{name}': it holds no files")


def test_empty_image_name_is_usage_error(trained: alexnet.Run, folder: Path) -> None:
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


def test_image_names_on_stdin_are_no_glob_patterns(trained: alexnet.Run, folder: Path) -> None:
    result = CliRunner().invoke(app, ["predict", str(trained.path), "-", "--jsonl"], input="[ab].png\n*.png\n")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.partition('", "')[0] for line in lines] == ['{"image": "[ab].png', '{"image": "*.png']
