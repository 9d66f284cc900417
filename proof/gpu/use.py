"""A run trained on the device gives the same answers on the CPU, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from proof.gpu import Check, Row, at_most
from proof.gpu.training import pictures, train

import alexnet

GPU, CPU = "of the device", "of the cpu"


def both(of: str, device: str, folder: Path, precision: str = "float32") -> tuple[alexnet.Run, alexnet.Run, Path]:
    """Train on the device or the CPU, as `of` says; return the run on the CPU and on the device, and its images."""
    out = folder / "run"
    settings = {"train.precision": precision, "optimizer.lr": 0.01, "train.epochs": 6}
    train("cifar10", out, "cpu" if of == CPU else device, **settings)
    return alexnet.load(out, "cpu"), alexnet.load(out, device), pictures(folder)


def probabilities(run: alexnet.Run, images: Path) -> np.ndarray[Any, Any]:
    """Return the probabilities of all labels, one row per image."""
    answers = run.predict(images, top=len(run.labels))
    found = [{each["label"]: each["probability"] for each in answer["predictions"]} for answer in answers]
    return np.array([[row[label] for label in run.labels] for row in found])


def relative(found: Any, wanted: Any) -> float:
    """Return the largest difference, relative to the largest value."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / max(1e-6, np.abs(wanted).max()))


def answers(of: str, device: str, folder: Path, precision: str, tolerance: float) -> Iterator[Row]:
    """Compare probabilities, first labels and losses."""
    here, there, images = both(of, device, folder, precision)
    wanted, found = probabilities(here, images), probabilities(there, images)
    yield at_most(f"probabilities of {len(wanted)} images off by", float(np.abs(found - wanted).max()), tolerance)
    ordered = np.sort(wanted)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * tolerance
    same = (found.argmax(1) == wanted.argmax(1))[clear]
    yield Row("first labels of clear answers", f"{same.sum()} of {len(same)} the same", "all", bool(same.all()))
    for views in (1, 10):
        off = abs(there.evaluate(views=views).loss - here.evaluate(views=views).loss)
        yield at_most(f"loss of evaluate, {views} views, off by", off, 10 * tolerance)


def features_and_explanations(of: str, device: str, folder: Path) -> Iterator[Row]:
    """Compare features and explanations, which are computed in float32."""
    here, there, images = both(of, device, folder)
    some = sorted(images.rglob("*.png"))[::20]
    layers = ["conv1", "norm1", "pool5", "fc7"]
    wanted, found = (run.features(some, [name for name in layers if name in run.network.layer_names]) for run in (here, there))
    for name in wanted:
        yield at_most(f"features: {name} off by", relative(found[name], wanted[name]), 2e-3)
    for (_, one), (_, other) in zip(here.explanations(some), there.explanations(some), strict=True):
        for name in one.heat_maps:
            yield at_most(f"explain: {name} off by", relative(other.heat_maps[name], one.heat_maps[name]), 2e-2)


def search(of: str, device: str, folder: Path) -> Iterator[Row]:
    """An index made on one device is searched on the other."""
    here, there, images = both(of, device, folder)
    query = sorted(images.rglob("*.png"))[:5]
    there.index(images, folder / "index")
    results = [list(run.search(query, index=folder / "index")) for run in (here, there)]
    near = [[[each["distance"] for each in answer["neighbours"]] for answer in found] for found in results]
    yield at_most("search: distances off by", relative(*near), 1e-2)


def export(of: str, device: str, folder: Path) -> Iterator[Row]:
    """A run exports from either device, and both files agree with PyTorch there."""
    here, there, _ = both(of, device, folder)
    for name, run in (("cpu", here), ("device", there)):
        found = run.export(folder / f"{name}.onnx")
        yield at_most(f"export, run on the {name}: probabilities off by", found["largest_difference"], 0.01)


def named(check: Callable[..., Iterator[Row]], of: str, *more: Any) -> Check:
    """Return the check for a run trained on the device or the CPU; `more` is its precision and tolerance."""
    name = ", ".join((of, *map(str, more[:1])))

    def of_it(device: str, folder: Path) -> Iterator[Row]:
        for row in check(of, device, folder, *more):
            yield row._replace(what=f"{name}: {row.what}")

    of_it.__name__ = f"{check.__name__} {name}".replace(", ", "_").replace(" ", "_")
    return of_it


CHECKS = (
    *(named(answers, of, *bound) for of in (GPU, CPU) for bound in (("float32", 2e-3), ("auto", 3e-2))),
    *(named(check, of) for of in (GPU, CPU) for check in (features_and_explanations, search)),
    named(export, GPU),
)
