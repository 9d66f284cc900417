"""WebDataset shards: read as a dataset, and written from one."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from proof.pictures import encoded, picture

import alexnet
from alexnet.data import pack
from alexnet.data.cache import open_cache
from alexnet.data.decode import decode
from alexnet.data.shards import is_shards
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError, Interrupted, RunError
from alexnet.recipe import Data, Preprocessing
from commands import run

PHOTO = {i: encoded(picture(i % 2, i, (20 + i, 16)), "JPEG") for i in range(8)}
Sample = dict[str, bytes]


def tar(samples: dict[str, Sample]) -> bytes:
    """An archive of samples: their files by ending, under their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, files in samples.items():
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sample(i: int, **more: bytes) -> Sample:
    return {"jpg": PHOTO[i], **(more or {"cls": str(i % 2).encode()})}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def content(table: Table) -> list[tuple[str, str, str, bytes]]:
    rows = zip(table.images, table.targets, table.splits, table.sources(), strict=True)
    return [(name, table.labels[target], str(split), bytes(source)) for name, target, split, source in rows]  # type: ignore[arg-type]  # bytes


def test_a_folder_of_shards(tmp_path: Path) -> None:
    shards = {
        "train-000000.tar": tar({"0000": sample(0), "0001": sample(1)}),
        "train-000001.tar": tar({"a/b/0000": sample(2), "a/b/0001": sample(3)}),
        "val-000000.tar": tar({"0000": sample(4), "0001": sample(5)}),
        "labels.txt": b"cat\ndog\n",
    }
    table = open_table(write(tmp_path / "pets", shards))
    assert content(table) == [
        ("train-000000/0000.jpg", "cat", "train", PHOTO[0]),
        ("train-000000/0001.jpg", "dog", "train", PHOTO[1]),
        ("train-000001/a/b/0000.jpg", "cat", "train", PHOTO[2]),
        ("train-000001/a/b/0001.jpg", "dog", "train", PHOTO[3]),
        ("val-000000/0000.jpg", "cat", "val", PHOTO[4]),
        ("val-000000/0001.jpg", "dog", "val", PHOTO[5]),
    ]
    assert table.name == "pets"
    assert table.skipped == ()


def test_a_range_and_a_single_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {f"photos-{i:03}.tar": tar({"0": sample(i), "1": sample(i + 1)}) for i in range(4)}
    write(tmp_path, shards | {"other.tar": tar({"0": sample(7), "1": sample(6)})})
    names = [name for name, *_ in content(open_table(tmp_path / "photos-{001..002}.tar"))]
    assert names == ["photos-001/0.jpg", "photos-001/1.jpg", "photos-002/0.jpg", "photos-002/1.jpg"]
    assert len(open_table(tmp_path / "other.tar")) == 2
    assert not capsys.readouterr().err
    table = open_table(tmp_path / "photos-{002..005}.tar")
    assert len(table) == 4
    assert [tuple(one) for one in table.skipped] == [(f"photos-00{i}.tar", "no such file") for i in (4, 5)]
    assert "2 shards of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "settings", "labels"),
    [
        ([{"cls": b"0"}, {"cls": b"1"}], {}, ["0", "1"]),
        ([{"cls": b"cat\n"}, {"cls": "Käfer".encode()}], {}, ["cat", "Käfer"]),
        ([{"json": b'{"label": "cat"}'}, {"json": b'{"label": 3}'}], {}, ["cat", "3"]),
        (
            [{"json": b'{"label": 1, "breed": "pug"}'}, {"json": b'{"breed": "tabby"}'}],
            {"label_column": "breed"},
            ["pug", "tabby"],
        ),
        ([{"txt": b"a pug"}, {"txt": b"a tabby"}], {"label_column": "txt"}, ["a pug", "a tabby"]),
        ([{"cls": b"0", "json": b"{"}, {"cls": b"1", "seg.png": b"x"}], {}, ["0", "1"]),
    ],
)
def test_labels(files: list[Sample], settings: dict[str, Any], labels: list[str], tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar({str(i): sample(i, **more) for i, more in enumerate(files)})})
    table = open_table(tmp_path, settings=Data(**settings))
    assert [table.labels[target] for target in table.targets] == labels


