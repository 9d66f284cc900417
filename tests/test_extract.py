"""Features in files: the arrays of `Run.features` in every format, in bounded memory, the same after a stop."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from proof.pictures import picture
from scipy.io import loadmat

import alexnet
from alexnet import files
from alexnet.errors import AlexNetError, DataError, Interrupted, RunError, VariantError
from alexnet.extract import extract as extraction
from alexnet.extract import zarr_folder
from alexnet.inference.features import Features
from commands import Started, error, run
from conftest import mostly_long

LAYERS = ("relu5", "fc7")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 images, the 131st of which cannot be read; read-only."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(300):
        picture(i % 3, i, (16, 16)).save(folder / f"{i:03}.png")
    (folder / "130.png").write_bytes(b"no image")
    return folder


def read_all(path: Path) -> dict[str, Any]:
    """Return the arrays in a file, and the names as a list."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in (*LAYERS, "images")}
    elif path.suffix == ".mat":
        content = loadmat(path, squeeze_me=True)
    elif path.suffix == ".zarr":
        content = {name: array[:] for name, array in pytest.importorskip("zarr").open_group(path, mode="r").arrays()}
    else:
        with h5py.File(path) as file:
            content = {name: file[name][()] for name in LAYERS} | {"images": file["images"].asstr()[()]}
    return {**{name: content[name] for name in LAYERS}, "images": list(content["images"])}


@mostly_long("suffix", [".npz", ".h5", ".hdf5", ".mat", ".zarr"], ".npz", ".h5")
def test_each_format_holds_the_features(trained: alexnet.Run, many: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("zarr" if suffix == ".zarr" else "h5py")
    readable = [path for path in sorted(many.iterdir()) if path.stem != "130"]
    result = trained.extract(str(many), LAYERS, tmp_path / f"features{suffix}")
    content, expected = read_all(tmp_path / f"features{suffix}"), trained.features(readable, LAYERS)
    assert content["images"] == [str(path) for path in readable]
    for layer in LAYERS:
        assert content[layer].dtype == np.float32
        np.testing.assert_allclose(content[layer], expected[layer], rtol=1e-3, atol=1e-4)  # in other batches
        assert result["layers"][layer] == list(expected[layer].shape)
    assert (result["images"], [problem["image"] for problem in result["errors"]]) == (299, [str(many / "130.png")])
    assert {path.name for path in tmp_path.iterdir()} == {f"features{suffix}"}


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_stopped_extraction_goes_on_and_ends_with_the_same_bytes(
    trained: alexnet.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    trained.extract(str(many), LAYERS, tmp_path / "whole.npz")
    computed: list[int] = []

    def stopping(*arguments: Any) -> Iterator[Features]:
        for batch in stream(*arguments):
            if len(computed) == stop_after:
                raise KeyboardInterrupt
            computed.append(len(batch.images))
            yield batch

    stream = extraction.stream_features
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "stream_features", stopping)
        with pytest.raises(Interrupted, match=rf"{min(300, 128 * stop_after)} of 300 images done: the same command goes on"):
            trained.extract(str(many), LAYERS, tmp_path / "part.npz")
    assert not (tmp_path / "part.npz").exists()
    if stop_after:
        with (tmp_path / "part.npz.partial" / "fc7.f32").open("ab") as file:
            file.write(b"half of a batch")
    rest: list[int] = []

    def counting(*arguments: Any) -> Iterator[Features]:
        for batch in stream(*arguments):
            rest.append(len(batch.images))
            yield batch

    monkeypatch.setattr(extraction, "stream_features", counting)
    trained.extract(str(many), LAYERS, tmp_path / "part.npz")
    assert computed + rest == [128, 127, 44]
    whole, part = (read_all(tmp_path / name) for name in ("whole.npz", "part.npz"))
    assert part["images"] == whole["images"]
    for layer in LAYERS:
        np.testing.assert_array_equal(part[layer], whole[layer])


def test_another_extraction_does_not_go_on_from_a_stopped_one(
    trained: alexnet.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*arguments: Any) -> Iterator[Features]:
        yield next(stream(*arguments))
        raise KeyboardInterrupt

    stream = extraction.stream_features
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "stream_features", stopping)
        with pytest.raises(Interrupted):
            trained.extract(str(many), LAYERS, tmp_path / "a.npz")
    trained.extract(str(many), LAYERS, tmp_path / "a.npz", maps="mean")
    np.testing.assert_allclose(
        read_all(tmp_path / "a.npz")["relu5"],
        trained.features(readable(many), "relu5")["relu5"].mean((2, 3)),
        rtol=1e-3,
        atol=1e-4,
    )


