"""Sorting images into folders: nothing is lost or replaced, wherever it is interrupted, and it can be undone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import DataError, RunError
from alexnet.sort import journal as journals
from alexnet.sort import sort as sorting
from alexnet.sort.journal import How
from conftest import mostly_long

HOWS: tuple[How, ...] = ("copy", "move", "link")
LABELS = ("cat", "dog/wolf", "DOG_WOLF")


def tree(folder: Path) -> dict[str, bytes | str]:
    """Return the content of every file below a folder, of a link its target, and of a folder nothing."""
    found = (path for path in sorted(folder.rglob("*")))
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in found
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five files, two of them with the same name."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.jpg", "b.jpg", "c.png", "in/a.jpg", "in/d.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 100)
    return folder


def results(images: list[Path]) -> Iterator[dict[str, Any]]:
    """Predict the labels in turn."""
    for number, image in enumerate(images):
        yield {"image": str(image), "predictions": [{"label": LABELS[number % 3], "probability": 0.9}]}


def run(photos: Path, out: Path, how: How) -> list[dict[str, Any]]:
    """Sort all files of a folder, as the command does."""
    journal = sorting.open_folder(out, how)
    sources = sorted(path for path in photos.rglob("*") if path.is_file())
    return list(sorting.sort(journal, results(sorting.unsorted(journal, sources)), LABELS))


@pytest.mark.parametrize("how", HOWS)
def test_images_are_sorted_and_taken_back(photos: Path, tmp_path: Path, how: How) -> None:
    before, out = tree(photos), tmp_path / "out"
    sorted_to = {row["image"]: Path(row["sorted"]).relative_to(out).as_posix() for row in run(photos, out, how)}
    assert [sorted_to[str(photos / name)] for name in ("a.jpg", "b.jpg", "c.png", "in/a.jpg", "in/d.jpg")] == [
        "cat/a.jpg",
        "dog_wolf/b.jpg",
        "DOG_WOLF-2/c.png",
        "cat/a-2.jpg",
        "dog_wolf/d.jpg",
    ]
    contents = {path: (out / path).read_bytes() for path in sorted_to.values()}
    assert contents == {sorted_to[str(photos / name)]: content for name, content in before.items() if content}
    assert tree(photos) == (before if how != "move" else {"in": ""})
    assert run(photos, out, how) == []  # all are sorted
    undone = sorting.undo_sort(out)
    assert undone == {"folder": str(out), "undone": 5, "kept": []}
    assert tree(photos) == before
    assert not out.exists()


def died(action: Callable[[], object], step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do `action` in a process that dies, as by SIGKILL, before its `step`-th change to the disk; return whether it did."""
    child = os.fork()
    if child == 0:
        left = step

        def killing(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        for name in ("link", "unlink", "symlink", "rename", "replace", "mkdir", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, killing(getattr(os, name)))
        monkeypatch.setattr(shutil, "copy2", killing(shutil.copy2))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@mostly_long(("how", "links"), [("copy", True), ("move", True), ("move", False), ("link", True)], ("move", True))
def test_a_kill_at_any_step_loses_nothing(
    photos: Path, tmp_path: Path, how: How, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(1, "no hard links")

        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # the processes die, not the machine
    (photos / "b.jpg").unlink()
    (photos / "in" / "d.jpg").unlink()
    before, step, out = tree(photos), 0, tmp_path / "out"
    wanted = sorted(content for content in before.values() if content)

    def everything() -> list[bytes | str]:
        contents = {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != journals.NAME}
        return sorted(content for content in contents if content in wanted)

    alive = False
    while not alive:
        step += 1
        alive = not died(lambda: run(photos, out, how), step, monkeypatch)
        assert everything() == wanted
        run(photos, out, how)
        assert len([line for line in (out / journals.NAME).read_text().splitlines() if "image" in line]) == 3
        undone = died(lambda: sorting.undo_sort(out), step, monkeypatch)
        assert everything() == wanted
        if undone and out.exists() and (out / journals.NAME).exists():
            assert sorting.undo_sort(out)["kept"] == []
        shutil.rmtree(out, ignore_errors=True)  # killed before its journal or before the folder was removed: it is empty
        assert tree(photos) == before
    assert step > 10


def test_nothing_is_replaced(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, "copy")
    (out / "cat" / "e.jpg").write_bytes(b"mine")
    (photos / "e.jpg").write_bytes(b"new")
    (photos / "a.jpg").write_bytes(b"another photo of the same name")
    assert {Path(row["sorted"]).name for row in run(photos, out, "copy")} == {"a-3.jpg", "e.jpg"}
    assert (out / "cat" / "e.jpg").read_bytes() == b"mine"


def test_undo_keeps_what_has_changed(photos: Path, tmp_path: Path) -> None:
    for how, change in (("copy", "out/cat/a.jpg"), ("link", "out/cat/a.jpg"), ("move", "photos/a.jpg")):
        out = tmp_path / "out"
        run(photos, out, how)  # type: ignore[arg-type]
        (tmp_path / change).unlink(missing_ok=True)
        (tmp_path / change).write_bytes(b"edited")
        result = sorting.undo_sort(out)
        assert [kept["image"] for kept in result["kept"]] == [str(out / "cat/a.jpg")]
        assert result["undone"] == 4
        assert (tmp_path / change).read_bytes() == b"edited"
        if how == "move":
            (photos / "a.jpg").unlink()
            assert sorting.undo_sort(out)["kept"] == []
        shutil.rmtree(out, ignore_errors=True)


def test_a_copy_whose_original_is_gone_is_kept(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, "copy")
    (photos / "b.jpg").unlink()
    assert [kept["image"] for kept in sorting.undo_sort(out)["kept"]] == [str(out / "dog_wolf" / "b.jpg")]
    assert (out / "dog_wolf" / "b.jpg").read_bytes() == bytes([1]) * 100


def test_an_image_that_cannot_be_read_or_has_gone_stays(photos: Path, tmp_path: Path) -> None:
    journal = sorting.open_folder(tmp_path / "out", "move")
    rows = [{"image": str(photos / "a.jpg"), "error": "corrupt"}, *results([photos / "gone.jpg"])]
    assert [row.get("error") for row in sorting.sort(journal, rows, LABELS)] == ["corrupt", "No such file or directory"]
    assert (photos / "a.jpg").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "damaged"),
        ("{}\n", "damaged"),
        ('{"version": 2, "how": "copy", "created": true}\n', "another version"),
        ('{"version": 1, "how": "copy", "created": true}\nnot JSON\n', "cannot be used"),
        (
            '{"version": 1, "how": "move", "created": true}\n{"image": "/a", "target": "../b", "size": 1, "mtime_ns": 1}\n',
            "in the",
        ),
        ('{"version": 1, "how": "move", "created": true}\n{"image": "a", "target": "b", "size": 1, "mtime_ns": 1}\n', "in the"),
    ],
)
def test_a_damaged_journal_changes_nothing(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / journals.NAME).write_text(content)
    with pytest.raises(RunError, match=words):
        sorting.undo_sort(tmp_path)
    assert (tmp_path / journals.NAME).read_text() == content


