"""Runs with several seeds as one row: intervals and tests against SciPy's, and their error rates in simulation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import alexnet
from alexnet.errors import RunError
from alexnet.report.seeds import difference, mean_interval
from commands import run
from conftest import SEED

VALUES = {0: 0.91, 1: 0.9, 2: 0.935, 5: 0.92}
FIRST = {0: 0.89, 1: 0.902, 2: 0.9, 5: 0.895}


def copy(source: Path, to: Path, seed: int, top1: float, **settings: str) -> Path:
    """Copy a run as one with another seed, accuracy and settings."""
    shutil.copytree(source, to)
    recipe = re.sub(r"(?m)^seed = .*$", f"seed = {seed}", (to / "recipe.toml").read_text())
    for key, value in settings.items():
        recipe = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", recipe)
    (to / "recipe.toml").write_text(recipe)
    summary = json.loads((to / "summary.json").read_text())
    summary["test"]["top1"] = top1
    (to / "summary.json").write_text(json.dumps(summary))
    return to


def test_mean_and_interval_are_scipys() -> None:
    values = list(VALUES.values())
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean_interval(values) == pytest.approx([np.mean(values), *interval], abs=1e-12)
    assert mean_interval([0.9, 1.0])[2] == 1, "accuracies are 1 at most"


def test_rows_of_the_same_seeds_are_paired() -> None:
    expected = stats.ttest_rel([VALUES[seed] for seed in (0, 1, 2, 5)], [FIRST[seed] for seed in (0, 1, 2, 5)])
    turned = {seed: FIRST[seed] for seed in (5, 2, 1, 0)}
    for first in (FIRST, turned):
        found = difference(VALUES, first)
        assert found is not None
        assert (found.how, found.p) == ("paired", pytest.approx(expected.pvalue, abs=1e-12))
        assert found.values[1:] == pytest.approx(list(expected.confidence_interval()), abs=1e-12)


def test_rows_of_other_seeds_are_compared_by_welch() -> None:
    first = {10: 0.89, 11: 0.902, 12: 0.87}
    expected = stats.ttest_ind(list(VALUES.values()), list(first.values()), equal_var=False)
    found = difference(VALUES, first)
    assert found is not None
    assert (found.how, found.p) == ("welch", pytest.approx(expected.pvalue, abs=1e-12))
    assert found.values[1:] == pytest.approx(list(expected.confidence_interval()), abs=1e-12)


@pytest.mark.parametrize("first", [{0: 0.9}, {0: 0.9, 1: 0.9, 2: 0.9}])
def test_one_seed_or_no_spread_gives_no_interval(first: dict[int, float]) -> None:
    assert difference({seed: value + 0.1 for seed, value in first.items()}, first) is None


@pytest.mark.parametrize(("count", "others", "spread"), [(5, 5, 1.0), (3, 5, 1.0), (8, 5, 3.0)])
def test_false_alarms_are_five_percent(count: int, others: int, spread: float) -> None:
    """Paired: seeds that are easy for one row are easy for the other. Welch: one row may vary more than the other."""
    random, trials, alarms, covered = np.random.default_rng(0), 2000, 0, 0
    for _ in range(trials):
        shared = random.normal(0.8, 0.02, count) if count == others else 0.8
        row = dict(enumerate(shared + random.normal(0, 0.01 * spread, count)))
        first = dict(enumerate(shared + random.normal(0, 0.01, others)))
        found = difference(row, first)
        assert found is not None
        alarms += found.p < 0.05
        covered += found.values[1] <= 0 <= found.values[2]
    assert covered == trials - alarms
    assert 0.035 < alarms / trials < 0.065  # Welch's test keeps its level approximately


def test_runs_that_differ_in_seed_alone_are_one_row(short: Path, tmp_path: Path) -> None:
    tops = {"a0": (0, 0.5), "a1": (1, 0.75), "b0": (0, 0.9), "b1": (1, 1.0)}
    paths = [
        copy(short, tmp_path / name, seed, top1, **{"threads": "2"} if name == "a1" else {}, **_momentum(name))
        for name, (seed, top1) in tops.items()
    ]
    first, second = alexnet.compare([paths[0], paths[2], paths[3], paths[1]], seeds=True)["rows"]
    assert (first["runs"], first["seeds"]) == ([str(paths[0]), str(paths[1])], [0, 1])
    assert first["top1"] == pytest.approx(0.625)
    assert first["top1_range"] == [0.5, 0.75]
    assert (first["difference"], first["p"], first["how"]) == (None, None, None)
    expected = stats.ttest_rel([0.9, 1.0], [0.5, 0.75])
    assert second["difference"][0] == pytest.approx(0.325)
    assert (second["how"], second["p"]) == ("paired", pytest.approx(expected.pvalue))
    result = alexnet.compare(paths, seeds=True)
    assert result["settings"] == {"optimizer.momentum": [0.9, 0.5]}
    text = run("compare", *paths, "--seeds").stdout
    assert "and 1 more" in text
    assert "row 2: the same seeds as row 1, so the difference is paired by seed" in text
    assert json.loads(run("compare", *paths, "--seeds", "--json").stdout) == result


def _momentum(name: str) -> dict[str, str]:
    return {"momentum": "0.5"} if name.startswith("b") else {"momentum": "0.9"}


def test_rows_of_one_seed_are_as_without_seeds(short: Path, tmp_path: Path) -> None:
    other = copy(short, tmp_path / "b", SEED, 0.75, momentum="0.5")
    again = copy(short, tmp_path / "c", SEED + 1, 0.75, momentum="0.5")
    plain, rows = alexnet.compare([short, other])["runs"], alexnet.compare([short, other], seeds=True)["rows"]
    for before, row in zip(plain, rows, strict=True):
        assert all(row[key] == before[key] for key in ("top1", "top1_interval", "loss", "difference"))
    assert (rows[1]["how"], rows[1]["p"]) == ("images", plain[1]["paired"]["p"])
    assert "one seed, so the interval of top-1 is over images" in run("compare", short, other, "--seeds").stdout
    assert "p" in rows[1]
    last = alexnet.compare([short, other, again], seeds=True)["rows"][1]
    assert (last["difference"][1:], last["p"], last["how"]) == ([None, None], None, None)
    assert "takes two seeds or more in both rows" in run("compare", short, other, again, "--seeds").stdout


def test_a_seed_twice_in_a_row_is_refused(short: Path, tmp_path: Path) -> None:
    other = copy(short, tmp_path / "b", SEED, 0.75)
    with pytest.raises(RunError, match=rf"{short} and {other} have the same recipe and the seed {SEED}: name one of them"):
        alexnet.compare([short, other], seeds=True)
