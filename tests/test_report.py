"""Report: its figures, that it is self-contained, and that no name or label breaks it."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

import alexnet
from alexnet.data.dataset import Dataset
from alexnet.data.pixels import Pixels
from alexnet.data.table import Skipped, Table
from alexnet.errors import RunError
from alexnet.inference.evaluate import Evaluation
from alexnet.network.filters import filter_grid
from alexnet.recipe import Preprocessing, Recipe
from alexnet.report.report import duration, write_report
from alexnet.run import RunFolder
from conftest import mostly_long

PLAIN = ("<script>alert(1)</script>", "$x^2$", "$\\frac{$", "猫", "{{ 7*7 }}", "a\"b'c&d", "bad\ufffd", "x\ufffd\ufffdy")
HOSTILE = (*PLAIN[:6], "bad\udcff", "x\x00\x07y", "a " * 60)


class Page(HTMLParser):
    """The references of a page, the text of elements with an id, and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses, self.ids, self.values = text, [], [], [], {}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        result = dict(attrs)
        self.tags.append((tag, result))
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if "id" in result:
            self.ids.append(result["id"])
            self.inside = result["id"] or ""
        if tag == "data" and self.inside:
            self.values.setdefault(self.inside, float(result["value"] or "nan"))


class Case:
    """A run folder with made-up results, and its report."""

    def __init__(
        self,
        path: Path,
        labels: tuple[str, ...] = ("cat", "dog", "owl"),
        *,
        images: int = 60,
        epochs: int = 5,
        test: bool = True,
        skill: float = 2.0,
        side: int = 8,
        skipped: tuple[Skipped, ...] = (),
    ) -> None:
        self.folder = RunFolder(path)
        self.images, self.epochs, self.test = images, epochs, test
        self.evaluation = self._evaluate(labels, skill)
        self.dataset = self._dataset(labels, side, skipped)
        self._write()
        self.path = write_report(self.folder, self.dataset, self.split, self.evaluation)
        self.page = Page(self.path.read_text(encoding="utf-8"))
        self.text = self.page.text

    @property
    def split(self) -> str:
        return "test" if self.test else "val"

    def _evaluate(self, labels: tuple[str, ...], skill: float) -> Evaluation:
        rng = np.random.default_rng(0)
        targets = rng.integers(0, len(labels), self.images)
        logits = rng.normal(size=(self.images, len(labels))).astype(np.float32)
        logits[np.arange(self.images), targets] += skill
        return Evaluation(logits, targets, labels, (3, 32, 32), temperature=0.7)

    def _dataset(self, labels: tuple[str, ...], side: int, skipped: tuple[Skipped, ...]) -> Dataset:
        sizes = {"train": 40, **({"val": 10} if self.test else {}), self.split: self.images}
        splits = np.repeat(list(sizes), list(sizes.values()))
        targets = np.zeros(len(splits), np.int64)
        targets[splits == self.split] = self.evaluation.targets
        names = [f"{labels[t]}/{i}.jpg" for i, t in enumerate(targets)]
        kept = np.random.default_rng(1).integers(0, 256, (50, side, side, 3), dtype=np.uint8)
        table = Table("pets", labels, names, targets, splits, root=self.folder.path, skipped=skipped)
        preprocessing = Preprocessing(cache_size=side, input=side, fit="crop", reduced_decode=False, resize="bilinear")
        pixels = kept[np.arange(len(splits)) % len(kept)]
        return Dataset(table, Pixels(pixels.ravel(), np.full((len(pixels), 2), side), preprocessing))

    def _write(self) -> None:
        figures = self.evaluation.to_json()
        self.summary = {
            "epochs": self.epochs,
            "seconds": 75.2,
            "best_epoch": max(1, self.epochs - 1),
            "validation": figures | {"top1": 0.123456},
            "test": figures if self.test else None,
        }
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.summary.write_text(json.dumps(self.summary))
        self.folder.recipe.write_text(Recipe(name="fast").to_toml())
        self.folder.environment.write_text(json.dumps({"python": "3.12", "versions": {"torch": "2.13"}, "git_commit": None}))
        with self.folder.metrics.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "utilisation"])
            for epoch in range(1, self.epochs + 1):
                progress = epoch / self.epochs
                writer.writerow(
                    [
                        epoch,
                        0.05 * (1 - progress),
                        2 - progress,
                        0.6 * progress,
                        1.5 - progress,
                        0.8 * progress,
                        "CPU 33 %, 1 GB",
                    ]
                )


