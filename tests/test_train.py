"""Training: reproducible, keeps the best epoch, works with every recipe."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from proof.pictures import picture

import alexnet
from alexnet.cli.output import print_summary
from alexnet.data.dataset import open_dataset, resolve
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.errors import DataError, DivergedError, RecipeError, RunError, VariantError
from alexnet.inference.metrics import cross_entropy, sigmoid_cross_entropy
from alexnet.recipe import Data, names
from alexnet.recipe import load as load_recipe
from conftest import SEED, SHORT, TINY, metrics, mostly_long, started, tell_time_by_steps, weights


def test_run_folder_contents(trained: alexnet.Run) -> None:
    names = {path.name for path in trained.path.iterdir()}
    assert names == {
        *("recipe.toml", "model.safetensors", "model.json", "metrics.csv", "tensorboard"),
        *("summary.json", "predictions.csv", "environment.json", "report.html", "log.txt"),
    }
    assert [row["epoch"] for row in metrics(trained.path)] == [str(i) for i in range(1, 9)]
    environment = json.loads((trained.path / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__


def test_train_learns(trained: alexnet.Run) -> None:
    assert trained.summary["test"]["top1"] == 1.0, "stripes across against stripes down"
    rows = metrics(trained.path)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_train_summary_keys(trained: alexnet.Run) -> None:
    assert list(trained.summary) == [
        *("run", "recipe", "variant", "epochs", "seconds", "best_epoch", "kept", "validation", "test", "skipped")
    ]
    assert (trained.summary["recipe"], trained.summary["variant"], trained.summary["epochs"]) == ("fast", "cifar10", 8)


def test_train_test_figures_equal_evaluate(trained: alexnet.Run) -> None:
    assert trained.evaluate().to_json() == trained.summary["test"]
    assert trained.evaluate(split="val").to_json() == trained.summary["validation"]


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("owt", {"model.norm": "local"}, "model.norm has no effect: the variant 'owt' has no normalisation"),
        ("four-layer", {"model.norm": "batch"}, "model.norm has no effect: the variant 'four-layer'"),
        ("four-layer", {"model.dropout": 0.5}, "model.dropout has no effect: the variant 'four-layer' has no dropout"),
        ("four-layer", {"model.dense_units": 9}, "model.dense_units has no effect: the variant 'four-layer' has no dense"),
    ],
)
def test_settings_without_effect_are_refused(
    tmp_path: Path, photos: Path, variant: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(VariantError, match=message):
        alexnet.train(photos, out=tmp_path / "run", settings={"model.variant": variant, **settings})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["binary", "cross-entropy"])
def test_validation_loss_is_the_loss_that_is_trained(tmp_path: Path, photos: Path, loss: str) -> None:
    run = alexnet.train(photos, out=tmp_path / "run", settings={**SHORT, "train.loss": loss, "train.keep": "last"})
    evaluation = run.evaluate(split="val")
    of = {"binary": sigmoid_cross_entropy, "cross-entropy": cross_entropy}
    assert float(metrics(run.path)[-1]["val_loss"]) == pytest.approx(of[loss](evaluation.logits, evaluation.targets), rel=1e-4)
    assert evaluation.loss == pytest.approx(cross_entropy(evaluation.logits, evaluation.targets))


@pytest.mark.parametrize("split", ["first", "hash"])
def test_validation_set_without_a_class_is_noted(tmp_path: Path, photos: Path, split: str) -> None:
    """The first images of folders that are read class by class are all of one class."""
    run = alexnet.train(photos, out=tmp_path / "run", settings={**SHORT, "data.split": split})
    note = f'note: the validation set has no images of {run.labels[1]!r}: data.split = "hash" holds out images of every class'
    assert (note in (run.path / "log.txt").read_text(encoding="utf-8")) == (split == "first")


def test_split_that_takes_a_whole_class_is_refused(tmp_path: Path, photos: Path) -> None:
    """With or without a test folder, the message names the setting, not the folders."""
    declared = tmp_path / "declared"
    for part in ("train", "test"):
        shutil.copytree(photos, declared / part)
    for data in (photos, declared):
        with pytest.raises(DataError, match=r"split = 'first' takes every image of 'across' .* data.split=hash takes some"):
            split(open_table(data), Data(split="first", validation=0.6, test=0.0))


def test_train_from_resolved_recipe_is_bit_identical(trained: alexnet.Run, tmp_path: Path) -> None:
    alexnet.train(recipe=trained.path / "recipe.toml", out=tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(trained.path)
    assert weights(tmp_path / "again") == weights(trained.path)


def test_train_does_not_depend_on_workers(short: Path, photos: Path, tmp_path: Path) -> None:
    for workers in (1, 4):
        out = tmp_path / str(workers)
        settings = {**TINY, "train.epochs": 3, "train.batch_size": 8, "data.workers": workers}
        alexnet.train(photos, out=out, settings=settings)
        assert metrics(out) == metrics(short)
        assert weights(out) == weights(short)


def test_train_with_another_seed_differs(short: Path, photos: Path, tmp_path: Path) -> None:
    alexnet.train(photos, out=tmp_path / "r", settings={**SHORT, "train.seed": SEED + 1})
    assert metrics(tmp_path / "r") != metrics(short)


# What is kept


def test_keep_best_and_keep_last(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {}
    for keep in ("best", "last"):
        settings = {**TINY, "train.epochs": 4, "train.keep": keep, "schedule.warmup": 0.0, "optimizer.lr": 0.2}
        runs[keep] = alexnet.train(photos, out=tmp_path / keep, settings=settings)
    rows = metrics(tmp_path / "best")
    order = [(float(row["val_top1"]), -float(row["val_loss"])) for row in rows]
    best = order.index(max(order))
    assert runs["best"].summary["best_epoch"] == best + 1
    assert runs["best"].summary["validation"]["loss"] == pytest.approx(float(rows[best]["val_loss"]), rel=1e-5)
    assert runs["last"].summary["best_epoch"] == 4
    assert runs["last"].summary["validation"]["loss"] == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-5)
    assert [runs[keep].summary["kept"] for keep in runs] == ["best", "last"]
    capsys.readouterr()
    for keep, words in (("best", f"epoch {best + 1} kept, the best on validation"), ("last", "epoch 4 kept, the last")):
        print_summary(runs[keep].summary)
        assert f", 4 epochs, weights of {words}\n" in capsys.readouterr().out


@pytest.mark.parametrize("stopped", [False, True])
def test_nan_loss_ends_the_training(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """It names the step, though later ones are taken until the loss is read; nothing of them is saved, after Ctrl-C either."""
    from alexnet.training.trainer import Trainer

    step = Trainer.train_step

    def broken(self: Trainer, *args: Any) -> None:
        if (self.state.epoch, self.state.batch) == (2, 1):
            with torch.no_grad():
                self.network.head.weight.fill_(math.inf)
        step(self, *args)
        if stopped and (self.state.epoch, self.state.batch) == (2, 3):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", broken)
    with pytest.raises(DivergedError, match=r"the loss is nan in epoch 2, batch 2; .*epoch 1 are kept.*--set optimizer\.lr="):
        alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    kept = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_nan_in_the_last_step_is_found_by_validation(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet.training.trainer import Trainer

    evaluate = Trainer.evaluate

    def broken(self: Trainer, split: str, temperature: float = 1.0) -> Any:
        with torch.no_grad():
            self.network.head.weight.fill_(math.nan)
        return evaluate(self, split, temperature)

    monkeypatch.setattr(Trainer, "evaluate", broken)
    with pytest.raises(DivergedError, match=r"nan in epoch 1, in validation.*--set optimizer\.lr="):
        alexnet.train(photos, out=tmp_path / "run", settings=TINY)


def test_train_reports_accuracy_no_better_than_the_majority_class(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"cat": {"images": 60}, "dog": {"images": 40}}
    result = {"images": 100, "loss": 0.7, "top1": 0.66, "top5": 1.0, "per_class": labels}
    for low, count in ((0.56, 1), (0.61, 0)):
        evaluation = result | {"top1_interval": [low, 0.75]}
        summary = {"seconds": 7, "epochs": 1, "best_epoch": 1, "kept": "best", "run": "runs/a"}
        print_summary({"validation": evaluation, "test": None, **summary})
        printed = capsys.readouterr().out
        assert printed.count("not significantly better than the majority-class baseline") == count
        assert "1 epoch," in printed


def test_train_minutes_ends_in_time(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = tell_time_by_steps(monkeypatch, 0.25)
    settings = {**TINY, "train.minutes": 0.15, "train.batch_size": 8}
    run = alexnet.train(photos, out=tmp_path / "run", settings=settings, started=0.0)
    assert run.summary["epochs"] > 1
    assert 4 < now() < 9, "nine seconds, some of them reserved for evaluation"
    assert len((run.path / "journal.txt").read_text().splitlines()) > run.summary["epochs"]
    assert float(metrics(tmp_path / "run")[-1]["lr"]) < 0.3 * run.recipe.optimizer.lr


# Pieces


def test_auto_cache_size_and_horizontal_flip() -> None:
    table = open_table("digits")
    recipe = resolve(load_recipe("fast"), table)
    assert recipe.images.cache_size == 8
    assert recipe.augment.horizontal_flip is False
    dataset = open_dataset(table, recipe.images.resolved(), 2, recipe.data)
    assert dataset.table.counts() == {"train": 1259, "val": 179, "test": 359}


def test_too_small_input_is_refused_before_decoding(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"images\.input is 50, but 'cifar10' needs 67 pixels or more"):
        alexnet.train(photos, out=tmp_path / "run", settings={"images.input": 50})
    assert not (tmp_path / "run").exists(), "the name is free again"


def test_train_refuses_an_out_that_is_not_empty(short: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"already holds a finished run: name another --out"):
        alexnet.train(photos, out=short)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(RunError, match="not empty"):
        alexnet.train(photos, out=tmp_path)
    assert os.listdir(tmp_path) == ["thesis.doc"]


def test_train_first_losses_equal_a_plain_loop(photos: Path, tmp_path: Path) -> None:
    """Two steps in float32 without augmentation and dropout, compared with PyTorch written out by hand.

    The activation is tanh: rounding may decide whether a ReLU passes a gradient.
    """
    side = 131  # at 67 pixels the last maps are single pixels, and batch norm over 14 values amplifies rounding
    settings = {
        **TINY,
        "images.input": side,
        "train.epochs": 1,
        "train.batch_size": 14,
        "train.precision": "float32",
        "model.dropout": 0.0,
        "model.activation": "tanh",
    }
    off = {
        "augment.shift": 0.0,
        "augment.horizontal_flip": False,
        "train.keep": "last",
        "model.whitening_init": False,
        "optimizer.muon_lr": 0,
    }
    run = alexnet.train(photos, out=tmp_path / "run", settings={**settings, **off, "schedule.progressive_resize": []})
    recipe = run.recipe
    dataset, _ = run.dataset(split="train")
    train = dataset.images("train")
    torch.manual_seed(SEED)
    network = alexnet.AlexNet("cifar10", 2, width=1 / 16, batch_norm_momentum=0.1, dropout=0.0, activation="tanh")
    initial = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    velocity = {p: torch.zeros_like(p) for p in network.parameters()}
    order = np.random.default_rng([SEED, 1]).permutation(len(train))
    losses = []
    for step, part in enumerate(np.array_split(order, 2)):
        x = torch.from_numpy(train.pixels.take(train.rows[part])).permute(0, 3, 1, 2) / 255
        x = (x - torch.tensor(recipe.images.mean).view(3, 1, 1)) / torch.tensor(recipe.images.std).view(3, 1, 1)
        x = torch.nn.functional.interpolate(x.float(), size=side, mode="bilinear")
        loss = torch.nn.functional.cross_entropy(network(x), torch.from_numpy(train.targets[part]), label_smoothing=0.1)
        losses.append(loss.item())
        progress = (step + 0.5) / 2
        warmup = recipe.schedule.warmup
        rate = recipe.optimizer.lr * (progress / warmup if progress < warmup else (1 - progress) / (1 - warmup))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
                layer = "fc8" if name.startswith("head") else name.split(".")[1]
                factor = recipe.optimizer.lr_scale.get(layer, 1.0)
                if parameter.ndim > 1:
                    gradient = gradient + recipe.optimizer.weight_decay * parameter
                velocity[parameter] = 0.9 * velocity[parameter] + gradient
                parameter -= rate * factor * (gradient + 0.9 * velocity[parameter])  # Nesterov
    assert float(metrics(tmp_path / "run")[0]["train_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    saved = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    for name, parameter in network.named_parameters():
        assert torch.dist(saved[name], parameter) < 1e-3 * torch.dist(initial[name], parameter), name


# Train with each recipe


@pytest.fixture(scope="module")
def owt(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A narrow run of torchvision's network for `head` and `finetune` to start from."""
    out = tmp_path_factory.mktemp("owt") / "run"
    started(out, photos, **{"model.variant": "owt", "train.epochs": 1})
    return out


