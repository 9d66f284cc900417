"""Data check: it finds every planted problem, finds none in a clean folder, and changes nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.data.check import KINDS
from alexnet.data.near_duplicates import near_duplicates
from conftest import contents


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Return an image unlike all others: coloured squares."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Two splits of two classes of ten pictures each."""
    seed = 0
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(10):
                scene(seed).save(tmp_path / "data" / split / label / f"{i}.png")
                seed += 1
    return tmp_path / "data"


def problems_of(folder: Path) -> dict[str, list[str | None]]:
    """Return the images of each kind of problem."""
    kinds: dict[str, list[str | None]] = {}
    for problem in alexnet.check(folder).to_json()["problems"]:
        kinds.setdefault(problem["kind"], []).append(problem["image"])
    return kinds


def test_check_finds_nothing_in_a_clean_folder(clean: Path) -> None:
    assert alexnet.check(clean).to_json() == {"images": 40, "classes": {"a": 20, "b": 20}, "problems": []}


def test_check_finds_every_planted_problem_and_changes_nothing(clean: Path) -> None:
    a, b, val = clean / "train" / "a", clean / "train" / "b", clean / "val"
    jpeg = io.BytesIO()
    scene(1000).save(jpeg, "JPEG")
    packed = bytearray((a / "0.png").read_bytes())
    packed[len(packed) // 2] ^= 255
    (a / "corrupt.png").write_bytes(packed)
    (a / "cut.jpg").write_bytes(jpeg.getvalue()[:-800])
    (a / "empty.jpg").touch()
    (a / "text.jpg").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(a / "huge.png")
    scene(1001).save(a / "moving.gif", save_all=True, append_images=[scene(1002)])
    scene(1003).convert("CMYK").save(a / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(1004).save(a / "turned.jpg", exif=exif)
    Image.open(a / "1.png").save(a / "same.bmp")
    Image.open(a / "2.png").save(a / "again.jpg", quality=60)
    ImageEnhance.Brightness(Image.open(a / "3.png")).enhance(1.1).resize((77, 58)).save(a / "lighter.png")
    Image.open(b / "4.png").save(val / "b" / "leak.png")
    Image.open(a / "5.png").save(b / "other-label.png")
    Image.new("RGB", (50, 50), (7, 7, 7)).save(b / "flat.png")
    (clean / "train" / "rare").mkdir()
    scene(1005).save(clean / "train" / "rare" / "0.png")
    (clean / "stray.txt").write_text("notes")
    before = contents(clean)
    kinds = problems_of(clean)
    assert contents(clean) == before
    assert kinds == {
        "left out": ["stray.txt"],
        "empty": ["train/a/empty.jpg"],
        "not an image": ["train/a/text.jpg"],
        "truncated": ["train/a/cut.jpg"],
        "corrupt": ["train/a/corrupt.png"],
        "huge": ["train/a/huge.png"],
        "animated": ["train/a/moving.gif"],
        "mode": ["train/a/cmyk.jpg", "train/a/moving.gif"],
        "orientation": ["train/a/turned.jpg"],
        "constant": ["train/b/flat.png"],
        "duplicate": ["train/a/same.bmp", "train/b/other-label.png"],
        "near-duplicate": ["train/a/again.jpg", "train/a/lighter.png"],
        "leak": ["val/b/leak.png"],
        "tiny class": [None],
        "imbalance": [None],
        "labels": [None],
    }
    assert set(kinds) <= set(KINDS)
    details = {p["image"]: p["detail"] for p in alexnet.check(clean).to_json()["problems"]}
    assert details["train/b/other-label.png"] == "the same pixels as train/a/5.png, whose label is 'a', not 'b'"
    assert details["val/b/leak.png"] == "the same pixels as train/b/4.png, which is in train"


def test_check_prints_table_json_and_csv(clean: Path) -> None:
    (clean / "train" / "a" / "0.png").write_text("broken, \x1b[2J")
    run = CliRunner()
    table = run.invoke(app, ["data", "check", str(clean)])
    assert table.exit_code == 0
    assert "40 images of 2 classes" in table.stdout
    assert "1 x not an image" in table.stdout
    document = json.loads(run.invoke(app, ["data", "check", str(clean), "--json"]).stdout)
    assert document["problems"] == [
        {"image": "train/a/0.png", "kind": "not an image", "detail": "not an image, or of an unknown format"}
    ]
    rows = list(csv.DictReader(io.StringIO(run.invoke(app, ["data", "check", str(clean), "--csv"]).stdout)))
    assert rows == document["problems"]


def test_check_of_digits_in_memory() -> None:
    findings = alexnet.check("digits").to_json()
    assert findings["images"] == 1797
    assert {problem["kind"] for problem in findings["problems"]} <= {"duplicate", "near-duplicate"}


def test_near_duplicates_equal_brute_force() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 256, (3000, 16 * 16 * 3))
    copies = (base[:400] * 0.9 + rng.normal(0, 4, (400, base.shape[1]))).clip(0, 255)
    result = dict(near_duplicates(np.concatenate([base, copies]).astype(np.uint8)))
    assert result == {3000 + i: i for i in range(400)}


@pytest.mark.long
def test_near_duplicates_false_positive_rate_on_real_photos(real_data: Path) -> None:
    """Of 1,000 photos, two are the same picture at two qualities; no others are near-duplicates."""
    problems = alexnet.check(real_data / "cats-dogs").to_json()["problems"]
    alike = [p for p in problems if p["kind"] in ("duplicate", "near-duplicate", "leak")]
    assert [{Path(p["image"]).name, Path(p["detail"].split(" ")[2]).name} for p in alike] == [{"dog.74.jpg", "dog.180.jpg"}]


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
@pytest.mark.parametrize("content", [b"no image", None])
def test_check_prints_findings_without_comparable_images(tmp_path: Path, content: bytes | None, form: list[str]) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if content is None:
            Image.new("RGB", (8, 8), "grey").save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), *form])
    assert result.exit_code == 0, result.output
    assert ("constant" if content is None else "not an image") in result.stdout
