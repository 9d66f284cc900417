"""WebDataset shards: read as a dataset, and written from one."""

from __future__ import annotations

import io
import json
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
from alexnet.errors import DataError, RunError
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
    with pytest.raises(KeyboardInterrupt):
        alexnet.shard(dataset, tmp_path / "stopped", side=32)
    result = alexnet.shard(dataset, tmp_path / "stopped", side=32)
    assert len(calls) == 5  # three, and the third and fourth
    assert {one["image"] for one in result["skipped"]} == {"cat/damaged.jpg", "dog/damaged.jpg"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "stopped").iterdir()}
    with pytest.raises(RunError, match="or shards made otherwise"):
        alexnet.shard(dataset, tmp_path / "stopped", side=16)


def test_other_folders_are_not_touched(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds other files"):
        alexnet.shard(dataset, dataset)
    assert not list(dataset.glob("*.tar"))


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
