"""The head: fitted as scikit-learn would, from codes that are computed once; `finetune` starts from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proof.pictures import class_folders, picture
from sklearn.linear_model import Ridge

import alexnet
from alexnet.convert.pretrained import IMAGENET1K, settings_from_weights
from alexnet.data.cache import cache_folder
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError
from alexnet.head import codes as head_codes
from alexnet.head.codes import image_codes
from alexnet.head.fit import Head, fit
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Data
from alexnet.training import frozen
from commands import run as command
from conftest import assert_near, make_preprocessing, metrics, mostly_long, stop_after, weights
from official import one_line

FLOAT32 = {"train.precision": "float32", "train.batch_size": 8}


def head_run(photos: Path, source: Path, out: Path, name: str = "head", **changes: Any) -> alexnet.Run:
    return alexnet.train(photos, recipe=name, weights=source, out=out, settings={**FLOAT32, **changes})


# The fit


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Return codes, N views units, and targets of a few classes, some with a single image."""
    classes, views = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    count, units = draw(st.integers(classes + 1, 9)), draw(st.integers(2, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    scale = 10.0 ** draw(st.integers(-2, 2))
    values = rng.normal(size=(count, views, units)) + targets[:, None, None]
    return (scale * values).astype(np.float32), targets, classes


def fitted(codes: np.ndarray, targets: np.ndarray, classes: int) -> Head:
    return fit(lambda part: codes[part], targets, classes)


@given(problems())
@settings(max_examples=20)
def test_fit_is_ridge_regression(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Up to the scale of its logits, which does not change any prediction: scikit-learn's, on one-hot targets."""
    codes, targets, classes = problem
    head, flat = fitted(codes, targets, classes), codes.reshape(-1, codes.shape[2]).astype(np.float64)
    ridge = Ridge(alpha=head.alphas[head.best], solver="svd").fit(flat, np.eye(classes)[targets.repeat(codes.shape[1])])
    logits = flat @ head.weight.T + head.bias
    assert_near(logits / head.scale, ridge.predict(flat), 1e-5)


@given(problems())
@settings(max_examples=4)
def test_scores_are_those_of_images_left_out(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    """An image is left out with its mirror image: fit without both, for each image and each penalty."""
    codes, targets, classes = problem
    head, flat = fitted(codes, targets, classes), codes.astype(np.float64)
    one_hot = np.eye(classes)[targets.repeat(codes.shape[1])].reshape(len(codes), codes.shape[1], classes)
    for alpha, left_out in zip(head.alphas, head.left_out, strict=True):
        for image in range(len(codes)):
            others = np.arange(len(codes)) != image
            x, y = flat[others].reshape(-1, codes.shape[2]), one_hot[others].reshape(-1, classes)
            ridge = Ridge(alpha=alpha, solver="svd").fit(x, y)
            assert_near(left_out[image], ridge.predict(flat[image]).mean(0), 1e-4)


def test_fit_of_many_images_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than units, read a few at a time."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    codes = (rng.normal(size=(200, 2, 16)) + targets[:, None, None]).astype(np.float32)
    whole = fitted(codes, targets, 3)
    monkeypatch.setattr("alexnet.head.fit.CHUNK", 7)
    parts = fitted(codes, targets, 3)
    assert whole.best == parts.best
    assert_near(parts.weight, whole.weight, 1e-6)
    assert_near(parts.left_out, whole.left_out, 1e-6)


# Codes


@pytest.fixture(scope="module")
def dataset(photos: Path) -> Dataset:
    return open_dataset(
        open_table(photos), make_preprocessing(cache_size=67, input=67, value_range=1, mean=0.0, std=1.0), 1, Data()
    )


def narrow(seed: int = 0) -> AlexNet:
    torch.manual_seed(seed)
    return AlexNet("owt", 2, width=1 / 16).eval()


def test_codes_are_the_inputs_of_the_last_layer(dataset: Dataset) -> None:
    """Of an image and of its mirror image, compared with the network's own forward pass in one batch."""
    network, rows = narrow(), np.arange(len(dataset.table))
    codes = image_codes(network, dataset, dataset.pixels.preprocessing, "float32", mirror=True)
    x = torch.from_numpy(dataset.pixels.take(rows)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        inputs = []
        network.head.register_forward_pre_hook(lambda _, values: inputs.append(values[0]))
        network(x)
        network(x.flip(3))
    assert_near(codes.take(rows)[:, 0], inputs[0])
    assert_near(codes.take(rows)[:, 1], inputs[1])


def test_only_new_images_pass_through_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos and a class added later, a photo moved to another class, and one removed: the codes there are kept."""
    passed: list[int] = []
    outputs = head_codes.layer_outputs

    def counted(network: AlexNet, images: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        passed.append(len(images))
        return outputs(network, images, *args, **options)

    monkeypatch.setattr(head_codes, "layer_outputs", counted)
    root, preprocessing = class_folders(tmp_path / "growing", 5), make_preprocessing(cache_size=67, input=67)

    def codes(network: AlexNet) -> dict[str, np.ndarray]:
        opened = open_dataset(open_table(root), preprocessing, 1, None)
        result = image_codes(network, opened, preprocessing, "float32").take(np.arange(len(opened.table)))
        return dict(zip(opened.table.images, result, strict=True))

    first = codes(narrow())
    again = codes(narrow())
    class_folders(root, 3, ("across", "down", "more"))
    shutil.move(root / "across" / "004.png", root / "down" / "9.png")
    (root / "across" / "003.png").unlink()
    more = codes(narrow())
    assert passed == [10, 3]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(first[name], more[name]) for name in first.keys() & more.keys())
    assert np.array_equal(more["down/9.png"], first["across/004.png"])
    codes(narrow(seed=1))
    assert passed == [10, 3, 12], "other weights have other codes"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b[:-9] + b"damaged!!"])
def test_damaged_codes_are_computed_again(dataset: Dataset, damage: Any) -> None:
    network, rows = narrow(), np.arange(len(dataset.table))
    preprocessing = dataset.pixels.preprocessing
    first = image_codes(network, dataset, preprocessing, "float32").take(rows)
    path = max((cache_folder() / "codes").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    path.write_bytes(damage(path.read_bytes()))
    again = image_codes(network, dataset, preprocessing, "float32")
    assert again.reused < len(rows)
    assert_near(again.take(rows), first)


# The recipe `head`


@pytest.fixture(scope="module")
def made(photos: Path, trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> alexnet.Run:
    return head_run(photos, trained.path, tmp_path_factory.mktemp("head") / "run")


def test_head_is_an_ordinary_run(made: alexnet.Run, trained: alexnet.Run) -> None:
    """With the preprocessing, the network and all weights of its source, but for the last layer."""
    assert made.config.preprocessing == trained.config.preprocessing
    before, after = trained.network.state_dict(), made.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("head."))
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert [row["epoch"] for row in metrics(made.path)] == ["0"]
    assert (made.summary["epochs"], made.summary["best_epoch"]) == (0, 0)
    assert made.summary["test"]["top1"] > 0.8
    assert "The head was fitted" in made.report().read_text(encoding="utf-8")
    log = (made.path / "log.txt").read_text(encoding="utf-8")
    assert "there already" in log
    assert "left out in turn" in log


def test_metrics_of_the_head_are_those_of_the_run(made: alexnet.Run) -> None:
    """They are computed from codes; `evaluate` computes them from images."""
    for split, name in (("val", "validation"), ("test", "test")):
        evaluation, summary = made.evaluate(split=split), made.summary[name]
        assert isinstance(evaluation, Evaluation)
        assert evaluation.top1 == summary["top1"]
        assert evaluation.loss == pytest.approx(summary["loss"], rel=1e-3)


def test_head_of_a_head_run_reuses_its_codes(made: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    again = head_run(photos, made.path, tmp_path / "again")
    assert weights(again.path) == weights(made.path)
    assert "40 of them were there already" in (again.path / "log.txt").read_text(encoding="utf-8")


def test_head_of_classes_with_one_photo(trained: alexnet.Run, tmp_path: Path) -> None:
    """Each of three classes has one training photo; there are two in a fourth."""
    root = tmp_path / "few"
    for split, counts in {"train": (1, 1, 1, 2), "val": (1, 1, 1, 1)}.items():
        for label, count in enumerate(counts):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                picture(label % 3, 10 * number + (split == "val")).save(root / split / f"class{label}" / f"{number}.png")
    run = head_run(root, trained.path, tmp_path / "run")
    assert len(run.labels) == 4
    assert run.summary["test"] is None


def test_head_by_the_command_line(photos: Path, trained: alexnet.Run, tmp_path: Path) -> None:
    """`--minutes` is a limit, and the head needs less; an unreadable photo is listed."""
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "down" / "broken.png").write_bytes(b"not an image")
    options = ["--recipe", "head", "--weights", trained.path, "--minutes", 1, "--out", tmp_path / "run"]
    done = command("train", root, *options, "--set", "train.precision=float32", "--json")
    summary = json.loads(done.stdout)
    assert [skipped["image"] for skipped in summary["skipped"]] == ["down/broken.png"]
    assert (summary["recipe"], summary["epochs"]) == ("head", 0)


def test_mean_image_of_the_weights_is_subtracted(photos: Path, tmp_path: Path) -> None:
    """The mean image is that of the images that the source was trained on, not of the new ones."""
    small = {"model.width": 1 / 16, "images.cache_size": 67, "images.crop": 67, "images.input": 67, "train.batch_size": 8}
    source = alexnet.train(photos, recipe="paper", out=tmp_path / "source", settings={**small, "train.epochs": 1})
    bright = tmp_path / "bright"
    for label in ("a", "b"):
        (bright / label).mkdir(parents=True)
        for number in range(6):
            picture(ord(label) - ord("a"), number).point(lambda level: 128 + level // 2).save(bright / label / f"{number}.png")
    run = head_run(bright, source.path, tmp_path / "run")
    assert np.array_equal(run.config.preprocessing.mean_image, source.config.preprocessing.mean_image)


# The recipe `finetune`, and frozen layers


def finetuned(photos: Path, source: Path, out: Path, **changes: Any) -> alexnet.Run:
    return head_run(photos, source, out, "finetune", **{"train.epochs": 2, **changes})


@pytest.fixture(scope="module")
def tuned(photos: Path, trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> alexnet.Run:
    return finetuned(photos, trained.path, tmp_path_factory.mktemp("tuned") / "run")


def test_finetune_starts_from_the_head(tuned: alexnet.Run, made: alexnet.Run) -> None:
    first, *rows = metrics(tuned.path)
    (head,) = metrics(made.path)
    assert (first["val_top1"], float(first["val_loss"])) == (head["val_top1"], pytest.approx(float(head["val_loss"]), rel=1e-4))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert "frozen layers up to pool5 are computed once" in (tuned.path / "log.txt").read_text(encoding="utf-8")


def test_frozen_outputs_train_the_same_network(
    tuned: alexnet.Run, photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As passing each batch of images through all layers in each epoch does, which is what happens without the memory."""
    monkeypatch.setattr(frozen, "MEMORY_SHARE", 0.0)
    whole = finetuned(photos, trained.path, tmp_path / "run")
    assert "more than a quarter of the memory" in (whole.path / "log.txt").read_text(encoding="utf-8")
    for name, tensor in whole.network.state_dict().items():
        assert_near(tuned.network.state_dict()[name].numpy(), tensor.numpy(), 1e-3)
    for ours, theirs in zip(metrics(tuned.path), metrics(whole.path), strict=True):
        assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-3)


@pytest.mark.parametrize("layers", ["pool5", "features"])
@pytest.mark.parametrize("flips", [True, False])
def test_frozen_outputs_are_averaged_over_views(trained: alexnet.Run, layers: str, flips: bool) -> None:
    dataset, _ = trained.dataset()
    keys = {"optimizer.frozen": layers, "augment.shift": 0.0, "schedule.progressive_resize": [], "train.precision": "float32"}
    recipe = trained.recipe.with_settings({**keys, "augment.horizontal_flip": flips, "images.views": 2})
    preprocessing = trained.config.preprocessing.model_copy(update={"views": 2})
    kept = frozen.keep_frozen_outputs(recipe, trained.network, dataset, preprocessing, lambda: None, lambda _: None)
    for split in ("train", "val"):
        expected = evaluate_split(trained.network, dataset, split, preprocessing, "float32", 1).logits
        assert_near(kept[split].compute(trained.network, "float32").logits, expected, 1e-5)
        one = evaluate_split(trained.network, dataset, split, preprocessing, "float32", 1, view_count=1).logits
        assert np.abs(one - expected).max() > 1e-3, "one view is something else"


def test_random_crops_rule_out_frozen_outputs(photos: Path, trained: alexnet.Run, tmp_path: Path) -> None:
    run = finetuned(photos, trained.path, tmp_path / "run", **{"augment.shift": 0.1, "train.epochs": 1})
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    assert "computed in every epoch, as augment.shift changes their input" in log


@mostly_long("steps", [2, 5], 5)
def test_resumed_finetune_is_bit_identical(
    steps: int, tuned: alexnet.Run, photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, "train_step", steps)
    with pytest.raises(AlexNetError, match="resume with"):
        finetuned(photos, trained.path, tmp_path / "run")
    alexnet.resume(tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(tuned.path)
    assert weights(tmp_path / "run") == weights(tuned.path)


def test_settings_from_weights_have_the_preprocessing_on_request(trained: alexnet.Run) -> None:
    images = trained.config.preprocessing.model_dump()
    required = settings_from_weights(str(trained.path), images=True)
    assert {key.removeprefix("images."): value for key, value in required.items() if key.startswith("images.")} == images
    assert not any(key.startswith("images.") for key in settings_from_weights(str(trained.path)))


def test_without_a_network_one_line_says_what_to_do(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = IMAGENET1K._replace(url="http://127.0.0.1:9/nothing.pth")
    monkeypatch.setattr("alexnet.convert.pretrained.IMAGENET1K", nowhere)
    for name in ("head", "finetune"):
        with pytest.raises(AlexNetError, match=r"--weights RUN\), or from nothing \(--recipe fast\)") as caught:
            alexnet.train(photos, recipe=name, out=tmp_path / "run", settings={"data.root": str(tmp_path)})
        one_line(caught)
        assert not (tmp_path / "run").exists()
