"""The learning-rate finder and training take the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet import recipe
from alexnet.training.lr_finder import LRTrial
from alexnet.training.trainer import Trainer
from conftest import NARROW, mostly_long, started

STEPS = 6  # of four an epoch
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen norms": {"optimizer.frozen": "norm3"},
    "alternate": {"augment.alternating_flip": True},
    "together": {"augment.together": 4, "augment.alternating_flip": False},
    "table": {"schedule.table": [{"epoch": 2, "lr_scale": {"bias": 2.0}, "colour_noise": 0.0}], "augment.colour_noise": 0.1},
    "growing": {"schedule.progressive_resize": [[0.9, 0.5]], "images.input": 134},
    "balanced": {"train.class_weights": "balanced", "train.loss": "binary"},
}


@mostly_long("changes", RECIPES.values(), RECIPES["table"], ids=RECIPES)
def test_lr_finder_losses_equal_training(
    changes: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    networks: list[dict[str, torch.Tensor]] = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: Any) -> None:
        before = self.state.loss_sum, self.state.images_seen
        step(self, *args)
        self.session.read_steps()
        losses.append((self.state.loss_sum - before[0]) / (self.state.images_seen - before[1]))
        if len(losses) == STEPS:
            networks.append({name: value.clone() for name, value in self.network.state_dict().items()})

    monkeypatch.setattr(Trainer, "train_step", watched)
    changes = {"schedule.kind": "constant", "model.dropout": 0.5, "train.epochs": 2, **changes}
    started(tmp_path / "run", photos, **changes)
    chosen = recipe.load("fast").with_settings({"data.dataset": str(photos), **NARROW, **changes})
    trial = LRTrial(chosen, "cpu")
    assert list(trial.losses([1.0] * STEPS)) == pytest.approx(losses[:STEPS], rel=1e-6)
    result, expected = trial._network.state_dict(), networks[0]
    assert all(torch.equal(result[name], expected[name]) for name in expected), "statistics of norms, too"
