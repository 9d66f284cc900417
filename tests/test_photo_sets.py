"""Imagenette, and cats and dogs, from tiny archives in their official layouts; hostile archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from proof.pictures import encoded, picture

from alexnet.data import photo_sets
from alexnet.data.decode import decode
from alexnet.data.download import MB
from alexnet.data.imagenet import imagenet_classes
from alexnet.data.photo_sets import SETS
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.data.unpack import unpack
from alexnet.errors import DataError
from official import Server, no_proxy, one_line, server, url

__all__ = ["no_proxy", "server"]  # fixtures


def photo(i: int) -> bytes:
    return encoded(picture(i % 2, i, (20, 16)), "JPEG")


IMAGENETTE = {
    "imagenette2-320/train/n01440764/ILSVRC2012_val_00000293.JPEG": photo(0),
    "imagenette2-320/train/n01440764/n01440764_10026.JPEG": photo(1),
    "imagenette2-320/train/n03888257/n03888257_1.JPEG": photo(2),
    "imagenette2-320/val/n03888257/n03888257_10.JPEG": photo(3),
    "imagenette2-320/val/n01440764/n01440764_9.JPEG": photo(4),
    "imagenette2-320/noisy_imagenette.csv": b"path,noisy_labels_0\n",
    "imagenette2-320/.DS_Store": b"x",
}
CATS_DOGS = {
    "PetImages/Cat/0.jpg": photo(0),
    "PetImages/Cat/666.jpg": b"",
    "PetImages/Cat/Thumbs.db": b"x",
    "PetImages/Dog/0.jpg": photo(1),
    "PetImages/Dog/12.jpg": photo(2),
    "readme[1].txt": b"x",
}


def tar(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in others:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], *others: zipfile.ZipInfo) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("PetImages")
        for name, content in files.items():
            archive.writestr(name, content)
        for member in others:
            archive.writestr(member, b"/etc/passwd")
    return buffer.getvalue()


ARCHIVES = {"imagenette": tar(IMAGENETTE), "cats-dogs": zipped(CATS_DOGS)}


@pytest.fixture
def archives(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small archives that the server offers and the table of datasets expects."""
    for name, content in ARCHIVES.items():
        its = SETS[name]
        server.files[f"/{name}"] = content
        digest = hashlib.sha256(content).hexdigest()
        source = its.source._replace(url=url(server, name), sha256=digest, size=len(content))
        monkeypatch.setitem(SETS, name, its._replace(source=source, photos=5 if name == "imagenette" else 4))
    return ARCHIVES


def content(table: Table) -> dict[str, tuple[str, str]]:
    labels = (table.labels[i] for i in table.targets)
    return dict(zip(table.images, zip(labels, map(str, table.splits), strict=True), strict=True))


def test_official_sources() -> None:
    for its in SETS.values():
        assert re.fullmatch("[0-9a-f]{64}", its.source.sha256)
        assert its.source.url.endswith(its.source.file)
        assert its.source.size < its.size
    assert SETS["imagenette"].source.size == 341_663_724
    assert SETS["cats-dogs"].source.size == 824_887_076
    assert (SETS["imagenette"].photos, SETS["cats-dogs"].photos) == (13_394, 25_000)


def test_imagenette_is_downloaded_and_unpacked(tmp_path: Path, archives: dict[str, bytes], server: Server) -> None:
    for _ in range(2):
        table = open_table("imagenette", tmp_path)
        assert table.name == "imagenette"
        assert table.labels == ("parachute", "tench")
        assert content(table) == {
            "train/n01440764/ILSVRC2012_val_00000293.JPEG": ("tench", "train"),
            "train/n01440764/n01440764_10026.JPEG": ("tench", "train"),
            "train/n03888257/n03888257_1.JPEG": ("parachute", "train"),
            "val/n01440764/n01440764_9.JPEG": ("tench", "val"),
            "val/n03888257/n03888257_10.JPEG": ("parachute", "val"),
        }
    assert server.ranges == [None], "it is downloaded once"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagenette2-320", "imagenette2-320.tgz"]
    assert sorted(path.name for path in (tmp_path / "imagenette2-320").iterdir()) == ["train", "val"]
    source = table.source(list(table.images).index("train/n01440764/n01440764_10026.JPEG"))
    assert isinstance(source, Path)
    np.testing.assert_array_equal(np.asarray(decode(source)), np.asarray(Image.open(io.BytesIO(photo(1)))))