def test_samples_that_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"0": sample(0), "1": sample(1), "2": {"cls": b"0"}, "3": {"jpg": PHOTO[3]}, "4": sample(4, json=b"[1]")}
    first = tar(samples)
    shards = {"a.tar": first, "b.tar": first[:1024], "c.tar": tar({"0": sample(5)})[:700], "d.tar": b"", "e.tar": b"x" * 2000}
    table = open_table(write(tmp_path, shards))
    assert [name for name, *_ in content(table)] == ["a/0.jpg", "a/1.jpg"]
    why = {one.image: one.reason for one in table.skipped}
    assert why == {
        "a/2": "no image",
        "a/3.jpg": "no label",
        "a/4.jpg": "no label",
        **dict.fromkeys(("b.tar", "c.tar", "d.tar", "e.tar"), "cut off, or not a tar archive"),
    }


def test_one_image_for_each_name(tmp_path: Path) -> None:
    """A mask beside the photo, whose ending has two parts, is not the image; of two photos, none is chosen."""
    samples = {"0": {**sample(0), "seg.png": PHOTO[1]}, "1": sample(1), "2": {**sample(2), "png": PHOTO[3]}}
    table = open_table(write(tmp_path, {"a.tar": tar(samples)}))
    assert [(name, source) for name, _, _, source in content(table)] == [("a/0.jpg", PHOTO[0]), ("a/1.jpg", PHOTO[1])]
    assert [one.reason for one in table.skipped] == ["several images: jpg, png"]


