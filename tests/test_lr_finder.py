"""The learning-rate finder: what it suggests trains, a hundred times that does not, and nothing is left behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import alexnet
from alexnet import recipe
from alexnet.errors import AlexNetError, RecipeError
from alexnet.training.lr_finder import BLOWN, MARGIN, STEPS, LRCurve, LRTrial, _until_blown, find_lr
from commands import TINY_SETS, run
from conftest import TINY, metrics

# No normalisation, so that a rate can be too high.
PLAIN = {**TINY, "model.norm": "none", "optimizer.muon_lr": 0.0, "optimizer.lr_scale": {}, "train.batch_size": 8}
FAST = recipe.load("fast")


def curve(losses: list[float]) -> LRCurve:
    return LRCurve(FAST, np.geomspace(1e-3, 1e2, STEPS)[: len(losses)], np.array(losses))


def valley(turn: int = 60, least: int = 80) -> LRCurve:
    """Level, then down around the step `turn`, then up from `least` on."""
    steps = np.arange(STEPS)
    return curve(list(2 - 1.5 / (1 + np.exp(-(steps - turn) / 3)) + np.maximum(0, steps - least) * 0.2))


# The curve


def test_the_suggestion_is_where_the_loss_falls_most_steeply() -> None:
    found = valley()
    assert abs(found.suggestion - 60) <= 1
    assert 65 < found.least <= 80
    assert found.settings["optimizer.lr"] == pytest.approx(found.rates[found.suggestion], rel=0.06)


def test_all_rates_scale_together() -> None:
    settings = valley().settings
    assert settings["optimizer.muon_lr"] / settings["optimizer.lr"] == pytest.approx(0.2 / 0.02, rel=0.01)
    assert FAST.with_settings({"optimizer.muon_lr": 0.0}).scaled_rates(0.5) == {"optimizer.lr": 0.01}


def test_the_suggestion_keeps_its_distance_from_where_the_loss_rises() -> None:
    found = valley(turn=78, least=80)  # steepest right before it rises
    assert found.scales[found.suggestion] <= found.scales[found.least] / MARGIN


def test_noise_does_not_move_the_suggestion_far() -> None:
    clean, chance = valley(), np.random.default_rng(0)
    noisy = LRCurve(FAST, clean.scales, clean.losses + chance.normal(0, 0.1, STEPS))
    assert abs(noisy.suggestion - clean.suggestion) <= 8


def test_a_loss_that_never_falls_is_said_so() -> None:
    with pytest.raises(AlexNetError, match=r"the loss falls at no rate from 2e-05 to 2: .*--set optimizer\.lr"):
        _ = curve(list(np.linspace(2, 3, STEPS))).suggestion


def test_it_ends_once_the_loss_has_blown_up() -> None:
    losses = [2.0] * 5 + [1.0] * 20 + [2.0 * BLOWN] * 50
    assert 25 < len(list(_until_blown(losses))) < 35


# Real steps


def test_what_is_suggested_trains_and_a_hundred_times_that_does_not(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**PLAIN, "data.dataset": str(photos)})
    found = find_lr(chosen)
    assert len(found.losses) < STEPS, "it stopped when the loss had blown up"
    good = chosen.with_settings(found.settings)
    losses = list(LRTrial(good).losses([1.0] * 40))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    worse = list(LRTrial(good).losses([100.0] * 40))
    assert len(worse) < 40 or np.mean(worse[-8:]) > 1.5 * np.mean(losses[-8:]), "it diverges, or all units die"


def test_it_works_with_muon(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**TINY, "data.dataset": str(photos), "train.batch_size": 8})
    settings = find_lr(chosen).settings
    assert set(settings) == {"optimizer.lr", "optimizer.muon_lr"}
    losses = list(LRTrial(chosen.with_settings(settings)).losses([1.0] * 30))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_first_steps_are_those_of_the_training(photos: Path, tmp_path: Path) -> None:
    settings = {
        **TINY,
        "train.batch_size": 8,
        "train.epochs": 1,
        "schedule.kind": "constant",
        "augment.alternating_flip": False,
    }
    trained = alexnet.train(photos, out=tmp_path / "run", settings=settings)
    trial = LRTrial(trained.recipe)
    losses = list(trial.losses([1.0] * 4))  # an epoch
    assert np.mean(losses) == pytest.approx(float(metrics(trained.path)[0]["train_loss"]), rel=0.05), (
        "but for the dropout's draws"
    )


def test_the_same_curve_every_time(photos: Path) -> None:
    chosen = recipe.load("fast").with_settings({**TINY, "data.dataset": str(photos)})
    one, other = (list(LRTrial(chosen).losses([1.0] * 3)) for _ in range(2))
    assert one == other


def test_too_few_images_for_a_batch_are_refused(photos: Path) -> None:
    changes = {"data.dataset": str(photos), "train.batch_size": 500, "train.last_batch": "drop", **{"model.width": 1 / 16}}
    with pytest.raises(RecipeError, match=r"train\.batch_size is 500, but 28 images train"):
        LRTrial(recipe.load("fast").with_settings(changes))


# The command


def test_the_command_draws_a_curve_prints_the_line_to_train_with_and_trains_nothing(photos: Path, tmp_path: Path) -> None:
    done = run("train", photos, "--find-lr", "--out", tmp_path / "run", *TINY_SETS)
    assert [path.name for path in tmp_path.iterdir()] == ["run-lr.png"]
    with Image.open(tmp_path / "run-lr.png") as figure:
        assert figure.width > 1000
    line = done.stdout.splitlines()[-1]
    assert line.startswith("train ")
    command = shlex.split(line)[2:]
    assert command[:2] == ["train", str(photos)]
    assert "--find-lr" not in command
    assert sum("optimizer.lr=" in part or "optimizer.muon_lr=" in part for part in command) == 2
    run(*command, "--epochs", 1)
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_command_prints_json(photos: Path, tmp_path: Path) -> None:
    found = json.loads(run("train", photos, "--find-lr", "--out", tmp_path / "run", *TINY_SETS, "--json").stdout)
    assert list(found) == ["settings", "rises_from", "steps", "figure"]
    assert [list(step) for step in found["steps"]] == [["lr", "loss", "smooth"]] * len(found["steps"])
    assert found["figure"] == str(tmp_path / "run-lr.png")
    assert "keeps its recipe" in run("train", "--resume", tmp_path, "--find-lr", code=2).stderr
