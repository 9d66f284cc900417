"""Ablations: which trainings a study runs, that it resumes where it stopped, and how its results are summarised."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

import alexnet
from alexnet import api, recipe
from alexnet.ablation import STUDIES
from alexnet.ablation import plan as module
from alexnet.ablation.plan import Plan, find_study, make_plan, vary_settings
from alexnet.ablation.run import read_result, summarise, table
from alexnet.errors import RunError, shell_quote
from alexnet.network.alexnet import AlexNet
from alexnet.run import RunFolder
from alexnet.training import train as training
from commands import Started, error, run
from conftest import metrics, train_until_signalled, weights

SMALL = {"model.width": 1 / 16, "images.input": 67, "train.batch_size": 8, "train.epochs": 2}
VARY = ["model.dropout=0.0,0.5"]


@pytest.fixture(scope="module")
def study(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished study of two arms with two seeds, and its results; read-only."""
    out = tmp_path_factory.mktemp("study") / "out"
    return out, api.ablate(photos, vary=VARY, out=out, seeds=2, settings=SMALL)


# What is trained


def test_a_variation_trains_every_arm_with_every_seed(study: tuple[Path, dict[str, Any]]) -> None:
    out, found = study
    assert {path.name for path in out.iterdir()} == {
        *("study.json", "results.json", "table.md", "ablation.png", "ablation.svg"),
        *(f"model.dropout={value}-{seed}" for value in ("0.0", "0.5") for seed in (0, 1)),
    }
    for value in (0.0, 0.5):
        for seed in (0, 1):
            config = alexnet.load(out / f"model.dropout={value}-{seed}")
            assert (config.recipe.model.dropout, config.recipe.train.seed) == (value, seed)
            assert (config.path / "report.html").exists()
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found))
    for arm in found["arms"]:
        each = [alexnet.load(one["run"]).summary["validation"]["top1"] for one in arm["runs"]]
        assert arm["values"] == each
        assert arm["mean"] == pytest.approx(np.mean(each))
    with Image.open(out / "ablation.png") as figure:
        assert figure.width > 1000


@pytest.mark.long
def test_arms_take_turns_within_a_seed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    start = training.start

    def noted(settings: recipe.Recipe, out: Path, *rest: Any) -> None:
        order.append(out.name)
        return start(settings, out, *rest)

    monkeypatch.setattr(training, "start", noted)
    api.ablate(photos, vary=["train.keep=best,last"], out=tmp_path / "s", seeds=2, settings={**SMALL, "train.epochs": 1})
    assert order == [f"train.keep={keep}-{seed}" for seed in (0, 1) for keep in ("best", "last")]


def test_several_settings_make_every_combination() -> None:
    plan = vary_settings(["model.dropout=0,0.5", "model.pool=[3,2], [2,2]"])
    assert list(plan.arms) == [f"model.dropout={d}, model.pool={p}" for d in ("0", "0.5") for p in ("[3,2]", "[2,2]")]
    assert plan.recipe_of("model.dropout=0.5, model.pool=[2,2]", 0).model.overrides["pool"] == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "optimizer.rat=1,2"], "did you mean 'optimizer.lr'"),
        (["--vary", "optimizer.lr=0.1,none"], "optimizer.lr is 'none'"),
        (["--vary", "optimizer.lr=0.1"], "give two values or more"),
        (["--vary", "optimizer.lr"], "give two values or more"),
        (["--study", "poolin"], "did you mean 'pooling'"),
        (["--study", "pooling", "--set", "model.pool=[2,2]"], "--set model.pool: this study varies it"),
        (["--vary", "train.seed=1,2", "--set", "train.seed=3"], "--set train.seed: this study varies it"),
        (["--vary", "train.seed=1,2", "--minutes", 1, "--set", "train.minutes=1"], "give one of them"),
        (["--vary", "train.seed=1,2", "--recipe", "fats"], "did you mean 'fast'"),
    ],
)
def test_untrainable_settings_are_one_line(arguments: list[object], message: str, tmp_path: Path) -> None:
    assert message in error("ablate", "digits", *arguments, "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    for arguments in (
        ["digits"],
        ["--study", "pooling", "--vary", "train.seed=1,2"],
        ["digits", "--out", tmp_path],
        ["--out", tmp_path, "--set", "train.epochs=1"],
    ):
        assert "choose --study NAME or --vary KEY=A,B" in run("ablate", *arguments, code=2).stderr