def test_refusals_are_one_line(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not empty"):
        sorting.open_folder(photos, "copy")
    with pytest.raises(RunError, match="holds no sorted images"):
        sorting.undo_sort(photos)
    run(photos, tmp_path / "out", "copy")
    with pytest.raises(RunError, match="were copied"):
        sorting.open_folder(tmp_path / "out", "move")
    with pytest.raises(DataError, match="in the folder to sort into"):
        run(tmp_path / "out", tmp_path / "out", "copy")
    (photos / "link.jpg").symlink_to("a.jpg")
    with pytest.raises(DataError, match="symbolic link"):
        run(photos, tmp_path / "moved", "move")


@given(st.lists(st.text(), unique=True, max_size=4))
def test_folders_of_labels_are_valid_and_different(labels: list[str]) -> None:
    names = sorting.folder_names(labels)
    assert len({name.casefold() for name in names}) == len(labels)
    for name in names:
        assert name not in ("", ".", "..")
        assert not set(name) & set('/\\:*?"<>|\0')
        assert name.split(".")[0].upper() not in ("CON", "NUL", "AUX", "PRN", "COM1")


def test_the_journal_is_json_lines(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", "copy")
    lines = (tmp_path / "out" / journals.NAME).read_text().splitlines()
    assert json.loads(lines[0]) == {"version": 1, "how": "copy", "created": True}
    assert json.loads(lines[-1]) == {"done": True}
