"""Nearest images equal those of brute force, while the index grows, is interrupted or gets damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from proof.pictures import picture

import alexnet
from alexnet.cli import main
from alexnet.errors import AlexNetError, DataError, RunError, shell_quote
from alexnet.inference import features
from alexnet.search import hashing, index, search
from alexnet.search.contact_sheet import APART, GAP, LABEL, MISSING, SIDE
from alexnet.search.index import BINARY, CATALOGUE, CODER, CODES, Index, open_index
from conftest import damaged, in_float32, mostly_long

BITS = 64
Answers = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Process few images at a time, and learn short codes from few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "BATCH", 8)
        patch.setattr(search, "BATCHES", 2)
        patch.setattr(search, "CHUNK", 10_000)
        patch.setattr(index, "ENCODED", 16)
        patch.setattr(hashing, "MIN_CODES", 24)
        patch.setattr(hashing, "STEPS", 40)
        yield


@pytest.fixture(scope="module")
def run(trained: alexnet.Run) -> alexnet.Run:
    """The trained run in float32, so that an image's code does not depend on the rest of its batch."""
    return in_float32(trained)


@pytest.fixture(scope="module")
def whole(run: alexnet.Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `photos`; read-only."""
    place = tmp_path_factory.mktemp("index") / "whole"
    assert run.index(photos, place, BITS) == {"index": str(place), "images": 40, "added": 40, "bits": BITS, "skipped": []}
    return place


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes a fresh copy of the index, to be damaged."""
    return lambda: Path(shutil.copytree(whole, tmp_path / f"index{len(list(tmp_path.iterdir()))}"))


def brute_force(run: alexnet.Run, folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the images of a folder and their pairwise distances, in float64."""
    paths = sorted(folder.rglob("*.png"))
    x = run.features(paths, ["relu7"])["relu7"].astype(np.float64)
    return [str(path) for path in paths], np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))


def assert_nearest(answers: Answers, names: list[str], between: np.ndarray, top: int, tolerance: float) -> None:
    """For each image of `names`, the neighbours and distances are those of brute force, the image itself left out."""
    assert [answer["image"] for answer in answers] == names
    for row, answer in enumerate(answers):
        near = [n["image"] for n in answer["neighbours"]]
        assert len({*near} - {names[row]}) == top
        best = np.sort(np.delete(between[row], row))[:top]
        close = {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(distances([answer]), best, **close)
        np.testing.assert_allclose([between[row, names.index(image)] for image in near], best, **close)


def distances(answers: Answers) -> list[float]:
    return [near["distance"] for answer in answers for near in answer["neighbours"]]


def refused(call: Callable[[], Any], match: str, kind: type[AlexNetError] = RunError) -> None:
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_neighbours_are_those_of_brute_force_in_float64(run: alexnet.Run, photos: Path, whole: Path) -> None:
    for top in (1, 7, 39):
        assert_nearest(run.search(photos, top, index=whole), *brute_force(run, photos), top, 1e-3)
    assert len(distances(run.search(photos / "down" / "000.png", 100, index=whole))) == 39, "all there are"
    (near,) = run.search([np.asarray(picture(1, 100))], 1, index=whole)
    assert near["image"] == "array"
    assert near["neighbours"][0]["image"] == str(photos / "down" / "000.png"), "pixels are no image of the index"
    assert distances([near])[0] < 1e-2


def test_short_codes_are_searched_by_the_bits_that_differ(run: alexnet.Run, photos: Path, whole: Path) -> None:
    opened, names = open_index(whole, run.config.sha256), sorted(photos.rglob("*.png"))
    coder, x = opened.coder, run.features(names, ["relu7"])["relu7"]
    assert coder is not None
    short = opened.short_codes
    assert np.array_equal(coder.encode(x), short)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    hidden = unit @ coder.weight.numpy().T.astype(np.float64) - coder.threshold.numpy()
    sure = np.abs(hidden) > 1e-6
    assert np.array_equal(np.unpackbits(short, axis=1)[sure], (hidden > 0)[sure])
    hamming = np.unpackbits(short[:, None] ^ short[None], axis=2).sum(2)
    assert_nearest(run.search(photos, 7, binary=True, index=whole), [str(n) for n in names], hamming.astype(float), 7, 0)


def test_an_index_grows_by_what_is_new_and_recodes_nothing_else(
    run: alexnet.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other, place, coded = tmp_path / "mine", tmp_path / "other", tmp_path / "index", list[Path]()
    shutil.copytree(photos, mine)
    run.index(mine, place, BITS)
    monkeypatch.setattr(search, "track", lambda images, *_: (coded.append(image) or image for image in images))
    assert (run.index(mine, place)["added"], coded) == (0, [])
    (mine / "down" / "000.png").unlink()
    picture(2, 1).save(mine / "down" / "001.png")  # changed
    (mine / "new").mkdir()
    for i in range(10):
        picture(2, i + 2).save(mine / "new" / f"{i}.png")
    found = run.index(mine, place)
    assert (found["images"], found["added"], found["bits"]) == (49, 11, BITS)
    assert sorted(coded) == [mine / "down" / "001.png", *(mine / "new" / f"{i}.png" for i in range(10))]
    assert_nearest(run.search(mine, 20, index=place), *brute_force(run, mine), 20, 1e-3)
    coded.clear()
    shutil.copytree(photos / "across", other)
    assert (run.index(other, place)["images"], len(coded)) == (69, 20), "the first folder's stay"
    near = run.search(other / "003.png", 1, index=place)[0]["neighbours"][0]
    assert near["image"] == str(mine / "across" / "003.png"), "a copy is a neighbour, the image itself is not"
    assert near["distance"] < 1e-2
    assert distances(run.search(other / "003.png", 1, binary=True, index=place))[0] <= 1
    shutil.rmtree(mine)
    mine.mkdir()
    assert run.index(mine, place)["images"] == 20
    assert all(len(distances(run.search(other, 100, binary=binary, index=place))) == 20 * 19 for binary in (False, True))
    assert {path.name for path in place.iterdir()} == {CATALOGUE, CODES, BINARY, CODER, search.LOCK}


def test_an_open_index_answers_while_images_are_added(
    run: alexnet.Run, photos: Path, copied: Callable[[], Path], tmp_path: Path
) -> None:
    place, extra = copied(), tmp_path / "extra"
    before = open_index(place, run.config.sha256)
    extra.mkdir()
    picture(2, 1).save(extra / "another.png")
    run.index(extra, place)
    assert (len(before.codes), len(before.short_codes)) == (40, 40)
    assert len(open_index(place, run.config.sha256).alive) == 41


def test_too_few_images_for_short_codes_are_searched_exactly(
    run: alexnet.Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "index"
    assert run.index(photos / "down", place)["bits"] is None
    assert capsys.readouterr().err == "20 images, too few to learn short codes (24 needed): exact search only\n"
    assert len(distances(run.search(photos / "across" / "000.png", 5, index=place))) == 5
    refused(lambda: run.search(photos, 5, binary=True, index=place), "no short codes of 20 images: add images until")
    assert run.index(photos / "across", place, BITS)["bits"] == BITS
    assert run.search(photos, 5, binary=True, index=place)


@pytest.mark.parametrize("after", [False, True])
@mostly_long("moment", range(9), 4)
def test_an_index_stopped_at_any_moment_goes_on_to_the_same_answers(
    run: alexnet.Run, photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, after: bool
) -> None:
    """Fail before and after each file: three times codes, search.json; then a coder, short codes, search.json."""
    write, append, turns = index.write, Index._append, iter(range(10))

    def stopping(call: Callable[..., Any], *arguments: Any) -> Any:
        turn = next(turns)
        if turn == moment and not after:
            raise KeyboardInterrupt
        value = call(*arguments)
        if turn == moment:
            raise KeyboardInterrupt
        return value

    with monkeypatch.context() as patch:
        patch.setattr(index, "write", lambda *arguments: stopping(write, *arguments))
        patch.setattr(Index, "_append", lambda *arguments: stopping(append, *arguments))
        with pytest.raises(KeyboardInterrupt):
            run.index(photos, tmp_path / "index", BITS)
    found = run.index(photos, tmp_path / "index", BITS)
    done = min(40, 16 * ((moment + after) // 2))
    assert (found["images"], found["added"], found["bits"]) == (40, 40 - done, BITS), "what was done stays done"
    for binary in (False, True):
        ours, expected = (run.search(photos, 5, binary=binary, index=place) for place in (tmp_path / "index", whole))
        np.testing.assert_allclose(distances(ours), distances(expected), atol=1e-3)


@pytest.mark.parametrize("name", [CODES, BINARY])
def test_rows_of_an_interrupted_append_do_not_count(
    run: alexnet.Run, photos: Path, copied: Callable[[], Path], tmp_path: Path, name: str
) -> None:
    place, extra = copied(), Path(shutil.copytree(photos / "down", tmp_path / "extra"))
    with (place / name).open("ab") as file:
        file.write(b"\xff" * 100_001)
    assert len(distances(run.search(extra / "000.png", 100, binary=name == BINARY, index=place))) == 40
    assert run.index(extra, place)["images"] == 60
    assert distances(run.search(extra / "000.png", 1, binary=name == BINARY, index=place))[0] <= 1


def test_a_full_disk_is_one_line_and_loses_nothing(
    run: alexnet.Run, photos: Path, copied: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, extra = copied(), Path(shutil.copytree(photos / "down", tmp_path / "extra"))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            refused(lambda: run.index(extra, place), f"cannot write .*{CODES}: No space left")
        for binary in (False, True):
            assert len(distances(run.search(extra / "000.png", 100, binary=binary, index=place))) == 40
    assert run.index(extra, place)["added"] == 20
    assert distances(run.search(extra / "000.png", 1, binary=True, index=place))[0] <= 1


@mostly_long("name", [CODES, BINARY, CODER, CATALOGUE], CODES, CATALOGUE)
def test_a_damaged_file_is_one_line_or_the_same_answer(
    run: alexnet.Run, photos: Path, whole: Path, copied: Callable[[], Path], name: str, tmp_path: Path
) -> None:
    """Names are an exception: a flipped letter in search.json names another file."""
    query = Path(shutil.copy(photos / "down" / "007.png", tmp_path / "query.png"))  # one that the index does not name
    generator, lines = random.Random(0), list[str]()
    expected = [distances(run.search(query, 9, binary=binary, index=whole)) for binary in (False, True)]
    for attempt in range(30):
        victim = copied() / name
        victim.write_bytes(damaged(victim.read_bytes(), generator, cut=attempt % 3 == 0))
        for binary in (False, True):
            try:
                found = distances(run.search(query, 9, binary=binary, index=victim.parent))
            except RunError as error:
                lines.append(str(error))
            else:
                assert found == expected[binary]
    assert len(lines) >= (20 if name == CATALOGUE else 30)
    assert not [line for line in lines if "\n" in line or str(victim.parent.parent) not in line]
    victim.unlink()
    refused(lambda: [run.search(query, binary=b, index=victim.parent) for b in (False, True)], "cannot be read|no index")


MADE_UP = ["[]", "{}", "7", "[" * 100_000, '{"version": 2, "model": 7}', '{"version": 2, "dimension": 0}']
CHANGES = [{"entries": [["a", 1]] * 40}, {"entries": [[7, 1, 1]] * 40}, {"dimension": 2**70}, {"dimension": -1}, {"version": 3}]


@pytest.mark.parametrize("change", [*MADE_UP, *CHANGES])
def test_forged_or_newer_catalogue_is_refused(
    run: alexnet.Run, photos: Path, copied: Callable[[], Path], change: str | dict[str, Any]
) -> None:
    catalogue = copied() / CATALOGUE
    content = json.loads(catalogue.read_text())
    catalogue.write_text(change if isinstance(change, str) else json.dumps({**content, **change}))
    refused(lambda: run.search(photos, index=catalogue.parent), str(catalogue.parent))


def test_index_of_version_1_is_rebuilt(
    run: alexnet.Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "index"
    place.mkdir()
    for name in ("images-4.json", "exact-3.faiss", "binary-4.faiss", "coder-4.safetensors", "mine.txt"):
        (place / name).write_bytes(b"old")
    (place / CATALOGUE).write_text('{"version": 1, "number": 4, "model": ""}')
    refused(lambda: run.search(photos, index=place), "written by another version .*alexnet search index")
    assert run.index(photos, place, BITS)["added"] == 40
    assert "index was written by an earlier version of alexnet: it is rebuilt" in capsys.readouterr().err
    assert {path.name for path in place.iterdir()} == {CATALOGUE, CODES, BINARY, CODER, search.LOCK, "mine.txt"}
    assert run.search(photos, index=place)


def test_conflicting_options_are_refused(run: alexnet.Run, photos: Path, copied: Callable[[], Path], tmp_path: Path) -> None:
    place, other = copied(), alexnet.load(run.path)
    other.config = other.config.model_copy(update={"sha256": "0" * 64})
    refused(lambda: other.search(photos, index=place), "made with other weights")
    refused(lambda: other.index(photos, place), "made with other weights")
    refused(lambda: run.index(photos, place, 32), f"has short codes of {BITS} bits, not 32")
    refused(lambda: run.index(photos, tmp_path / "new", 12), "short codes of 12 bits", AlexNetError)
    refused(lambda: run.search(photos, index=tmp_path / "new"), "no index .*new: alexnet search index creates one")
    refused(lambda: run.index(photos, photos), "is not empty and is not an index: name another --out")
    refused(lambda: run.index(photos, photos / "down" / "000.png"), "cannot write")
    refused(lambda: run.index(tmp_path / "nowhere", place), "no images .*nowhere", DataError)
    with search.locked_index(place):
        refused(lambda: run.index(photos, place), "another process is adding to")
    assert run.index(photos, place, BITS)["added"] == 0, "as it was"


def test_unreadable_images_are_skipped_and_reported(run: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    mine, place = Path(shutil.copytree(photos / "down", tmp_path / "mine")), tmp_path / "index"
    (mine / "000.png").write_bytes(b"no image")
    (mine / "nowhere.png").symlink_to(tmp_path / "gone")
    refused(lambda: run.index(mine / "000.png", place), r"no image in .* can be read: .*000\.png: not an image", DataError)
    for added in (19, 0):
        found = run.index(mine, place)
        assert (found["images"], found["added"]) == (19, added)
        assert [Path(skipped["image"]).name for skipped in found["skipped"]] == ["000.png", "nowhere.png"]
        assert all(skipped["reason"] for skipped in found["skipped"])
    answers = run.search(mine, 3, index=place)
    assert [list(answer)[1] for answer in answers] == ["error"] + ["neighbours"] * 19 + ["error"]


def test_a_contact_sheet_has_a_row_for_each_image_that_could_be_read(run: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    mine, sheet = Path(shutil.copytree(photos / "down", tmp_path / "mine")), tmp_path / "sheet.png"
    run.index(mine, tmp_path / "index")
    queries = [photos / "down" / "004.png", run.path / "model.json", np.asarray(picture(1, 105))]
    (mine / "005.png").unlink()
    answers = run.search(queries, 3, index=tmp_path / "index", out=sheet)
    assert [Path(answers[i]["neighbours"][0]["image"]).name for i in (0, 2)] == ["004.png", "005.png"]
    step, second = SIDE + GAP, GAP + SIDE + GAP + APART
    with Image.open(sheet) as drawn:
        assert drawn.size == (GAP + step + APART + 3 * step, GAP + 2 * (step + LABEL))
        for x, y in ((GAP, GAP), (second, GAP)):
            tile = np.asarray(drawn.crop((x, y, x + SIDE, y + SIDE)), float)
            assert np.abs(tile - picture(1, 104).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).mean() < 1
        assert drawn.getpixel((second + 60, GAP + step + LABEL + 60)) == MISSING, "it is gone"
    refused(lambda: run.search(queries, index=tmp_path / "index", out=tmp_path / "no" / "sheet.png"), "cannot write")


def test_the_commands_index_and_query_whatever_the_names_are(
    trained: alexnet.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["alexnet", "search", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        return capsys.readouterr().out

    odd = tmp_path / os.fsdecode(b"caf\xe9\n" if sys.platform == "linux" else b"caf")  # where names are bytes
    shutil.copytree(photos, odd)
    place, sheet, query = tmp_path / "index", tmp_path / "sheet.png", photos / "down" / "003.png"
    text = call("index", trained.path, odd, "--out", place, "--bits", BITS)
    assert f"{place}: 40 images, 40 added; binary codes of {BITS} bits" in text
    assert f"alexnet search query {shell_quote(trained.path)} IMAGE… --index {shell_quote(place)}" in text
    assert f"{place}: 40 images, 0 added" in call("index", trained.path, odd, "--out", place)
    for flags in ([], ["--binary"]):
        found = json.loads(call("query", trained.path, query, "--index", place, "--json", "--top", 4, *flags))
        assert found == trained.search(query, 4, index=place, binary=bool(flags))
    lines = call("query", trained.path, odd / "down" / "003.png", "--index", place, "--top", 4, "--out", sheet).splitlines()
    assert (len(lines), lines[-1], Image.open(sheet).format) == (6, str(sheet), "PNG")
    assert not [line for line in lines if "\\udce9\\n/" not in line and sys.platform == "linux"][:-1]
    (tmp_path / "bad.png").write_bytes(b"")
    found = json.loads(call("query", trained.path, query, tmp_path / "bad.png", "--index", place, "--json", code=1))
    assert [list(answer) for answer in found] == [["image", "neighbours"], ["image", "error"]]


def test_images_in_the_current_folder_are_printed_as_relative_paths(
    trained: alexnet.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.index(photos, tmp_path / "index", BITS)
    for here, start in ((photos.parent, "photos/"), (tmp_path, f"{photos}/")):
        monkeypatch.chdir(here)
        query = ["query", str(trained.path), str(photos / "down" / "003.png"), "--index", str(tmp_path / "index")]
        monkeypatch.setattr(sys, "argv", ["alexnet", "search", *query])
        with pytest.raises(SystemExit):
            main()
        _, *near = capsys.readouterr().out.splitlines()
        assert len(near) == 10
        assert all(line.split(" away  ")[1].startswith(start) for line in near), near
