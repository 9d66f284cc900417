"""Comparison of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import alexnet
from alexnet import api
from alexnet.errors import RunError
from alexnet.files import write_json
from alexnet.inference.metrics import wilson_interval
from alexnet.report.compare import _difference, table
from commands import error, run
from conftest import SEED, SHORT


@pytest.fixture(scope="module")
def other(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like `short`, with another activation and seed; read-only."""
    out = tmp_path_factory.mktemp("other") / "run"
    alexnet.train(photos, out=out, settings={**SHORT, "model.activation": "tanh", "train.seed": SEED + 1})
    return out


def test_compare_shows_figures_and_differing_settings(short: Path, other: Path) -> None:
    result = api.compare([short, other])
    assert result["split"] == "test"
    assert result["settings"] == {"model.activation": [None, "tanh"], "train.seed": [SEED, SEED + 1]}
    for row, path in zip(result["runs"], (short, other), strict=True):
        run_ = alexnet.load(path)
        test = run_.summary["test"]
        assert {key: row[key] for key in ("images", "top1", "top1_interval", "loss", "ece")} == {
            key: test[key] for key in ("images", "top1", "top1_interval", "loss", "ece")
        }
        assert (row["run"], row["epochs"], row["seconds"]) == (str(path), 3, run_.summary["seconds"])
        values = run_.network.state_dict().values()  # with moving statistics, as everywhere
        assert row["parameters"] == sum(value.numel() for value in values if value.is_floating_point())
    first, second = result["runs"]
    assert first["difference"] is None
    assert second["difference"][0] == second["top1"] - first["top1"]


def test_compare_falls_back_to_validation(short: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "run")
    summary = json.loads((other / "summary.json").read_text())
    write_json(tmp_path / "run" / "summary.json", {**summary, "test": None})
    result = api.compare([short, tmp_path / "run"])
    assert result["split"] == "validation"
    assert result["runs"][0]["top1"] == alexnet.load(short).summary["validation"]["top1"]


def test_difference_interval_is_newcombe() -> None:
    """Newcombe's example: 56 of 70 against 48 of 80, a difference of 0.2 (0.0524 to 0.3339)."""
    rows = []
    for right, of in ((56, 70), (48, 80)):
        rows.append({"top1": right / of, "top1_interval": wilson_interval(right / of, of)})
    assert _difference(*rows) == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_compare_of_the_same_images_is_paired(short: Path, other: Path) -> None:
    first, second = api.compare([short, other])["runs"]
    assert first["paired"] is None
    runs = [alexnet.load(path) for path in (short, other)]
    one, two = (run_.evaluate() for run_ in runs)
    assert one.images == two.images
    right = [evaluation.logits.argmax(1) == evaluation.targets for evaluation in (one, two)]
    paired = second["paired"]
    assert (paired["gained"], paired["lost"]) == (int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum()))
    assert paired["images"] == len(one.images)
    assert second["difference"][0] == pytest.approx((paired["gained"] - paired["lost"]) / paired["images"])
    assert second["difference"][1:] == paired["interval"]
    low, high = paired["loss_interval"]
    assert low <= two.loss - one.loss <= high


@pytest.mark.parametrize("change", ["missing", "other image", "other label"])
def test_compare_of_other_images_is_not_paired(short: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(short, tmp_path / "run")
    path = tmp_path / "run" / "predictions.csv"
    rows = path.read_text().splitlines()
    last = next(i for i, row in enumerate(rows) if row.startswith("test,"))
    split, image, label, *rest = rows[last].split(",")
    new = {"other image": [split, "new.png", label], "other label": [split, image, "new"]}
    rows[last] = ",".join([*new.get(change, [split, image, label]), *rest])
    path.write_text("\n".join(rows) + "\n")
    if change == "missing":
        path.unlink()
    second = api.compare([short, tmp_path / "run"])["runs"][1]
    assert second["paired"] is None
    result = api.compare([short, tmp_path / "run"])
    assert second["difference"] == _difference(*(result["runs"][i] for i in (1, 0)))
    assert "other images than run 1" in table(result)


def test_compare_with_damaged_predictions_is_one_line(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, tmp_path / "run")
    path = tmp_path / "run" / "predictions.csv"
    good = path.read_text()
    header, first, *_ = good.splitlines()
    loss = first.split(",")[-1]
    damages = [
        "",
        "a,b\n",
        f"{header}\n",
        f"{header}\n{first},1\n",
        good.replace(loss, "x"),
        good.replace(loss, "nan"),
        '"' + good,
    ]
    for damage in (*damages, good[: len(good) // 2].rpartition("\n")[0] + "\n"):
        path.write_text(damage)
        with pytest.raises(RunError, match=r"predictions\.csv (is damaged|cannot be read)") as caught:
            api.compare([short, tmp_path / "run"])
        assert "\n" not in str(caught.value)


def test_compare_of_unfinished_run_is_one_line(short: Path, tmp_path: Path) -> None:
    assert "no such folder" in error("compare", short, tmp_path / "none")
    shutil.copytree(short, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        api.compare([short, tmp_path / "run"])
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished: resume it with alexnet train --resume"):
        api.compare([short, tmp_path / "run"])


def test_compare_command_prints_table_or_json(short: Path, other: Path) -> None:
    text = run("compare", short, other).stdout
    assert text.splitlines() == [line.rstrip() for line in table(api.compare([short, other])).splitlines()]
    assert "model.activation" in text
    assert "test top-1" in text
    assert json.loads(run("compare", short, other, "--json").stdout) == api.compare([short, other])
    assert "their recipes are the same" in run("compare", short, short).stdout
    run("compare", short, code=2)
