"""The rate over time, the three forms of SGD, what stays frozen, and a training by each recipe."""

from __future__ import annotations

import signal
import time
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import alexnet
from alexnet import recipe
from alexnet.data.batches import Batch
from alexnet.errors import AlexNetError, RecipeError
from alexnet.recipe import Augment, Optimizer, Schedule
from alexnet.run import RunFolder
from alexnet.training import job
from alexnet.training.loop import Trainer
from alexnet.training.optimizer import SGD, build_optimizer, set_rate
from alexnet.training.schedule import EarlyStop, Plateau, rate_at, table_at
from conftest import picture
from test_train import metrics

NARROW = {
    **{"model.width": 1 / 16, "model.whiten": False, "images.input": 67, "train.batch": 8, "train.precision": "float32"},
    "augment.alternate": False,
}


def started(out: Path, photos: Path, name: str = "fast", **changes: Any) -> list[dict[str, str]]:
    """Train without a report; return the rows of `metrics.csv`."""
    made = recipe.load(name).with_settings({"data.dataset": str(photos), **NARROW, **changes})
    job.start(made, out, "cpu", time.monotonic())
    return metrics(out)


def rates(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["rate"]) for row in rows]


# The rate


def test_rows_of_the_table_add_up_and_later_ones_win() -> None:
    rows = [
        {"epoch": 7, "rate_factors": {"bias": 3.0}},
        {"epoch": 3, "rate": 0.1, "rate_factors": {"bias": 2.0, "fc6": 0.5}},
        {"epoch": 5, "colour_noise": 0.0},
    ]
    schedule = Schedule(kind="constant", table=rows)
    assert [rate_at(schedule, 1.0, 0.5, epoch) for epoch in (1, 2, 3, 9)] == [1.0, 1.0, 0.1, 0.1]
    assert table_at(schedule, 2).rate_factors == {}
    assert table_at(schedule, 3).rate_factors == {"bias": 2.0, "fc6": 0.5}
    last = table_at(schedule, 100)
    assert (last.rate, last.colour_noise, last.rate_factors) == (0.1, 0.0, {"bias": 3.0, "fc6": 0.5})
    assert table_at(schedule, 4).colour_noise is None, "as the recipe says until then"


@given(st.integers(1, 200), st.integers(1, 40), st.floats(0.01, 0.99))
def test_steps_multiply_the_rate_every_so_many_epochs(epoch: int, every: int, factor: float) -> None:
    wanted = 0.3
    for passed in range(2, epoch + 1):
        wanted *= factor if passed % every == 1 % every else 1
    found = rate_at(Schedule(kind="step", every=every, factor=factor), 0.3, 0.9, epoch)
    assert found == pytest.approx(wanted, rel=1e-9)


@given(st.just(0.0) | st.floats(1e-3, 0.99), st.floats(0, 1))
def test_one_cycle_is_one_line_up_and_one_down(warmup: float, share: float) -> None:
    wanted = np.interp(share, [0, warmup, 1], [0 if warmup else 1, 1, 0])
    assert rate_at(Schedule(warmup=warmup), 1.0, share, 1) == pytest.approx(wanted, abs=1e-9)


EIGHTHS = st.integers(0, 24).map(lambda n: n / 8)  # exact in float32, in which Keras compares


@given(st.lists(EIGHTHS, max_size=40), st.integers(1, 5), EIGHTHS)
def test_stopping_early_waits_for_a_better_figure(figures: list[float], patience: int, threshold: float) -> None:
    early, best, last = EarlyStop(patience, threshold), float("inf"), 0
    for epoch, figure in enumerate(figures, 1):
        if figure < best - threshold:
            best, last = figure, epoch
        assert early.update(figure) == (epoch - last >= patience)


@given(st.lists(EIGHTHS, max_size=40), st.integers(1, 5), EIGHTHS)
def test_a_plateau_never_raises_the_rate_nor_passes_its_floor(figures: list[float], patience: int, floor: float) -> None:
    plateau = Plateau(rate=1.0, factor=0.5, patience=patience, floor=floor)
    before = 1.0
    for figure in figures:
        now = plateau.update(figure)
        assert now in (before, max(before / 2, floor))
        assert min(floor, 1.0) <= now <= before
        before = now


