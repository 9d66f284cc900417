"""Learning-rate finder: the suggested rate trains, a rate a hundred times higher does not, and nothing is left behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet import recipe
from alexnet.errors import AlexNetError, RecipeError
from alexnet.training.lr_finder import DIVERGED, MARGIN, STEPS, LRCurve, LRTrial, _until_diverged, find_lr
from commands import TINY_SETS, run
from conftest import TINY

# Without normalisation, so that a rate can be too high.
PLAIN = {**TINY, "model.norm": "none", "optimizer.muon_lr": 0.0, "optimizer.lr_scale": {}, "train.batch_size": 8}
FAST = recipe.load("fast")


def curve(losses: list[float]) -> LRCurve:
    return LRCurve(FAST, np.geomspace(1e-3, 1e2, STEPS)[: len(losses)], np.array(losses))


def valley(turn: int = 60, least: int = 80) -> LRCurve:
    """A loss that is level, falls around the step `turn`, then rises from the step `least` on."""
    steps = np.arange(STEPS)
    return curve(list(2 - 1.5 / (1 + np.exp(-(steps - turn) / 3)) + np.maximum(0, steps - least) * 0.2))


# The curve


def test_lr_finder_suggests_the_steepest_fall() -> None:
    result = valley()
    assert abs(result.suggestion - 60) <= 1
    assert 65 < result.lowest <= 80
    assert result.settings["optimizer.lr"] == pytest.approx(result.rates[result.suggestion], rel=0.06)


def test_lr_finder_scales_all_rates() -> None:
    settings = valley().settings
    assert settings["optimizer.muon_lr"] / settings["optimizer.lr"] == pytest.approx(0.2 / 0.02, rel=0.01)
    assert FAST.with_settings({"optimizer.muon_lr": 0.0}).scale_lr(0.5) == {"optimizer.lr": 0.01}


def test_lr_finder_keeps_distance_from_divergence() -> None:
    result = valley(turn=78, least=80)  # steepest right before it rises
    assert result.scales[result.suggestion] <= result.scales[result.lowest] / MARGIN


def test_lr_finder_is_robust_to_noise() -> None:
    clean, rng = valley(), np.random.default_rng(0)
    noisy = LRCurve(FAST, clean.scales, clean.losses + rng.normal(0, 0.1, STEPS))
    assert abs(noisy.suggestion - clean.suggestion) <= 8


def test_lr_finder_loss_that_never_falls() -> None:
    with pytest.raises(AlexNetError, match=r"the loss does not fall at any rate from 2e-05 to 2: .*--set optimizer\.lr"):
        _ = curve(list(np.linspace(2, 3, STEPS))).suggestion


def test_lr_finder_stops_at_divergence() -> None:
    losses = [2.0] * 5 + [1.0] * 20 + [2.0 * DIVERGED] * 50
    assert 25 < len(list(_until_diverged(losses))) < 35


# Real steps


@pytest.mark.long
def test_lr_finder_suggestion_trains(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**PLAIN, "data.dataset": str(photos)})
    result = find_lr(chosen)
    assert len(result.losses) < STEPS, "it stopped when the loss diverged"
    good = chosen.with_settings(result.settings)
    losses = list(LRTrial(good).losses([1.0] * 40))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    worse = list(LRTrial(good).losses([100.0] * 40))
    assert len(worse) < 40 or np.mean(worse[-8:]) > 1.5 * np.mean(losses[-8:]), "it diverges, or all units die"


def test_lr_finder_with_muon(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**TINY, "data.dataset": str(photos), "train.batch_size": 8})
    settings = find_lr(chosen).settings
    assert set(settings) == {"optimizer.lr", "optimizer.muon_lr"}
    losses = list(LRTrial(chosen.with_settings(settings)).losses([1.0] * 30))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_lr_finder_is_reproducible(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**TINY, "data.dataset": str(photos)})
    one, other = (list(LRTrial(chosen).losses([1.0] * 3)) for _ in range(2))
    assert one == other


def test_lr_finder_refuses_too_few_images(photos: Path) -> None:
    changes = {"data.dataset": str(photos), "train.batch_size": 500, "train.last_batch": "drop", **{"model.width": 1 / 16}}
    with pytest.raises(RecipeError, match=r"train\.batch_size is 500, but training has only 28 images"):
        LRTrial(recipe.load("fast").with_settings(changes))


# The command


def test_find_lr_command_draws_and_prints_the_next_command(photos: Path, tmp_path: Path) -> None:
    process = run("train", photos, "--find-lr", "--out", tmp_path / "run", *TINY_SETS)
    assert [path.name for path in tmp_path.iterdir()] == ["run-lr.png"]
    with Image.open(tmp_path / "run-lr.png") as figure:
        assert figure.width > 1000
    line = process.stdout.splitlines()[-1]
    assert line.startswith("train ")
    command = shlex.split(line)[2:]
    assert command[:2] == ["train", str(photos)]
    assert "--find-lr" not in command
    assert sum("optimizer.lr=" in part or "optimizer.muon_lr=" in part for part in command) == 2
    run(*command, "--epochs", 1)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.long
def test_find_lr_command_prints_json(photos: Path, tmp_path: Path) -> None:
    result = json.loads(run("train", photos, "--find-lr", "--out", tmp_path / "run", *TINY_SETS, "--json").stdout)
    assert list(result) == ["settings", "rises_from", "steps", "figure"]
    assert [list(step) for step in result["steps"]] == [["lr", "loss", "smooth"]] * len(result["steps"])
    assert result["figure"] == str(tmp_path / "run-lr.png")
    assert "keeps its recipe" in run("train", "--resume", tmp_path, "--find-lr", code=2).stderr