def readable(folder: Path) -> list[Path]:
    """Return the images of `many` that can be read."""
    return [path for path in sorted(folder.iterdir()) if path.stem != "130"]


@pytest.mark.parametrize(("maps", "shape"), [("keep", None), ("mean", (5, -1)), ("max", (5, -1)), ("flat", (5, -1))])
def test_maps_are_reduced(trained: alexnet.Run, many: Path, tmp_path: Path, maps: Any, shape: tuple[int, int] | None) -> None:
    paths = readable(many)[:5]
    trained.extract(paths, LAYERS, tmp_path / "f.npz", maps)
    expected = trained.features(paths, LAYERS)
    reduced = {
        "keep": expected["relu5"],
        "mean": expected["relu5"].astype(np.float64).sum((2, 3)) / expected["relu5"][0, 0].size,
        "max": expected["relu5"].transpose(0, 2, 3, 1).reshape(5, -1, expected["relu5"].shape[1]).max(1),
        "flat": expected["relu5"].reshape(5, -1),
    }
    content = read_all(tmp_path / "f.npz")
    np.testing.assert_allclose(content["relu5"], reduced[maps], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(content["fc7"], expected["fc7"])


def test_files_of_others_stay_and_own_ones_are_replaced(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    paths = readable(many)[:2]
    for suffix in (".npz", ".h5", ".mat"):
        path = tmp_path / f"f{suffix}"
        path.write_bytes(b"mine")
        with pytest.raises(RunError, match="was not made by alexnet"):
            trained.extract(paths, "fc7", path)
        assert path.read_bytes() == b"mine"
        trained.extract(paths, "fc7", path, overwrite=True)
        trained.extract(paths, "fc7", path)


def test_a_zarr_store_in_parts(trained: alexnet.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has a few images; a stop while the store is written loses nothing, and leaves nothing behind."""
    zarr = pytest.importorskip("zarr")
    path, paths = tmp_path / "f.zarr", readable(many)[:9]
    with monkeypatch.context() as patch:
        patch.setattr(zarr_folder, "CHUNK", 4 * 4 * trained.features(paths[:1])["fc7"].size)
        patch.setattr(zarr_folder, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained.extract(paths, "fc7", path)
        assert {left.name for left in tmp_path.iterdir()} == {"f.zarr.partial"}
        patch.setattr(zarr_folder, "rename", files.rename)
        trained.extract(paths, "fc7", path)
    group = zarr.open_group(path, mode="r")
    assert group["fc7"].chunks[0] == 4
    np.testing.assert_array_equal(group["fc7"][:], trained.features(paths)["fc7"])
    assert group.attrs["made_by"] == "alexnet"
    result = trained.extract(paths[:3], LAYERS, path)
    assert result["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert zarr.open_group(path, mode="r")["fc7"].shape[0] == 3, "its own folder is replaced"
    assert {left.name for left in tmp_path.iterdir()} == {"f.zarr"}


@pytest.mark.parametrize("content", ["notes.txt", "zarr.json", ""])
def test_no_folder_of_someone_else_becomes_a_zarr_store(trained: alexnet.Run, many: Path, tmp_path: Path, content: str) -> None:
    path, paths = tmp_path / "f.zarr", readable(many)[:2]
    path.mkdir()
    if content:
        (path / content).write_text('{"attributes": {}}')
    for overwrite in (False, True):
        with pytest.raises(RunError, match="was not made by alexnet: give another name"):
            trained.extract(paths, "fc7", path, overwrite=overwrite)
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    with pytest.raises(RunError, match="was not made by alexnet"):
        trained.extract(paths, "fc7", link)
    assert [left.name for left in path.iterdir()] == ([content] if content else [])


def test_without_zarr_the_error_says_what_to_install(
    trained: alexnet.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(AlexNetError, match=r"writing \.zarr needs zarr: pip install 'zarr>=3.1'"):
        trained.extract(readable(many)[:2], "fc7", tmp_path / "f.zarr")
    (tmp_path / "g.zarr").mkdir()
    assert "needs zarr: pip install 'zarr>=3.1'" in error("similarity", tmp_path / "g.zarr")


def test_images_that_cannot_be_read_leave_no_gap(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    bad = [tmp_path / f"{i}.png" for i in range(130)]
    for path in bad:
        path.write_bytes(b"no image")
    for maps in ("keep", "mean", "max", "flat"):
        result = trained.extract([*bad, *readable(many)[:3]], LAYERS, tmp_path / "f.npz", maps)
        assert (result["images"], len(result["errors"])) == (3, 130)


def test_names_that_are_not_utf8(trained: alexnet.Run, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    picture(0, 1).save(path)
    for suffix in (".npz", ".h5", ".mat"):
        assert trained.extract([path], LAYERS, tmp_path / f"f{suffix}")["images"] == 1


def test_a_folder_of_someone_else_stays(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "f.npz.partial"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"f\.npz\.partial holds notes\.txt, which is not ours"):
        trained.extract(readable(many)[:2], "fc7", tmp_path / "f.npz")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_extract_errors_are_one_line(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    with pytest.raises(VariantError, match="no layer 'fc9'"):
        trained.extract(readable(many)[:2], ["fc9"], out)
    with pytest.raises(DataError, match=r"ends in \.npz, \.h5"):
        trained.extract(readable(many)[:2], "fc7", tmp_path / "f.csv")
    with pytest.raises(DataError, match="use stream_features"):
        trained.extract([np.zeros((8, 8, 3), np.uint8)], "fc7", out)
    with pytest.raises(DataError, match=r"none of 1 image can be read, such as .*130\.png"):
        trained.extract([many / "130.png"], "fc7", out)
    assert not list(tmp_path.glob("f.npz*"))
    assert "folder" in error("features", trained.path, many, "--layers", "fc7", "--out", tmp_path / "none" / "f.npz")


def test_features_command(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    given = ("features", trained.path, *readable(many)[:3], "--layers", "relu5, fc7", "--out", tmp_path / "f.h5")
    result = json.loads(run(*given, "--json").stdout)
    assert result["images"] == 3
    assert result["bytes"] == (tmp_path / "f.h5").stat().st_size
    assert "fc7" in run(*given).stdout
    failed = run("features", trained.path, many, "--layers", "fc7", "--out", tmp_path / "g.npz", code=1)
    assert "left out" in failed.stdout
    assert len(read_layer(tmp_path / "g.npz")) == 299


def read_layer(path: Path) -> np.ndarray:
    """Return the array of `fc7`."""
    with np.load(path) as archive:
        return np.asarray(archive["fc7"])


def test_a_zarr_store_that_the_user_added_to_is_kept(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    trained.extract(photos, "fc7", tmp_path / "f.zarr")
    trained.extract(photos, "fc7", tmp_path / "f.zarr")  # ours alone: replaced
    zarr.open_group(tmp_path / "f.zarr", mode="a").create_array("rdm", shape=(2,), dtype="float32")
    with pytest.raises(RunError, match="was not made by alexnet"):
        trained.extract(photos, "fc7", tmp_path / "f.zarr", overwrite=True)
    assert (tmp_path / "f.zarr" / "rdm").is_dir()


def extract_and_die(path: str, folder: str, out: str) -> None:
    """Extract features, and die before the second of three batches is on disk; for a separate process."""
    add, calls = extraction._Store.add, 0

    def dying(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *arguments)

    extraction._Store.add = dying  # type: ignore[method-assign]
    alexnet.load(path).extract(folder, LAYERS, out)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL needs POSIX")
def test_a_killed_extraction_goes_on(trained: alexnet.Run, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.h5"
    Started(tmp_path / "said", extract_and_die, trained.path, many, out).end(-signal.SIGKILL)
    assert not out.exists()
    assert json.loads((tmp_path / "part.h5.partial" / "state.json").read_text())["done"] == 128
    trained.extract(str(many), LAYERS, out)
    trained.extract(str(many), LAYERS, tmp_path / "whole.h5")
    with h5py.File(out) as part, h5py.File(tmp_path / "whole.h5") as whole:
        for name in (*LAYERS, "images"):
            np.testing.assert_array_equal(part[name][()], whole[name][()])