@mostly_long("name", [name for name in names() if name != "fast"], "four-layer")
def test_every_recipe_trains_evaluates_and_predicts(name: str, photos: Path, tmp_path: Path, owt: Path) -> None:
    """On 40 images, with a narrow network; image sizes are the recipe's."""
    small = {"model.width": 1 / 16, "train.epochs": 2, "train.batch_size": 4}
    fitted = load_recipe(name).model.fit_head
    start = {"weights": owt} if fitted else {}
    run = alexnet.train(photos, recipe=name, out=tmp_path / "run", settings=small, **start)
    assert run.report().stat().st_size > 10_000
    asked = load_recipe(name)
    expected = alexnet.load(owt).config.preprocessing if fitted else asked.images
    size = 128 if expected.input == "auto" else expected.input  # the photos are of 40 pixels
    assert (run.config.preprocessing.input, run.config.preprocessing.crop) == (size, expected.crop)
    assert run.config.variant == asked.model.variant
    rows = metrics(run.path)
    assert [row["epoch"] for row in rows] == ([*"012"] if fitted else [*"12"])
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    split = "test" if asked.data.test else "val"
    result, told = run.evaluate().to_json(), run.summary["test" if asked.data.test else "validation"]
    if fitted:  # the codes of all images were computed together, and the number of images changes how sums are rounded
        for key in ("loss", "ece", "ece_raw"):
            assert result.pop(key) == pytest.approx(told.pop(key), rel=1e-5, abs=1e-8)
    assert result == told
    assert 0 <= run.evaluate(split=split, views=10).top1 <= 1
    picture(0, 7, (61, 33)).convert("L").save(tmp_path / "grey.png")
    picture(0, 7, (1, 1)).save(tmp_path / "one.png")
    for answer in run.predict([tmp_path / "grey.png", tmp_path / "one.png"]):
        assert sum(entry["probability"] for entry in answer["predictions"]) == pytest.approx(1)
    assert load_recipe(str(run.path / "recipe.toml")) == run.recipe


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 60)])
@mostly_long("stored", ["auto", "full", 9], "auto")
def test_train_on_smallest_images(size: tuple[int, int], stored: Any, tmp_path: Path) -> None:
    for kind, label in enumerate(("a", "b")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            picture(kind, i, size).save(tmp_path / "data" / label / f"{i}.png")
    random = {"augment.rotation": 20.0, "augment.shift": 0.5, "augment.vertical_flip": True, "augment.colour_noise": 0.1}
    rows = started(tmp_path / "run", tmp_path / "data", **{"images.cache_size": stored, "train.epochs": 1}, **random)
    assert np.isfinite(float(rows[0]["train_loss"]))
    assert np.isfinite(alexnet.load(tmp_path / "run").evaluate(views=10).loss)