def test_report_figures_equal_summary_and_evaluation(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", labels=tuple("abcdefg"))
    values, result = case.page.values, case.summary["test"]
    assert values["top1"] == result["top1"] == case.evaluation.top1
    assert values["top5"] == result["top5"]
    assert values["ece"] == result["ece"]
    assert values["validation"] == 0.123456
    assert values["seconds"] == case.summary["seconds"]
    assert all(f'value="{edge}"' in case.text for edge in result["top1_interval"])
    assert "1 min 15 s" in case.text
    assert "best epoch: 4" in case.text
    for part, count in (("Training", 40), ("Validation", 10), ("Test", 60)):
        assert f'<dt>{part} images</dt><dd><data value="{count}">' in case.text


def test_report_lists_classes_worst_first(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    expected = sorted(case.evaluation.to_json()["per_class"].items(), key=lambda item: item[1]["f1"])
    table = case.text[case.text.index('<table class="classes sortable">') :]
    positions = [table.index(f">{label}</div>") for label, _ in expected]
    assert positions == sorted(positions)
    for position, (_, row) in zip(positions, expected, strict=True):
        line = table[position : table.index("</tr>", position)]
        assert [f"{row[key]:.1%}" in line for key in ("precision", "recall", "f1")] == [True] * 3


def test_report_confusion_matrix_counts(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    table = case.text[case.text.index('<table class="matrix') :].partition("</table>")[0]
    assert [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", table)] == case.evaluation.confusion.ravel().tolist()


def files(part: str) -> list[str]:
    return re.findall(r'<code class="name">(.*?)</code>', part)


def test_report_worst_mistakes_and_least_certain_answers(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", skill=0.5)
    logits = case.evaluation.logits.astype(float) / case.evaluation.temperature
    given = softmax(logits, axis=1)
    wrong = np.flatnonzero(logits.argmax(1) != case.evaluation.targets)
    worst = wrong[np.argsort(-given[wrong].max(1))][:12]
    names = case.dataset.names("test")
    mistakes, uncertain = case.text.split("Least certain")
    assert files(mistakes.partition("Worst mistakes")[2]) == [names[i] for i in worst]
    assert f"{given[worst[0]].max():.1%}" in mistakes
    least_certain = np.argsort(-entropy(given, axis=1))[:8]
    assert files(uncertain.partition("</ul>")[0]) == [names[i] for i in least_certain]


def test_report_is_self_contained(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", labels=tuple(f"class {i}" for i in range(30)))
    assert all(address.startswith(("data:image/", "#")) for address in case.page.addresses)
    assert not re.search(r"https?:|@import|url\((?!#)|<!DOCTYPE svg|<\?xml", case.text)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in case.page.tags}


def test_report_content_security_policy(tmp_path: Path) -> None:
    text = Case(tmp_path / "run").text
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_report_calibration_before_and_after(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    result = case.summary["test"]
    assert case.page.values["ece-chart"] == result["ece"]
    assert case.page.values["ece-raw"] == result["ece_raw"]
    message = f"{result['ece']:.1%} off the truth on average, before calibration {result['ece_raw']:.1%}"
    assert f"Probabilities are {message}" in case.text


def test_report_shows_data_check(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")  # 50 images, some of them in both splits
    assert "× leak" in case.text
    assert "which is in train" in case.text


def test_report_draws_first_layer_by_tower(tmp_path: Path) -> None:
    weights = np.zeros((8, 3, 5, 5), dtype=np.float32)
    weights[3, 0] = 2.0  # the last of the first tower: red
    weights[4, 2] = -0.5  # the first of the second: no blue
    sheet = filter_grid(weights, towers=2)
    assert sheet.shape == (5 + 3 + 5, 4 * 6 - 1, 3)
    assert sheet[:5, 18:].reshape(-1, 3).tolist() == [[255, 128, 128]] * 25
    assert sheet[8:, :5].reshape(-1, 3).tolist() == [[128, 128, 1]] * 25
    assert (sheet[5:8] == 255).all()
    assert "first layer looks for" not in Case(tmp_path / "stopped").text, "no weights, no picture"


def test_report_of_a_run_draws_first_layer(trained: alexnet.Run) -> None:
    page = (trained.path / "report.html").read_text(encoding="utf-8")
    assert "The 6 kernels of the first layer, 11 by 11 pixels each" in page


def test_report_ids_are_unique_and_charts_have_text(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", labels=tuple(f"class {i}" for i in range(30)))
    assert len(case.page.ids) == len(set(case.page.ids))
    charts = [attributes["aria-label"] for _, attributes in case.page.tags if attributes.get("role") == "img"]
    assert len(charts) == 5
    assert "Validation accuracy rises from 16.0% to 80.0% over 5 epochs; that of training goes from 12.0% to 60.0%." in charts
    assert case.text.count("<svg") == 5


@pytest.mark.parametrize("more", [0, 20])
def test_report_escapes_hostile_labels(tmp_path: Path, more: int) -> None:
    labels = (*HOSTILE, *(f"class {i}" for i in range(more)))
    skipped = tuple(Skipped(f"<b>{i}\udce9.jpg", "not an image & <i>more</i>") for i in range(60))
    case = Case(tmp_path / "run \udcff<i>", labels=labels, images=120, skipped=skipped)
    assert [tag for tag, _ in case.page.tags].count("script") == 1
    table = html.unescape(case.text[case.text.index('<table class="classes sortable">') :])
    for label in PLAIN:
        assert f">{label}</div>" in table
    assert not more or (">$x^2$</text>" in case.text and ">猫</text>" in case.text)
    assert "<b>" not in case.text
    assert "&lt;b&gt;49\ufffd.jpg" in case.text
    assert "&lt;b&gt;50\ufffd.jpg" not in case.text
    assert "And 10 more" in case.text


def test_report_of_one_epoch_draws_points(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", epochs=1)
    assert "Validation accuracy is 80.0% after the only epoch; that of training is 60.0%." in case.text
    assert case.text.count("<use ") > 4


def test_report_without_test_set(tmp_path: Path) -> None:
    without, with_test = Case(tmp_path / "a", test=False), Case(tmp_path / "b")
    assert "There was no test set" in without.text
    assert "Validation accuracy (top-1)" in without.text
    assert "<dt>Test images</dt><dd>none</dd>" in without.text
    assert "There was no test set" not in with_test.text
    assert "Test accuracy (top-1)" in with_test.text


def test_report_of_last_epoch_says_that_validation_chose_no_epoch(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", test=False)
    assert "also chose the epoch and the calibration" in case.text
    last = Recipe(name="cifar10").with_settings({"train.keep": "last"})
    case.folder.recipe.write_text(last.to_toml())
    text = write_report(case.folder, case.dataset, "val", case.evaluation).read_text(encoding="utf-8")
    assert "also chose the calibration" in text
    assert "chose the epoch" not in text


def test_report_omits_top5_of_few_classes(tmp_path: Path) -> None:
    assert "top5" not in Case(tmp_path / "run", labels=tuple("abcde")).page.values


@mostly_long(("classes", "images", "side"), [(2, 50, 224), (200, 1_000, 224), (200, 10_000, 8)], (200, 10_000, 8))
def test_report_is_small(tmp_path: Path, classes: int, images: int, side: int) -> None:
    case = Case(tmp_path / "run", labels=tuple(f"class number {i}" for i in range(classes)), images=images, side=side)
    assert case.path.stat().st_size < 3_000_000


def test_report_without_mistakes(tmp_path: Path) -> None:
    assert "None: 60 images, every one with the right label." in Case(tmp_path / "run", skill=50).text


def test_report_of_stopped_training(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    case.folder.summary.unlink()
    write_report(case.folder, case.dataset, case.split, case.evaluation)
    assert "stopped before its end" in case.folder.report.read_text(encoding="utf-8")


def test_report_of_damaged_run_is_one_line(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    case.folder.metrics.write_text("epoch,rate\n1,fast\n")
    with pytest.raises(RunError, match=r"metrics\.csv cannot be read"):
        write_report(case.folder, case.dataset, case.split, case.evaluation)
    case.folder.metrics.unlink()
    with pytest.raises(RunError, match="No such file"):
        write_report(case.folder, case.dataset, case.split, case.evaluation)


def test_report_is_reproducible(tmp_path: Path) -> None:
    case = Case(tmp_path / "run")
    write_report(case.folder, case.dataset, case.split, case.evaluation)
    assert case.folder.report.read_text(encoding="utf-8") == case.text


@pytest.mark.long
def test_predict_does_not_import_matplotlib() -> None:
    code = "import sys, alexnet.report.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("seconds", "text"), [(59.7, "1 min 00 s"), (75.2, "1 min 15 s"), (4000, "1 h 07 min")])
def test_report_duration_format(seconds: float, text: str) -> None:
    assert duration(seconds) == text