# Studies


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_study_is_a_network_that_can_be_built(name: str) -> None:
    study = find_study(name)
    plan = make_plan(study, None, {}, seeds=3, minutes=None)
    assert plan.recipe.data.dataset == "cifar10"
    recipes = [plan.recipe_of(arm, 0) for arm in plan.arms]
    for model in (settings.model for settings in recipes):
        network = AlexNet(model.variant, 10, width=model.width / 16, **model.overrides)
        assert network.smallest <= plan.recipe.images.input
    assert len({settings.to_toml() for settings in recipes}) == len(plan.arms)
    assert set(plan.claimed) < set(plan.arms)
    assert "section" in plan.source
    assert not plan.claim.endswith(".")


def test_data_overrides_the_dataset_of_a_study() -> None:
    plan = make_plan(find_study("pooling"), "cifar10", {"data.dataset": "digits"}, seeds=1, minutes=None)
    assert (plan.recipe.name, plan.recipe.data.dataset, plan.recipe.images.input) == ("cifar10", "digits", 100)


def test_overlapping_and_non_overlapping_pools_leave_maps_of_the_same_size() -> None:
    study = find_study("pooling")
    side = study.settings["images.input"]
    sizes = []
    for arm in study.arms.values():
        network = AlexNet("cifar10", 10, width=1 / 16, pool=arm["model.pool"])
        _, maps = network.activations(torch.zeros(1, 3, side, side), ["pool1", "pool2", "pool5"])
        sizes.append([m.shape[2:] for m in maps.values()])
    assert sizes[0] == sizes[1]


def test_a_study_trains_and_its_runs_predict(photos: Path, tmp_path: Path) -> None:
    settings = {"model.width": 1 / 16, "train.epochs": 1, "train.batch_size": 8}
    found = api.ablate(photos, study="pooling", out=tmp_path / "s", seeds=1, settings=settings)
    assert [arm["arm"] for arm in found["arms"]] == ["overlapping", "non-overlapping"]
    for arm, window in zip(found["arms"], (3, 2), strict=True):
        opened = alexnet.load(arm["runs"][0]["run"])
        assert opened.network.features.pool1.kernel_size == window
        assert opened.evaluate().top1 == arm["values"][0]
    assert "0.4 points less (ImageNet)" in (tmp_path / "s" / "table.md").read_text()