def test_a_plateau_lowers_the_rate_of_a_training_as_its_losses_say(photos: Path, tmp_path: Path) -> None:
    for threshold in (0.02, 5.0):  # with the second, no epoch after the first is better
        changes = {"schedule.kind": "plateau", "schedule.patience": 1, "schedule.threshold": threshold, "schedule.factor": 0.5}
        more = {"train.epochs": 6, "optimizer.rate": 0.02, "schedule.floor": 0.006}
        rows = started(tmp_path / str(threshold), photos, **changes, **more)
        best, rate, wanted = float("inf"), 0.02, []
        for row in rows:
            wanted.append(rate)
            if float(row["val_loss"]) < best - threshold:
                best = float(row["val_loss"])
            else:
                rate = max(rate / 2, 0.006)
        assert rates(rows) == pytest.approx(wanted)
    assert rates(rows) == [0.02, 0.02, 0.01, 0.006, 0.006, 0.006]


@pytest.mark.parametrize(("metric", "rate"), [("val_error", 0.003), ("train_loss", 1e-9)])
def test_training_ends_when_its_figures_no_longer_fall(metric: str, rate: float, photos: Path, tmp_path: Path) -> None:
    """The error of four images falls four times at most; at such a rate the loss moves by chance alone."""
    changes = {"stop.metric": metric, "stop.patience": 2, "train.epochs": 12, "schedule.kind": "constant"}
    rows = started(tmp_path / "run", photos, **changes, **{"optimizer.rate": rate})
    figures = [1 - float(row["val_top1"]) if metric == "val_error" else float(row[metric]) for row in rows]
    assert len(rows) < 12
    assert len(rows) == figures.index(min(figures)) + 1 + 2, "two epochs after the best"
    assert alexnet.load(tmp_path / "run").summary["epochs"] == len(rows)


def test_the_table_sets_the_rates_of_a_training(photos: Path, tmp_path: Path) -> None:
    table = [{"epoch": 2, "rate": 0.004}, {"epoch": 3, "rate_factors": {"conv1": 0.0}}, {"epoch": 4, "rate": 0.001}]
    rows = started(
        tmp_path / "run", photos,
        **{"schedule.kind": "constant", "schedule.table": table, "optimizer.rate": 0.01, "train.epochs": 4,
           "train.save_epochs": "cp-{epoch:02d}", "optimizer.momentum": 0.0, "optimizer.nesterov": False},
    )  # fmt: skip
    assert rates(rows) == [0.01, 0.004, 0.004, 0.001]
    names = sorted(path.name for path in (tmp_path / "run" / "epochs").iterdir())
    assert names == [f"cp-{epoch:02}.safetensors" for epoch in range(1, 5)]
    kept = [safetensors.torch.load_file(tmp_path / "run" / "epochs" / name) for name in names]
    same = [torch.equal(a["features.conv1.weight"], b["features.conv1.weight"]) for a, b in pairwise(kept)]
    assert same == [False, True, True], "a factor of 0 freezes"
    assert not torch.equal(kept[2]["features.conv2.weight"], kept[3]["features.conv2.weight"])


def test_colour_noise_is_the_recipes_until_the_table_says_otherwise(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, set[float]] = {}
    step = Trainer._step

    def watched(self: Trainer, batch: Batch, changes: Augment) -> None:
        drawn.setdefault(self.at.epoch, set()).add(changes.colour_noise)
        step(self, batch, changes)

    monkeypatch.setattr(Trainer, "_step", watched)
    table = [{"epoch": 2, "rate_factors": {"bias": 2.0}}, {"epoch": 3, "colour_noise": 0.0}]
    started(tmp_path / "run", photos, **{"augment.colour_noise": 0.1, "schedule.table": table, "train.epochs": 4})
    assert drawn == {1: {0.1}, 2: {0.1}, 3: {0.0}, 4: {0.0}}


# The step