@pytest.mark.parametrize("damage", ["cut at a header", "damaged header", "joined", "cut at the end"])
def test_what_tarfile_takes_for_the_end(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tar({f"{i}": sample(i) for i in range(6)})
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        third = archive.getmembers()[6].offset
    broken = {
        "cut at a header": whole[: third + 100],
        "damaged header": whole[:third] + b"x" * 512 + whole[third + 512 :],
        "joined": whole[:third] + bytes(1024) + whole,
        "cut at the end": whole[:third],
    }
    table = open_table(write(tmp_path, {"a.tar": broken[damage]}))
    assert len(table) == 2  # the last one before the damage may lack its label
    assert [one.image for one in table.skipped] == ["a.tar"]
    assert "is cut off, or not a tar archive" in capsys.readouterr().err


def test_long_labels_stay_apart(tmp_path: Path) -> None:
    labels = [f"Common bottlenose dolphin {'x' * 100}{letter}{'y' * 100}" for letter in "ab"]
    samples = {str(i): sample(i, json=json.dumps({"label": label}).encode()) for i, label in enumerate(labels)}
    assert list(open_table(write(tmp_path, {"a.tar": tar(samples)})).labels) == labels


def test_photos_beside_an_archive(tmp_path: Path) -> None:
    photos = {f"{label}.{i}.jpg": PHOTO[i] for label in ("cat", "dog") for i in range(3)}
    assert len(open_table(write(tmp_path, {**photos, "backup.tar": tar({"0": sample(0)})}))) == 6


def test_shards_of_the_same_name(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"part{number}", {"shard.tar": tar({"0": sample(2 * number), "1": sample(2 * number + 1)})})
    table = open_table(f"{tmp_path}/part{{0..1}}/shard.tar")
    assert [source for *_, source in content(table)] == [PHOTO[i] for i in range(4)]


def test_a_shard_replaced_after_it_was_listed(tmp_path: Path) -> None:
    table = open_table(write(tmp_path, {"a.tar": tar({"0": sample(0), "1": sample(1)})}))
    table.fact(0)
    os.utime(tmp_path / "a.tar", (1, 1))
    with pytest.raises(DataError, match="has changed since it was listed"):
        table.source(0)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"a.tar": tar({"0": {"jpg": PHOTO[0]}})}, "has no images with labels: a WebDataset shard has"),
        (
            {"train-0.tar": tar({"0": sample(0)}), "val-0.tar": tar({"1": sample(1)}), "more.tar": b""},
            "has 'more.tar', which is not",
        ),
    ],
)
def test_refused(shards: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_table(write(tmp_path, shards))


def test_what_is_not_shards(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "cat", {"1.jpg": PHOTO[0]})
    write(tmp_path / "photos", {"a.tar": tar({"0": sample(0)})})
    assert not is_shards(str(tmp_path / "photos"))
    assert not is_shards(str(tmp_path / "nothing.tar"))
    with pytest.raises(DataError, match="no such folder or file"):
        open_table(tmp_path / "nothing.tar")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Class folders of pictures of several kinds and sizes, two of which cannot be read."""
    for c, label in enumerate(("cat", "dog")):
        kinds = {
            "small.jpg": encoded(picture(c, 1, (24, 20)), "JPEG"),
            "small.png": encoded(picture(c, 2, (20, 24)), "PNG"),
            "large.jpg": encoded(picture(c, 3, (90, 60)), "JPEG", quality=95),
            "large.png": encoded(picture(c, 4, (60, 61)), "PNG"),
            "turned.jpg": encoded(picture(c, 5, (28, 20)), "JPEG", exif=turned()),
            "damaged.jpg": b"\xff\xd8\xff" + bytes(50),
        }
        write(tmp_path / "photos" / label, kinds)
    return tmp_path / "photos"


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def pixels(table: Table) -> list[tuple[str, bytes]]:
    """The label and the pixels of each image, sorted."""
    return sorted(
        (table.labels[target], str((image := decode(source)).size).encode() + image.tobytes())  # type: ignore[arg-type]
        for target, source in zip(table.targets, table.sources(), strict=True)
        if source is not None
    )


def readable(table: Table) -> Table:
    return table.select(open_cache(table, Preprocessing(cache_size=8, input=8), 1).rows)


def test_raw_shards_have_the_same_images(dataset: Path, tmp_path: Path) -> None:
    result = alexnet.shard(dataset, tmp_path / "shards", side=None)
    assert result["images"] == 10
    assert sorted(one["image"] for one in result["skipped"]) == ["cat/damaged.jpg", "dog/damaged.jpg"]
    assert pixels(open_table(tmp_path / "shards")) == pixels(readable(open_table(dataset)))


def test_scaled_shards(dataset: Path, tmp_path: Path) -> None:
    """Images that are no larger than `side` keep their pixels; others are what Pillow makes of them."""
    alexnet.shard(dataset, tmp_path / "shards", side=32, quality=95)
    before, after = readable(open_table(dataset)), open_table(tmp_path / "shards")
    kept = [pair for pair in pixels(before) if pair in pixels(after)]
    assert len(kept) == 6  # of each class, two small ones, and the one that was turned
    sizes = sorted(decode(source).size for source in after.sources())  # type: ignore[arg-type]
    assert sizes == sorted([(24, 20), (20, 24), (48, 32), (32, 33), (20, 28)] * 2)
    for index, source in enumerate(after.sources()):
        image = decode(source)  # type: ignore[arg-type]
        if image.size == (48, 32):
            original = decode(dataset / after.labels[after.targets[index]] / "large.jpg")
            wanted = encoded(original.resize((48, 32), Image.Resampling.BICUBIC, reducing_gap=2.0), "JPEG", quality=95)
            assert source == wanted


def test_splits_and_counterexamples_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label in ("cat", "dog", "none"):
            files = {f"{i}.jpg": encoded(picture(len(label) % 2, i, (20, 16)), "JPEG") for i in range(count)}
            write(tmp_path / "photos" / split / label, files)
    alexnet.shard(tmp_path / "photos", tmp_path / "shards")
    before, after = open_table(tmp_path / "photos"), open_table(tmp_path / "shards")
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == [
        f"{split}-000000.tar" for split in ("test", "train", "val")
    ]
    assert after.labels == before.labels == ("cat", "dog")
    assert after.counts() == before.counts()
    assert after.unknown is not None
    assert before.unknown is not None
    assert after.unknown.counts() == before.unknown.counts()


def test_a_stopped_call_goes_on_and_gives_the_same(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "MOST", 3)
    alexnet.shard(dataset, tmp_path / "whole", side=32)
    original, calls = pack._write, list[Path]()

    def stop(entries: Any, path: Path, *rest: Any) -> Any:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(entries, path, *rest)

    monkeypatch.setattr(pack, "_write", stop)
    with pytest.raises(Interrupted, match="stopped, 2 of 4 shards written: the same command goes on"):
        alexnet.shard(dataset, tmp_path / "stopped", side=32)
    result = alexnet.shard(dataset, tmp_path / "stopped", side=32)
    assert len(calls) == 5  # three, and the third and fourth
    assert {one["image"] for one in result["skipped"]} == {"cat/damaged.jpg", "dog/damaged.jpg"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "stopped").iterdir()}
    with pytest.raises(RunError, match="or shards made otherwise"):
        alexnet.shard(dataset, tmp_path / "stopped", side=16)


def test_other_folders_are_not_touched(dataset: Path) -> None:
    (dataset / "film.mkv.part").write_bytes(b"x")
    os.utime(dataset / "film.mkv.part", (1, 1))
    before = sorted(dataset.rglob("*"))
    with pytest.raises(RunError, match="holds other files"):
        alexnet.shard(dataset, dataset)
    assert sorted(dataset.rglob("*")) == before


def test_changed_photos_are_other_photos(dataset: Path, tmp_path: Path) -> None:
    alexnet.shard(dataset, tmp_path / "shards")
    (dataset / "cat" / "small.png").write_bytes(encoded(picture(1, 7, (20, 24)), "PNG"))
    with pytest.raises(RunError, match="or shards made otherwise"):
        alexnet.shard(dataset, tmp_path / "shards")


def test_a_lost_shard_is_written_again(dataset: Path, tmp_path: Path) -> None:
    result = alexnet.shard(dataset, tmp_path / "shards")
    [shard] = (tmp_path / "shards").glob("*.tar")
    content = shard.read_bytes()
    shard.unlink()
    assert alexnet.shard(dataset, tmp_path / "shards") == result
    assert shard.read_bytes() == content


@pytest.mark.parametrize("labels", [("1 cat", "2 dog", "3 cow"), ("a\u2028b", "c"), ("0: a", "1: b"), ("0", "1"), ("7", "12")])
def test_any_label_is_read_back(labels: tuple[str, ...], tmp_path: Path) -> None:
    for i, label in enumerate(labels):
        write(tmp_path / "photos" / label, {"0.jpg": PHOTO[i], "1.jpg": PHOTO[i + 3]})
    if len(labels) == 3:  # a class without a readable image is not in the shards
        write(tmp_path / "photos" / labels[0], {"0.jpg": b"\xff\xd8\xff", "1.jpg": b"\xff\xd8\xff"})
    alexnet.shard(tmp_path / "photos", tmp_path / "shards", side=None)
    before, after = readable(open_table(tmp_path / "photos")), open_table(tmp_path / "shards")
    assert pixels(after) == pixels(before)


def test_groups_need_splits(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{'cat' if i % 2 else 'dog'},film{i // 2}" for i in range(8)]
    write(tmp_path, {f"{i}.jpg": PHOTO[i] for i in range(8)} | {"all.csv": "\n".join(["image,label,group", *rows]).encode()})
    with pytest.raises(DataError, match="has groups, which shards cannot keep together"):
        alexnet.shard(tmp_path / "all.csv", tmp_path / "shards")


def test_command(dataset: Path, tmp_path: Path) -> None:
    done = run("data", "shard", dataset, "--out", tmp_path / "shards", "--json")
    assert json.loads(done.stdout)["images"] == 10
    again = run("data", "shard", dataset, "--out", tmp_path / "shards")
    assert "10 images in 1 shard in" in again.stdout