@pytest.mark.long
def test_steps_to_a_training_error_are_found_at_the_rate_that_is_fastest(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    settings = {"images.input": 40, "train.batch_size": 4, "train.epochs": 30}
    found = api.ablate(photos, study="relu-tanh", out=out, seeds=2, settings=settings)
    names = {path.name for path in out.iterdir() if path.is_dir()}
    assert {f"{arm}-{name}" for arm in ("ReLU", "tanh") for name in ("0", "1")} < names
    for arm in found["arms"]:
        assert arm["lr"] in {0.01, 0.03, 0.003, 0.1}
        tried = {path.name: metrics(path) for path in out.glob(f"{arm['arm']}-rate*") if (path / "metrics.csv").exists()}
        assert len(tried) <= 4
        first = len(tried[f"{arm['arm']}-rate1"])
        assert all(len(rows) <= first for rows in tried.values()), "no rate is tried for longer than one that got there"
        for one in arm["runs"]:
            rows = metrics(Path(one["run"]))
            errors = [1 - float(row["train_top1"]) for row in rows]
            assert errors[-1] <= 0.25 < min(errors[:-1], default=1.0), "it ends at the epoch that reached the error"
            assert len(rows) - 1.5 < one["epochs"] <= len(rows) - 0.5
            assert one["value"] == pytest.approx(one["epochs"] * 7), "28 images in batches of 4"
            assert float(rows[0]["lr"]) == arm["lr"]
    text = (out / "table.md").read_text()
    assert "six times" in text
    assert "| ratio to the first arm |" in text
    assert "×" in text.splitlines()[-1]


def test_a_rate_at_which_it_diverges_is_noted_and_not_trained_again(photos: Path, tmp_path: Path) -> None:
    vary = ["optimizer.lr=0.01,1e30"]
    settings = {**SMALL, "model.norm": "none", "optimizer.muon_lr": 0.0, "schedule.kind": "constant"}
    found = api.ablate(photos, vary=vary, out=tmp_path / "s", seeds=1, settings=settings)
    assert found["arms"][1]["values"] == [None]
    assert "the loss is" in found["arms"][1]["runs"][0]["diverged"]
    assert "diverged" in (tmp_path / "s" / "table.md").read_text()
    assert api.ablate(out=tmp_path / "s") == found


def test_minutes_are_shared_by_all_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 10 images takes a second: an epoch takes 104 with its validation, the rest of a training 16."""
    now = [0.0]

    class Steps:
        batch_size, images = 10, {"train": 1000, "val": 100, "test": 100}

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def losses(self, scales: Iterable[float]) -> Iterator[float]:
            for _ in scales:
                now[0] += 1
                yield 1.0

    monkeypatch.setattr(module, "LRTrial", Steps)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    plan = make_plan(vary_settings(VARY), None, {}, seeds=1, minutes=10)
    assert module._epochs(plan, 2 * (3 * 104 + 17) / 60, None) == 3
    assert module._epochs(plan, 2 * (3 * 104 + 15) / 60, None) == 2
    assert module._epochs(plan, 0.01, None) == 1, "one epoch is the minimum"


def test_minutes_give_every_arm_the_same_number_of_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_epochs", lambda *_: 3)
    how: dict[str, Any] = {"vary": VARY, "out": tmp_path / "s", "seeds": 1, "minutes": 0.7, "settings": SMALL}
    found = api.ablate(photos, **how)
    assert Plan.model_validate_json((tmp_path / "s" / "study.json").read_text()).epochs == 3
    assert {one["images"] for arm in found["arms"] for one in arm["runs"]} == {3 * 28}
    monkeypatch.setattr(module, "_epochs", lambda *_: 4)
    assert api.ablate(photos, **how) == found, "the number of epochs was determined before"


# Stop and resume


def test_a_finished_study_is_not_trained_again(
    study: tuple[Path, dict[str, Any]], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = study

    def never(*_: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(training, "start", never)
    monkeypatch.setattr(training, "resume", never)
    assert api.ablate(out=out) == found
    assert api.ablate(photos, vary=VARY, out=out, seeds=2, settings=SMALL) == found


def test_another_study_in_the_same_folder_is_refused(study: tuple[Path, dict[str, Any]], photos: Path, tmp_path: Path) -> None:
    out, _ = study
    for change, word in (
        ({"seeds": 3}, "'seeds'"),
        ({"vary": ["model.dropout=0.0,0.4"]}, "'arms'"),
        ({"settings": {**SMALL, "train.epochs": 3}}, "'recipe'"),
    ):
        asked: dict[str, Any] = {"vary": VARY, "seeds": 2, "settings": SMALL, **change}
        with pytest.raises(RunError, match=word) as caught:
            api.ablate(photos, out=out, **asked)
        assert f"alexnet ablate --out {shell_quote(out)}" in str(caught.value)
    with pytest.raises(RunError, match="not empty"):
        api.ablate("digits", vary=VARY, out=photos)
    with pytest.raises(RunError, match="no study to resume"):
        api.ablate(out=tmp_path)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(RunError, match="study: Field required"):
        api.ablate(out=tmp_path)


@pytest.mark.long
def test_a_study_that_was_stopped_goes_on_to_the_same_bytes(
    study: tuple[Path, dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    finished, expected = study
    out = tmp_path / "s"
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = ["ablate", photos, "--vary", VARY[0], "--seeds", 2, *sets, "--out", out]
    process = Started(tmp_path / "said", train_until_signalled, 14, *command)  # eight steps make one training
    process.wait_until(lambda: (out / "model.dropout=0.5-0" / "metrics.csv").exists())
    process.send(signal.SIGINT)
    done = process.end(130)
    assert done.stdout == ""
    assert (
        done.stderr.splitlines()[-1]
        == f"alexnet: stopped, everything is saved; resume with: alexnet ablate --out {shell_quote(out)}"
    )
    assert not (out / "results.json").exists()
    found = json.loads(run("ablate", "--out", out, "--json").stdout)
    assert [arm["values"] for arm in found["arms"]] == [arm["values"] for arm in expected["arms"]]
    for path in (path for path in finished.iterdir() if path.is_dir()):
        assert weights(out / path.name) == weights(path)
        assert metrics(out / path.name) == metrics(path)


# Summarise the results


@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=6))
def test_the_interval_is_student_s(values: list[float]) -> None:
    found = summarise(values, values, ratio=False)
    if np.std(values) > 1e-6:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found["mean"], *found["mean_interval"]) == pytest.approx((np.mean(values), *np.clip(expected, 0, 1)))
    single = summarise(values[:1], values[:1], ratio=False)
    assert (single["mean"], single["mean_interval"]) == (values[0], None)


def test_arms_are_compared_seed_by_seed() -> None:
    first, other = [0.7, 0.6, 0.5], [0.72, 0.62, 0.52]
    found = summarise(other, first, ratio=False)
    assert found["difference"] == pytest.approx(0.02)
    assert found["difference_interval"] == pytest.approx([0.02, 0.02]), "seeds differ, the difference does not"
    low, high = found["mean_interval"]
    assert low < 0.5
    assert high > 0.7


def test_interval_of_a_fraction_stays_within_its_bounds() -> None:
    found = summarise([0.45, 0.65], [0.65, 0.45], ratio=False)
    assert found["mean_interval"] == [0, 1]
    assert found["difference_interval"] == [-1, 1]


def test_steps_are_compared_as_ratios() -> None:
    found = summarise([600, 1200], [100, 200], ratio=True)
    assert found["mean"] == pytest.approx(math.sqrt(600 * 1200))
    assert found["difference"] == pytest.approx(6)
    assert found["difference_interval"] == pytest.approx([6, 6])


def test_unreached_aim_gives_no_mean() -> None:
    found = summarise([600, None], [100, 200], ratio=True)
    assert found == {
        **{"values": [600, None], "mean": None, "mean_interval": None},
        **{"difference": None, "difference_interval": None},
    }


def write_run(folder: Path, errors: list[float]) -> RunFolder:
    """A finished run with an epoch for each of `errors`: 10 classes, 10 steps per epoch, trained to an error of 0.25."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text("[train]\nbatch_size = 10\n[stop]\ntrain_error = 0.25\n")
    validation = {"top1": 0.5, "per_class": dict.fromkeys(range(10))}
    (folder / "summary.json").write_text(json.dumps({"validation": validation, "test": None, "seconds": 1.0}))
    rows = "".join(f"{number},100,{1 - error}\n" for number, error in enumerate(errors, 1))
    (folder / "metrics.csv").write_text(f"epoch,images,train_top1\n{rows}")
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("errors", "epochs"),
    [([0.4, 0.2], 1.25), ([0.25], 0.5), ([0.4, 0.3], None), ([0.26, 0.24], 1.0), ([0.1], 0.5 * 0.65 / 0.8), ([0.9], None)],
)
def test_steps_are_interpolated_between_epochs(errors: list[float], epochs: float | None, tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "run", errors), find_study("relu-tanh"))
    assert result["value"] == (None if epochs is None else pytest.approx(10 * epochs))
    assert result["epochs"] == pytest.approx(epochs or len(errors))
    assert result["curve"] == [(0.0, 0.9), *((pytest.approx(i + 0.5), pytest.approx(error)) for i, error in enumerate(errors))]


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [0.5])
    assert read_result(folder, find_study("pooling"))["value"] == 0.5, "without a test set, validation counts"
    for content in ("{}", '{"test": null, "validation": []}'):
        folder.summary.write_text(content)
        with pytest.raises(RunError, match="run is damaged: remove it"):
            read_result(folder, find_study("pooling"))


def test_the_table_says_what_was_claimed_beside_what_was_measured(study: tuple[Path, dict[str, Any]]) -> None:
    _, found = study
    assert "claimed" not in table(found)
    arms = [{**arm, "claimed": claim} for arm, claim in zip(found["arms"], ("", "1 point less"), strict=True)]
    text = table({**found, "claim": "Less is more", "source": "somebody, section 1", "arms": arms})
    assert text.startswith("Claimed: Less is more (somebody, section 1).")
    assert "| model.dropout=0.5 | 1 point less |" in text
    assert "| validation top-1 (%) | seeds | difference to the first arm (points) |" in text


def test_the_command_prints_the_table_and_where_the_figure_is(photos: Path, tmp_path: Path) -> None:
    sets = [part for key, value in {**SMALL, "train.epochs": 1}.items() for part in ("--set", f"{key}={value}")]
    done = run("ablate", photos, "--vary", "train.keep=best,last", "--seeds", 1, *sets, "--out", tmp_path / "s")
    assert "| train.keep=best |" in done.stdout
    assert f"{tmp_path / 's'}/ablation.png" in done.stdout
    assert "training 2 of 2: train.keep=last-0" in done.stderr
