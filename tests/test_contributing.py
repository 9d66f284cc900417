"""The worked examples of CONTRIBUTING.md, applied to a copy of the package and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import alexnet

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"`([\w./-]+)`[^`]*:\n\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

Copy = Callable[[str], Path]


@pytest.fixture
def follow(tmp_path: Path) -> Copy:
    """Copy the package, follow the example under a heading, and return the copy's folder."""

    def apply(heading: str) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "test_floors.py", copy / "tests")
        _, section = TEXT.split(f"### {heading}\n")
        blocks = BLOCK.findall(section.partition("\n### ")[0])
        assert blocks
        for name, language, text in blocks:
            path = copy / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(patched(path.read_text(encoding="utf-8"), text) if language == "diff" else text, encoding="utf-8")
        return copy

    return apply


def patched(text: str, diff: str) -> str:
    """Return `text` with each hunk of a diff applied; each hunk must match exactly once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        assert text.count(old) == 1, f"{text.count(old)} times in the file:\n{old}"
        text = text.replace(old, new)
    return text


def run_copy(copy: Path, *words: str) -> str:
    """Run Python with these arguments on the copy; return its standard output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy / "src"),
        "ALEXNET_CACHE": str(copy / "cache"),
        "ALEXNET_KERNELS": "0",
        "COLUMNS": "80",
    }
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_variant_is_built(follow: Copy) -> None:
    printed = json.loads(run_copy(follow("Add a variant"), "-m", "alexnet", "model", "summary", "three-conv", "--json"))
    convolutions = [layer["output"] for layer in printed["layers"] if layer["kind"] == "convolution"]
    assert convolutions == [[96, 55, 55], [256, 27, 27], [384, 13, 13]]


@pytest.mark.long
def test_the_recipe_trains(follow: Copy, photos: Path) -> None:
    copy = follow("Add a recipe")
    head = (copy / "src/alexnet/recipes/plain-sgd.toml").read_text().partition("\n[")[0]
    assert head.startswith("# plain-sgd: ")
    assert re.findall("^# ([A-Z][a-z]+) ", head, re.MULTILINE) == ["Source", "Command", "Time", "Expect"]
    options = [
        "--recipe",
        "plain-sgd",
        "--set",
        "model.width=0.0625",
        "--set",
        "images.input=67",
        "--epochs",
        "1",
        "--out",
        "run",
    ]
    printed = run_copy(copy, "-m", "alexnet", "train", str(photos), *options, "--json")
    assert json.loads(printed)["epochs"] == 1
    assert (copy / "run" / "report.html").exists()


@pytest.mark.long
def test_the_dataset_opens(follow: Copy) -> None:
    found = json.loads(run_copy(follow("Add a built-in dataset"), "-m", "alexnet", "data", "check", "stripes", "--json"))
    assert (found["images"], found["classes"]) == (60, {"across": 30, "down": 30})


@pytest.mark.long
def test_the_capability_has_its_layer_and_its_command(follow: Copy, trained: alexnet.Run, photos: Path) -> None:
    copy = follow("Add a capability")
    run_copy(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_floors.py", "-k", "lower or circular or public")
    image = next((photos / "down").iterdir())
    shares = json.loads(run_copy(copy, "-m", "alexnet", "sparsity", str(trained.path), str(image)))
    assert list(shares) == [name for name in trained.network.layer_names if name.startswith("relu")]
    assert all(0 < share < 1 for share in shares.values())


def test_the_latest_version_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, _ = re.findall(r"^## \[(\S+)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)[0]
    assert version == alexnet.__version__