def test_cats_dogs_are_downloaded_and_unpacked(
    tmp_path: Path, archives: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    table = open_table("cats-dogs", tmp_path)
    assert (table.name, table.labels) == ("cats-dogs", ("cat", "dog"))
    assert content(table) == {
        **{"Cat/0.jpg": ("cat", ""), "Cat/666.jpg": ("cat", "")},
        **{"Dog/0.jpg": ("dog", ""), "Dog/12.jpg": ("dog", "")},
    }
    assert "photos of" not in capsys.readouterr().err
    (tmp_path / "PetImages" / "Dog" / "12.jpg").unlink()
    assert len(open_table("cats-dogs", tmp_path)) == 3
    assert f"{tmp_path / 'PetImages'} has 3 of the 4 photos of cats-dogs" in capsys.readouterr().err


@pytest.mark.parametrize("name", SETS)
def test_local_copies_are_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_sets, "fetch_file", lambda *_: pytest.fail("downloads"))
    for folder in SETS[name].folders:
        root = tmp_path / f"of-{folder}"
        labels = SETS[name].labels or dict(list(imagenet_classes().items())[:2])
        for i, label in enumerate(list(labels)[:2]):
            file = root / folder / "train" / label / "1.jpg"
            file.parent.mkdir(parents=True)
            file.write_bytes(photo(i))
        named = tuple(sorted(list(labels.values())[:2]))
        assert open_table(name, root).labels == open_table(name, root / folder).labels == named
        monkeypatch.setenv("ALEXNET_DATA", str(root))
        assert open_table(name).labels == named


def test_a_folder_of_that_name_is_that_folder(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats-dogs").symlink_to(photos)
    assert open_table("cats-dogs").labels == ("across", "down")


def test_an_archive_put_there_by_hand_is_unpacked(tmp_path: Path, archives: dict[str, bytes], server: Server) -> None:
    (tmp_path / "kagglecatsanddogs_5340.zip").write_bytes(archives["cats-dogs"])
    assert len(open_table("cats-dogs", tmp_path)) == 4
    assert server.ranges == []
    (tmp_path / "imagenette2-320.tgz").write_bytes(archives["imagenette"][:-1])
    with pytest.raises(DataError, match=r"imagenette2-320\.tgz: damaged, or not http.*remove it") as error:
        open_table("imagenette", tmp_path)
    one_line(error)
    assert not (tmp_path / "imagenette2-320").exists()


def test_interrupted_download_is_resumed(tmp_path: Path, archives: dict[str, bytes], server: Server) -> None:
    server.cut = len(archives["imagenette"]) // 2
    with pytest.raises(DataError, match="repeat the command to resume it"):
        open_table("imagenette", tmp_path)
    part = (tmp_path / "imagenette2-320.tgz.part").stat().st_size
    server.cut = None
    assert len(open_table("imagenette", tmp_path)) == 5
    assert server.ranges == [None, f"bytes={part}-"]


def test_wrong_checksum_and_no_network_are_one_line(tmp_path: Path, archives: dict[str, bytes], server: Server) -> None:
    server.files["/cats-dogs"] = archives["cats-dogs"] + b"x" * (2 * MB)
    with pytest.raises(DataError, match="wrong checksum, so the file was removed") as error:
        open_table("cats-dogs", tmp_path)
    one_line(error)
    assert list(tmp_path.iterdir()) == []
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"Connection.*--data-root") as error:
        open_table("cats-dogs", tmp_path)
    assert url(server, "cats-dogs") in one_line(error)


