"""No user file is overwritten without --overwrite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import alexnet
from alexnet import files
from alexnet.cli import app
from alexnet.errors import RunError
from alexnet.explain import figure as explain_figure
from alexnet.export import model as onnx_model
from alexnet.export import onnx
from alexnet.run import ModelConfig
from alexnet.search.contact_sheet import write_sheet
from alexnet.search.search import locked_index
from conftest import mostly_long, needs_export

MINE = b"a file of the user's"
REFUSED = "already exists and was not made by alexnet: give another name, or --overwrite"
SWEEP = "alexnet.api.run_lr_finder"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Fail a test that starts the work before the overwrite is refused."""

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it was refused after the work")

    for name in names:
        monkeypatch.setattr(name, worked)


# Commands


@mostly_long("command", [("data", "show"), ("model", "plot")], ("data", "show"))
def test_default_output_never_overwrites_a_user_file(command: tuple[str, str], photos: Path, folder: Path) -> None:
    name, drawn = ("photos-samples", photos) if command == ("data", "show") else ("paper", "paper")
    path = folder / f"{name}.png"
    path.write_bytes(MINE)
    refused = call(*command, drawn)
    assert REFUSED in str(refused.exception)
    assert path.read_bytes() == MINE
    assert [file.name for file in folder.iterdir()] == [path.name], "the other of the two files is not written either"
    assert call(*command, drawn, "--overwrite").exit_code == 0
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert call(*command, drawn).exit_code == 0, "it replaces its own files"
    assert path.read_bytes() == first
    assert not list(folder.glob(".*"))


@pytest.mark.long
def test_default_outputs_have_names_of_their_own(photos: Path, folder: Path) -> None:
    """Samples of a dataset and the diagram of a variant, both of the name `cifar10`."""
    data = shutil.copytree(photos, folder / "cifar10")
    written = [
        set(call(*command).stdout.splitlines())
        for command in (("data", "show", data), ("data", "show", data, "--recipe", "fast"), ("model", "plot", "cifar10"))
    ]
    assert sorted(map(len, written)) == [1, 1, 2]
    assert len(set.union(*written)) == 4


def test_out_never_overwrites_a_photo(
    photos: Path, trained: alexnet.Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(
        monkeypatch,
        *("alexnet.api.search_images", "alexnet.api.export", "alexnet.api.open_table", SWEEP),
        *("alexnet.explain.figure.explain", "alexnet.report.samples.decode_all"),
    )
    photo = folder / "000.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    before, image = photo.read_bytes(), next(photos.rglob("*.png"))
    for command in (
        ("data", "show", photos, "--out", photo),
        ("data", "show", photos, "--recipe", "fast", "--out", photo),
        ("model", "plot", "paper", "--out", photo),
        ("search", "query", trained.path, image, "--out", photo),
        ("export", trained.path, "--out", photo),
    ):
        result = call(*command)
        assert result.exit_code == 1
        assert REFUSED in str(result.exception), command
        assert photo.read_bytes() == before


def test_explain_never_overwrites_a_user_picture(
    photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "alexnet.explain.figure.explain")
    first, second = sorted(photos.rglob("*.png"))[:2]
    for name in ("filters.png", f"{second.stem}-explained.png", f"{first.stem}-explained.npz"):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_bytes(MINE)
        with pytest.raises(RunError, match=REFUSED):
            next(trained.explain([first, second], out, arrays=True))
        assert [path.name for path in out.iterdir()] == [name], "nothing at all was written"
        assert (out / name).read_bytes() == MINE


def test_find_lr_never_overwrites_a_user_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, SWEEP)
    (tmp_path / "a-lr.png").write_bytes(MINE)
    result = call("train", photos, "--find-lr", "--out", tmp_path / "a")
    assert REFUSED in str(result.exception)
    assert (tmp_path / "a-lr.png").read_bytes() == MINE


@pytest.mark.parametrize("out", [".", "..", "/", "runs/.."])
def test_find_lr_out_needs_a_file_name(out: str, photos: Path) -> None:
    with pytest.raises(RunError, match=r"the curve of --find-lr cannot be named after .*: name a folder such as runs/a"):
        alexnet.find_lr(photos, out=out)


def test_run_is_never_overwritten(photos: Path, tmp_path: Path) -> None:
    assert call("train", photos, "--out", tmp_path / "run", "--overwrite").exit_code == 2


