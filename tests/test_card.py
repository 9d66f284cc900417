"""The model card of an export: the hub can read it, its figures are those of the run, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import alexnet
from alexnet.export.card import card, write_card
from alexnet.run import RunFolder
from conftest import needs_export

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: no card was read")


def parts(text: str) -> tuple[dict[str, object], str]:
    """Return the front matter and the body of a card."""
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    return yaml.safe_load(front), body


def test_the_front_matter_has_the_figures_of_the_summary(trained: alexnet.Run) -> None:
    front, body = parts(card(RunFolder(trained.path), trained.config, trained.dataset(split="val")[0], "model.onnx"))
    assert front["pipeline_tag"] == "image-classification"
    assert front["license"] == "unknown"
    [model] = front["model-index"]
    assert model["name"] == trained.path.name
    found = {result["dataset"]["split"]: result["metrics"][0]["value"] for result in model["results"]}
    assert found == {split: trained.summary[split]["top1"] for split in ("validation", "test")}
    for split in ("validation", "test"):
        low, high = trained.summary[split]["top1_interval"]
        assert f"| {trained.summary[split]['images']} of {split} | {trained.summary[split]['top1']:.1%} |" in body
        assert f"{low:.1%} to {high:.1%}" in body
    table = trained.dataset(split="val")[0].table
    assert f"| training | {len(table.rows('train'))} |" in body
    assert all(label in body for label in trained.labels)
    assert str(trained.path.parent) not in body, "no path of this machine"


def test_a_card_without_figures_or_data_says_so_and_a_licence_that_was_chosen_stays(
    trained: alexnet.Run, tmp_path: Path
) -> None:
    folder, path = RunFolder(tmp_path / "bare"), tmp_path / "README.md"
    write_card(path, folder, trained.config, None, "model.onnx")
    front, body = parts(path.read_text(encoding="utf-8"))
    assert front["model-index"] == [{"name": "bare", "results": []}]
    assert "It was not measured." in body
    path.write_text(path.read_text(encoding="utf-8").replace("license: unknown", "license: cc-by-4.0"), encoding="utf-8")
    write_card(path, folder, trained.config, None, "model.onnx")
    assert parts(path.read_text(encoding="utf-8"))[0]["license"] == "cc-by-4.0"


@needs_export
def test_the_lines_of_python_predict(
    trained: alexnet.Run,
    exported: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo = sorted(photos.rglob("*.png"))[0]
    folder = shutil.copytree(Path(exported["file"]).parent, tmp_path / "export")
    shutil.copy(photo, folder / "photo.jpg")  # Pillow goes by the content
    monkeypatch.chdir(folder)
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    capsys.readouterr()
    exec(code, {})
    best = trained.predict([photo])[0]["predictions"][0]
    label, probability = capsys.readouterr().out.rsplit(" ", 1)
    assert label == best["label"]
    assert float(probability) == pytest.approx(best["probability"], abs=0.01)
    assert json.loads(Path("model.onnx.json").read_text(encoding="utf-8"))["close"] == 1