def test_killed_unpacking_is_repeated(tmp_path: Path, archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alexnet.data.unpack.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            open_table("imagenette", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["imagenette2-320.tgz"]
    assert len(open_table("imagenette", tmp_path)) == 5


# Hostile archives, unpacked without their checksum


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def zip_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def zip_bomb(copies: int) -> bytes:
    return zipped({f"PetImages/Cat/{i}.jpg": bytes(200_000) for i in range(copies)})


def tar_bomb() -> bytes:
    return gzip.compress(tarfile.TarInfo("x").tobuf() * 2000)  # headers alone


LIMIT = 500_000  # bytes
ELSEWHERE = "is a link or leads out of the folder"
HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("imagenette", lambda: tar({"../evil.JPEG": b"x"}), ELSEWHERE),
    ("imagenette", lambda: tar({"imagenette2-320/train/n01440764/../../../../evil.JPEG": b"x"}), ELSEWHERE),
    ("imagenette", lambda: tar({"/evil.JPEG": b"x"}), ELSEWHERE),
    ("imagenette", lambda: tar({"c:/evil.JPEG": b"x"}), ELSEWHERE),
    ("imagenette", lambda: tar({"..\\evil.JPEG": b"x"}), ELSEWHERE),
    ("imagenette", lambda: tar({}, link("imagenette2-320/train/n01440764", "/etc")), ELSEWHERE),
    ("imagenette", lambda: tar(IMAGENETTE, link("imagenette2-320/train/n01440764/a.JPEG", "/etc/passwd")), ELSEWHERE),
    ("imagenette", lambda: tar({}, link("imagenette2-320/train/n01440764/a.JPEG", "/etc/passwd", tarfile.LNKTYPE)), ELSEWHERE),
    ("imagenette", lambda: tar({}, link("imagenette2-320/train/n01440764/a.JPEG", "", tarfile.FIFOTYPE)), ELSEWHERE),
    ("imagenette", lambda: tar({"imagenette2-320/train/n01440764/a.JPEG": bytes(600_000)}), "unpacks to more than 500,000 "),
    ("imagenette", lambda: tar({"imagenette2-320/other": bytes(MB)}), "unpacks to more than 1,000,000 "),
    ("imagenette", tar_bomb, "unpacks to more than 1,000,000 "),
    ("imagenette", lambda: tar(IMAGENETTE)[:-200], "cannot be unpacked"),
    ("imagenette", lambda: b"no archive", "cannot be unpacked"),
    ("imagenette", lambda: gzip.compress(b"no archive" * 100), "cannot be unpacked"),
    ("cats-dogs", lambda: zipped({"../evil.jpg": b"x"}), ELSEWHERE),
    ("cats-dogs", lambda: zipped({"PetImages/Cat/../../../evil.jpg": b"x"}), ELSEWHERE),
    ("cats-dogs", lambda: zipped({"/evil.jpg": b"x"}), ELSEWHERE),
    ("cats-dogs", lambda: zipped({}, zip_link("PetImages/Cat/1.jpg")), ELSEWHERE),
    ("cats-dogs", lambda: zip_bomb(3), "unpacks to more than 500,000 "),
    ("cats-dogs", lambda: zipped(CATS_DOGS)[:-40], "cannot be unpacked"),
    ("cats-dogs", lambda: zipped(CATS_DOGS).replace(b"PetImages/Dog/0.jpg", b"PetImages/Dog/1.jpg", 1), "cannot be unpacked"),
    ("cats-dogs", lambda: b"", "cannot be unpacked"),
]


@pytest.mark.parametrize(("name", "made", "message"), HOSTILE)
def test_hostile_archives_are_refused_and_nothing_is_left(
    tmp_path: Path, name: str, made: Callable[[], bytes], message: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    archive = root / SETS[name].source.file
    archive.write_bytes(made())
    with pytest.raises(DataError, match=message) as error:
        unpack(archive, root / "photos", SETS[name].members, LIMIT)
    one_line(error)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", archive.name]


def test_a_file_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    double = tarfile.TarInfo("imagenette2-320/val/n01440764/n01440764_9.JPEG")
    (tmp_path / "a.tgz").write_bytes(tar(IMAGENETTE, double))
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.tgz", tmp_path / "photos", SETS["imagenette"].members, LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]