def walked(optimizer: Callable[[Tensor], torch.optim.Optimizer], steps: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Return a weight of ones after steps of (gradient, rate)."""
    weight = torch.ones(3, dtype=torch.float64)
    made = optimizer(weight)
    for gradient, rate in steps:
        weight.grad = torch.from_numpy(gradient)
        made.param_groups[0]["lr"] = rate
        made.step()
    return weight.numpy()


def by_formula(form: str, nesterov: bool, momentum: float, decay: float, steps: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """The formulas of the paper (section 5) and of Keras 3, in NumPy."""
    w, v = np.ones(3), np.zeros(3)
    for gradient, rate in steps:
        if form == "keras":
            w = w - rate * decay * w
        else:
            gradient = gradient + decay * w
        v = momentum * v - rate * gradient
        w = w + (momentum * v - rate * gradient if nesterov else v)
    return w


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[np.ndarray, float]]:
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    number = draw(st.integers(1, 8))
    return [(chance.normal(size=3), rate) for rate in draw(st.lists(st.floats(0, 0.5), min_size=number, max_size=number))]


@given(walks(), st.sampled_from(["keras", "2012"]), st.booleans(), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 0.5))
def test_steps_follow_the_formulas(steps: Any, form: str, nesterov: bool, momentum: float, decay: float) -> None:
    def made(weight: Tensor) -> torch.optim.Optimizer:
        group = {"params": [weight], "weight_decay": decay}
        return SGD([group], 0.1, momentum, form=form, nesterov=nesterov)

    np.testing.assert_allclose(walked(made, steps), by_formula(form, nesterov, momentum, decay, steps), rtol=1e-12)


@given(walks(), st.booleans(), st.sampled_from([0.5, 0.9]), st.floats(0, 0.5), st.floats(0.01, 0.3))
def test_at_one_rate_the_2012_form_is_pytorchs(steps: Any, nesterov: bool, momentum: float, decay: float, rate: float) -> None:
    steps = [(gradient, rate) for gradient, _ in steps]
    ours = walked(lambda w: SGD([{"params": [w], "weight_decay": decay}], rate, momentum, form="2012", nesterov=nesterov), steps)  # fmt: skip  # noqa: E501
    theirs = walked(lambda w: torch.optim.SGD([w], rate, momentum, weight_decay=decay, nesterov=nesterov), steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@given(walks(), st.booleans(), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 0.5))
def test_the_pytorch_form_is_pytorchs_at_any_rates(steps: Any, nesterov: bool, momentum: float, decay: float) -> None:
    nesterov = nesterov and momentum > 0
    groups = {"weight_decay": decay}
    ours = walked(lambda w: SGD([{"params": [w], **groups}], 0.1, momentum, form="pytorch", nesterov=nesterov), steps)
    theirs = walked(lambda w: torch.optim.SGD([w], 0.1, momentum, weight_decay=decay, nesterov=nesterov), steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_where_the_rate_falls_the_2012_form_coasts_on_and_pytorchs_does_not() -> None:
    steps = [(np.ones(3), 0.1), (np.zeros(3), 0.0)]
    velocity = walked(lambda w: SGD([{"params": [w]}], 0.1, 0.9, form="2012", nesterov=False), steps)
    pytorch = walked(lambda w: torch.optim.SGD([w], 0.1, 0.9), steps)
    np.testing.assert_allclose(velocity, 1 - 0.1 - 0.09)
    np.testing.assert_allclose(pytorch, 1 - 0.1)


@pytest.mark.parametrize("form", ["pytorch", "keras", "2012"])
@pytest.mark.parametrize("decays", ["weights", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_recipes_optimizer_moves_every_weight_as_its_formula_says(form: str, decays: str, momentum: float) -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    settings = Optimizer(
        form=form, decays=decays, momentum=momentum, nesterov=True, weight_decay=0.3, rate=0.1, rate_factors={"bias": 2.0}
    )  # type: ignore[arg-type]
    optimizer = build_optimizer(network, settings)
    before = {name: p.detach().double().numpy() for name, p in network.named_parameters()}
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    for _ in range(2):
        set_rate(optimizer, 0.1, settings.rate_factors)
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()
    for name, parameter in network.named_parameters():
        is_bias = name.endswith("bias") and "norm" not in name
        decay = 0.3 if decays == "all" or (not is_bias and "norm" not in name) else 0.0
        g, w, v, rate = gradients[name].double().numpy(), before[name], 0.0, 0.2 if is_bias else 0.1
        for _ in range(2):
            w, total = (w * (1 - rate * decay), g) if form == "keras" else (w, g + decay * w)
            v = momentum * v - rate * total
            w = w + momentum * v - rate * total
        np.testing.assert_allclose(parameter.detach().numpy(), w, atol=2e-6, err_msg=name)


def test_factors_of_a_layer_its_kind_and_both_multiply() -> None:
    optimizer = build_optimizer(alexnet.AlexNet("cifar10", 3, width=1 / 16), Optimizer())
    set_rate(optimizer, 0.5, {"conv2": 0.1, "bias": 2.0, "conv2.bias": 10.0, "conv3.weight": 0.0, "norm1.bias": 3.0})
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    special = {"conv2.weight": 0.05, "conv2.bias": 1.0, "conv3.weight": 0.0, "norm1.bias": 1.5}
    plain = {name: 1.0 if name.endswith("bias") and not name.startswith("norm") else 0.5 for name in found}
    assert found == pytest.approx({**plain, **special}), "a norm's shift is no bias, unless it is named"
    set_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}, "nothing stays of factors before"


def test_unknown_names_of_layers_are_refused_with_the_nearest(photos: Path, tmp_path: Path) -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    for name, close in (("conv1.wieght", "conv1.weight"), ("biases", "bias"), ("fc9", "fc")):
        with pytest.raises(RecipeError, match=f"optimizer.rate_factors names {name!r}: did you mean '{close}"):
            build_optimizer(network, Optimizer(rate_factors={name: 0.1}))
    with pytest.raises(RecipeError, match=r"schedule\.table names 'cnov1': did you mean 'conv1'"):
        started(tmp_path / "run", photos, **{"schedule.table": [{"epoch": 2, "rate_factors": {"cnov1": 0.0}}]})


# Frozen layers


@pytest.mark.parametrize("form", ["pytorch", "keras"])
def test_frozen_layers_and_their_statistics_stay_and_take_no_gradient(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, step = [], Trainer._step

    def watched(self: Trainer, *args: Any) -> None:
        step(self, *args)
        stepped.append({name: p.grad is not None for name, p in self.network.named_parameters()})

    monkeypatch.setattr(Trainer, "_step", watched)
    changes = {"optimizer.frozen": "norm3", "optimizer.form": form, "optimizer.decays": "all", "train.epochs": 2}
    started(tmp_path / "run", photos, **changes)
    torch.manual_seed(0)
    first = alexnet.AlexNet("cifar10", 2, width=1 / 16, batch_norm_momentum=0.1, dropout=0.1).state_dict()
    after = alexnet.load(tmp_path / "run").network.state_dict()
    still = {
        name for name in first if any(f".{layer}." in name for layer in ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3"))
    }
    assert len(still) == 21
    assert {name for name in first if torch.equal(first[name], after[name])} == still
    for gradients in stepped:
        assert {name for name, there in gradients.items() if not there} == still & set(gradients)


def test_what_leaves_nothing_to_train_is_refused() -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    with pytest.raises(RecipeError, match=r"optimizer\.frozen is 'fc8'.* the last layer"):
        build_optimizer(network, Optimizer(frozen="fc8"))
    with pytest.raises(RecipeError, match=r"optimizer\.frozen is 'pol5': did you mean 'pool5'"):
        build_optimizer(network, Optimizer(frozen="pol5"))
    build_optimizer(network, Optimizer(frozen="dropout7"))
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


# Stopped and taken up again


RESUMED: dict[str, dict[str, Any]] = {
    "mean image, plateau, noise table, frozen": {
        **{"images.stored": 40, "images.crop": 36, "images.mean": "image", "augment.crop": True, "augment.together": 3},
        **{"schedule.kind": "plateau", "schedule.patience": 1, "schedule.threshold": 5.0, "optimizer.form": "2012"},
        **{"schedule.table": [{"epoch": 2, "colour_noise": 0.2, "rate_factors": {"bias": 2.0}}], "augment.colour_noise": 0.1},
        **{"optimizer.frozen": "pool1", "train.save_epochs": "cp-{epoch}", "train.last_batch": "short", "train.epochs": 4},
    },
    "full images, early stop, Keras": {
        **{"images.stored": "full", "images.fit": "stretch", "images.mean": "one", "augment.rotation": 10.0},
        **{"optimizer.form": "keras", "optimizer.momentum": 0.0, "train.last_batch": "drop", "train.loss": "binary"},
        **{"stop.metric": "val_error", "stop.patience": 2, "schedule.kind": "constant", "train.epochs": 12},
        **{"schedule.table": [{"epoch": 2, "rate": 0.03, "colour_noise": 0.1}], "train.keep": "last"},
    },
    "no momentum": {"optimizer.momentum": 0.0, "schedule.kind": "step", "schedule.every": 1, "train.epochs": 2},
}


@pytest.mark.parametrize("stop_after", [2, 6])
@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_run_ends_with_the_same_bytes(
    name: str, stop_after: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = started(tmp_path / "whole", photos, **RESUMED[name])
    steps, step = [0], Trainer._step

    def counted(self: Trainer, *args: Any) -> None:
        step(self, *args)
        steps[0] += 1
        if steps[0] == stop_after:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(AlexNetError, match="go on with"):
        started(tmp_path / "stopped", photos, **RESUMED[name])
    job.resume(tmp_path / "stopped", "cpu", time.monotonic())
    assert metrics(tmp_path / "stopped") == rows
    if "stop.patience" in RESUMED[name]:
        assert len(rows) < RESUMED[name]["train.epochs"], "it ended early"
    if "schedule.patience" in RESUMED[name]:
        assert len(set(rates(rows))) > 1, "the plateau lowered the rate"
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 1 + (4 if "train.save_epochs" in RESUMED[name] else 0)
    for file in files:
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    recipes = [RunFolder(tmp_path / run).recipe.read_text() for run in ("whole", "stopped")]
    assert recipes[0] == recipes[1]


# Recipes: what contradicts itself, and what survives


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["images.mean=each"], "images.mean is 'each' and images.deviation 'channels': 'each' goes with 'each'"),
        (["images.deviation=each"], "images.mean is 'channels' and images.deviation 'each': 'each' goes with 'each'"),
        (["augment.crop=true"], "augment.crop is true, but images.crop says no size to cut out"),
        (["images.stored=64", "images.crop=65"], "images.crop is 65, but images are stored at 64"),
        (["augment.zoom=[1.5, 0.8]"], "augment.zoom is [1.5, 0.8], but the smaller factor comes first"),
        (["schedule.table=[{epoch=2, rate=0.1}]"], "schedule.table sets rates, but schedule.kind is 'one-cycle'"),
        (["images.stored=full", "images.crop=129"], "images.crop is 129, but full images are scaled to images.input, 128"),
        (["images.mean=each", "images.deviation=each", "augment.colour_noise=0.1"], "augment.colour_noise is 0.1, but"),
        (["images.deviation=0"], "images.deviation is 0, but should be greater than 0"),
        (["images.deviation=[0.2, -0.2, 0.2]"], "images.deviation is [0.2, -0.2, 0.2], but should be"),
        (["images.mean=[1, 2]"], "images.mean is [1, 2], but should be a valid number or given in full or"),
        (["augment.zoom=[0.8]"], "augment.zoom is [0.8], but should be given in full"),
        (["schedule.table=[{rate=0.1}]"], "schedule.table.0.epoch is {'rate': 0.1}, but should be given in full"),
        (["optimizer.rate_factors={fc6=-1}"], "optimizer.rate_factors.fc6 is -1, but should be greater than or equal to 0"),
        (["schedule.table=[{epoch=1, rate_factors={fc6=-1}}]"], "schedule.table.0.rate_factors.fc6 is -1, but should be"),
        (["train.save_epochs=weights"], "train.save_epochs is 'weights', but should be a file's name with a place"),
        (["train.save_epochs=../cp-{epoch}"], "train.save_epochs is '../cp-{epoch}', but should be"),
        (["train.save_epochs={epoch.__class__}"], "train.save_epochs is '{epoch.__class__}', but should be"),
        (["train.tensorboard=/logs"], "train.tensorboard is '/logs', but should be a folder inside the run"),
        (["train.tensorboard=logs/../.."], "train.tensorboard is 'logs/../..', but should be a folder inside the run"),
        (["schedule.table=[{epoch=0}]"], "schedule.table.0.epoch is 0, but should be greater than or equal to 1"),
        (["schedule.table=[{epoch=1, rates=1.0}]"], "no setting 'schedule.table.0.rates': did you mean 'rate'?"),
        (["schedule.table=[{epoch=1}, {epoch=2, rate=-1}]"], "schedule.table.1.rate is -1, but should be greater than 0"),
        (["images.stored=big"], "images.stored is 'big', but should be a valid integer"),
        (["images.levels=128"], "images.levels is 128, but should be 1 or 255"),
        (["images.mean=average"], "images.mean is 'average', but should be a valid number"),
        (["optimizer.form=adam"], "optimizer.form is 'adam', but should be 'pytorch', 'keras' or '2012'"),
        (["stop.metric=val_top1"], "stop.metric is 'val_top1', but should be 'train_loss', 'val_loss' or 'val_error'"),
        (["data.split=random"], "data.split is 'random', but should be 'hash', 'first', 'keras-tail' or 'train_test_split'"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_one_line_with_its_key_and_value(settings: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load("fast").with_settings(recipe.settings_from(settings))
    assert str(caught.value).startswith(f"recipe: {line}")
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_the_set_that_is_dropped_says_so(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch is 64, but 28 images train"):
        started(tmp_path / "run", photos, **{"train.batch": 64, "train.last_batch": "drop"})
    assert not (tmp_path / "run").exists(), "the name is free again"


changes = st.fixed_dictionaries(
    {"epoch": st.integers(1, 99)},
    optional={
        "rate": st.floats(1e-9, 10),
        "rate_factors": st.dictionaries(st.sampled_from(["bias", "conv1", "fc8.weight"]), st.floats(0, 9)),
        "colour_noise": st.floats(0, 1),
    },
)


@given(st.lists(changes, max_size=4), st.sampled_from([0.5, (0.1, 0.2, 0.3), "one", "image"]), st.none() | st.integers(1, 64))
@settings(max_examples=40)
def test_a_table_and_what_is_none_survive_writing_and_reading(table: Any, mean: Any, crop: int | None) -> None:
    tree = {"schedule": {"kind": "constant", "table": table}, "images": {"mean": mean, "crop": crop, "stored": 64}}
    made = recipe.parse(tree, "made")
    again = recipe.parse(tomllib.loads(made.to_toml()), "again")
    assert again == made
    assert again.with_settings({}) == made
    assert (made.images.crop, made.model.weights) == (crop, "")


# A training by each recipe


@pytest.fixture(scope="module")
def owt(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A narrow run of torchvision's network, for `finetune` to start from."""
    out = tmp_path_factory.mktemp("owt") / "run"
    started(out, photos, **{"model.variant": "owt", "train.epochs": 1})
    return out


@pytest.mark.parametrize("name", [name for name in recipe.names() if name != "fast"])
def test_every_recipe_trains_measures_itself_and_predicts(name: str, photos: Path, tmp_path: Path, owt: Path) -> None:
    """On 40 pictures, narrow; the geometry of the images is the recipe's."""
    small = {"model.width": 1 / 16, "train.epochs": 2, "train.batch": 4}
    start = {"weights": owt} if name == "finetune" else {}
    run = alexnet.train(photos, recipe=name, out=tmp_path / "run", settings=small, **start)
    assert run.report().stat().st_size > 10_000
    asked = recipe.load(name)
    assert (run.card.preprocessing.input, run.card.preprocessing.crop) == (asked.images.input, asked.images.crop)
    assert run.card.variant == asked.model.variant
    rows = metrics(run.path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    split = "test" if asked.data.test else "val"
    assert run.evaluate().to_json() == run.summary["test" if asked.data.test else "validation"]
    assert 0 <= run.evaluate(split=split, views=10).top1 <= 1
    picture(0, 7, (61, 33)).convert("L").save(tmp_path / "grey.png")
    picture(0, 7, (1, 1)).save(tmp_path / "one.png")
    for answer in run.predict([tmp_path / "grey.png", tmp_path / "one.png"]):
        assert sum(entry["probability"] for entry in answer["predictions"]) == pytest.approx(1)
    assert recipe.load(str(run.path / "recipe.toml")) == run.recipe


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 60)])
@pytest.mark.parametrize("stored", ["auto", "full", 9])
def test_the_smallest_pictures_train(size: tuple[int, int], stored: Any, tmp_path: Path) -> None:
    for kind, label in enumerate(("a", "b")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            picture(kind, i, size).save(tmp_path / "data" / label / f"{i}.png")
    random = {"augment.rotation": 20.0, "augment.shift": 0.5, "augment.flip": True, "augment.colour_noise": 0.1}
    rows = started(tmp_path / "run", tmp_path / "data", **{"images.stored": stored, "train.epochs": 1}, **random)
    assert np.isfinite(float(rows[0]["train_loss"]))
    assert np.isfinite(alexnet.load(tmp_path / "run").evaluate(views=10).loss)