@needs_export
def test_export_never_overwrites_user_notes(trained: alexnet.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx.json").write_bytes(b'{"mine": true}')
    with pytest.raises(RunError, match=REFUSED):
        onnx.export(trained.network, trained.config, None, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.json"]


def test_folder_with_index_file_names_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "images-1.json").write_bytes(MINE)
    with pytest.raises(RunError, match="is not empty and is not an index"), locked_index(tmp_path):
        pass
    assert (tmp_path / "images-1.json").read_bytes() == MINE


# Marks


def _onnx(path: Path, config: ModelConfig) -> None:
    graph = onnx_model.preprocessing_model(config.preprocessing)
    onnx_model.onnx.save(onnx_model._tidied(graph, onnx_model._metadata(config)), path)


def _svg(path: Path) -> None:
    path.unlink(missing_ok=True)
    assert call("model", "plot", "paper", "--out", path).exit_code == 0


WRITERS: dict[str, Callable[[Path, alexnet.Run], object]] = {
    "sheet.png": lambda path, _: write_sheet(path, [], []),
    "drawing.svg": lambda path, _: _svg(path),
    "model.onnx": lambda path, run: _onnx(path, run.config),
    "notes.json": lambda path, _: path.write_text(json.dumps({"file": "a", "compared_on": "b"}, indent=2)),
    "arrays.npz": lambda path, _: explain_figure._save_arrays(Explained(), path),  # type: ignore[arg-type]
}


class Explained:
    def arrays(self) -> dict[str, Any]:
        return {"heat": np.arange(5000)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_export, pytest.mark.long] if name.endswith(".onnx") else []) for name in WRITERS]
)
def test_own_output_files_are_recognised(name: str, trained: alexnet.Run, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, trained)
    files.refuse_overwrite(tmp_path / name)
    if name.endswith(".npz"):
        assert np.load(tmp_path / name)["heat"].sum() == np.arange(5000).sum()


@pytest.mark.parametrize("name", ["plain.png", "plain.svg", "plain.npz", "empty.png", "alexnet.txt"])
def test_foreign_files_are_not_overwritten(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("plain") and path.suffix != ".npz":
        Figure().savefig(path)
    elif path.suffix == ".npz":
        np.savez(path, alexnet=np.zeros(9))
    else:
        path.write_text("alexnet made by alexnet Software" if path.suffix == ".txt" else "")
    before = path.read_bytes()
    with pytest.raises(RunError, match=REFUSED):
        files.write_output(path, lambda part: part.write_bytes(b"new"))
    assert path.read_bytes() == before


# Paths that are not regular files


def test_symbolic_link_is_not_overwritten(tmp_path: Path) -> None:
    photo, link, lost = tmp_path / "photo.png", tmp_path / "link.png", tmp_path / "lost.png"
    write_sheet(photo, [], [])
    before = photo.read_bytes()
    link.symlink_to(photo)
    lost.symlink_to(tmp_path / "nowhere.png")
    for path in (link, lost):
        with pytest.raises(RunError, match=REFUSED):
            files.write_output(path, lambda part: part.write_bytes(b"new"))
    files.write_output(link, lambda part: part.write_bytes(b"new"), overwrite=True)
    assert photo.read_bytes() == before, "the target of the link is not the file that was named"
    assert link.read_bytes() == b"new"
    assert lost.is_symlink()


def test_folder_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it is a folder; name a file"):
        files.write_output(tmp_path, lambda part: part.write_bytes(b"new"), overwrite=True)


def test_file_created_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def slow(part: Path) -> None:
        part.write_bytes(b"new")
        path.write_bytes(MINE)

    with pytest.raises(RunError, match=REFUSED):
        files.write_output(path, slow)
    assert path.read_bytes() == MINE
    assert list(tmp_path.iterdir()) == [path]


def test_partial_download_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png.part").write_bytes(MINE)
    files.write_output(tmp_path / "a.png", lambda part: part.write_bytes(b"new"))
    assert (tmp_path / "a.png.part").read_bytes() == MINE


def test_output_not_writable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(MINE)
    for path, reason in ((tmp_path / "none" / "a.png", ".*: there is no folder"), (tmp_path / "file" / "a.png", "")):
        with pytest.raises(RunError, match=f"cannot write{reason}"):
            files.write_output(path, lambda part: part.write_bytes(b"new"))


def test_images_of_one_name_get_distinct_outputs() -> None:
    names = ["a/cat.jpg", "b/cat.jpg", "c/cat-2.jpg", "d/Cat.png", "e/caf\u00e9.png", "f/cafe\u0301.png", f"g/{'x' * 250}.png"]
    stems = list(explain_figure._stems([Path(name) for name in names]))
    assert stems[:3] == ["cat-explained", "cat-2-explained", "cat-2-2-explained"]
    assert stems[3] == "Cat-3-explained"
    assert stems[5] == "cafe\u0301-2-explained"
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert max(map(len, stems)) < 230
