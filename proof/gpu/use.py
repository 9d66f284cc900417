"""A run that was trained on the device answers the same on the CPU, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from proof.gpu import Check, Row, at_most
from proof.gpu.training import pictures, train

import alexnet
from alexnet.explain.attribution import Explanation

EPOCHS = {"train.epochs": 6}


def both(device: str, folder: Path, precision: str) -> tuple[alexnet.Run, alexnet.Run, Path]:
    """Return a run on two devices, and its pictures; it was trained on the CPU where the folder's name begins so."""
    out = folder / "run"
    trained_on = "cpu" if "of_the_cpu" in folder.name else device
    train("cifar10", out, trained_on, **{"train.precision": precision, "optimizer.lr": 0.01, **EPOCHS})
    return alexnet.load(out, "cpu"), alexnet.load(out, device), pictures(folder)


def shares(run: alexnet.Run, images: Path) -> np.ndarray[Any, Any]:
    """Return the probabilities of all labels, an image a row."""
    answers = run.predict(images, top=len(run.labels))
    found = [{each["label"]: each["probability"] for each in answer["predictions"]} for answer in answers]
    return np.array([[row[label] for label in run.labels] for row in found])


def relative(found: Any, wanted: Any) -> float:
    """Return the largest difference, as a share of the largest value."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / max(1e-6, np.abs(wanted).max()))


def case(of: str, precision: str, tolerance: float) -> Check:
    """Return the check of a run trained `of` the CPU or the device."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        head = f"{of}, {precision}:"
        here, there, images = both(device, folder, precision)
        wanted, found = shares(here, images), shares(there, images)
        yield at_most(f"{head} probabilities of {len(wanted)} images off by", float(np.abs(found - wanted).max()), tolerance)
        ordered = np.sort(wanted)
        clear = ordered[:, -1] - ordered[:, -2] > 2 * tolerance
        same = (found.argmax(1) == wanted.argmax(1))[clear]
        yield Row(f"{head} first labels of clear answers", f"{same.sum()} of {len(same)} the same", "all", bool(same.all()))
        for views in (1, 10):
            off = abs(there.evaluate(views=views).loss - here.evaluate(views=views).loss)
            yield at_most(f"{head} loss of evaluate, {views} views, off by", off, 10 * tolerance)

    check.__name__ = f"{of.replace(' ', '_')}_{precision}"
    return check


def deeper(device: str, folder: Path) -> Iterator[Row]:
    """Features, explanations, search and export, all of which compute in float32."""
    here, there, images = both(device, folder, "float32")
    some = sorted(images.rglob("*.png"))[::20]
    layers = ["conv1", "norm1", "pool5", "fc7"]
    wanted, found = (run.features(some, [name for name in layers if name in run.network.layer_names]) for run in (here, there))
    for name in wanted:
        yield at_most(f"features: {name} off by", relative(found[name], wanted[name]), 2e-3)
    for (_, one), (_, other) in zip(here.explanations(some), there.explanations(some), strict=True):
        assert isinstance(one, Explanation)
        assert isinstance(other, Explanation)
        for name in ("grad_cam", "occlusion", "integrated_gradients"):
            yield at_most(f"explain: {name} off by", relative(getattr(other, name), getattr(one, name)), 2e-2)


def search(device: str, folder: Path) -> Iterator[Row]:
    """An index made on one is searched on the other."""
    here, there, images = both(device, folder, "float32")
    query = sorted(images.rglob("*.png"))[:5]
    there.index(images, folder / "index")
    answers = [list(run.search(query, index=folder / "index")) for run in (here, there)]
    near = [[[each["distance"] for each in answer["neighbours"]] for answer in found] for found in answers]
    yield at_most("search: distances off by", relative(*near), 1e-2)


def export(device: str, folder: Path) -> Iterator[Row]:
    """A run exports from either; both files say what PyTorch says there."""
    here, there, _ = both(device, folder, "float32")
    for name, run in (("cpu", here), ("device", there)):
        found = run.export(folder / f"{name}.onnx")
        yield at_most(f"export, run on the {name}: probabilities off by", found["largest_difference"], 0.01)


def named(check: Check, of: str) -> Check:
    """Return the check for a run trained `of` the CPU or the device."""

    def of_it(device: str, folder: Path) -> Iterator[Row]:
        for row in check(device, folder):
            yield row._replace(what=f"{of}: {row.what}")

    of_it.__name__ = f"{check.__name__}_{of.replace(' ', '_')}"
    return of_it


GPU, CPU = "of the device", "of the cpu"
CHECKS = (
    *(case(of, precision, tolerance) for of in (GPU, CPU) for precision, tolerance in (("float32", 2e-3), ("auto", 3e-2))),
    *(named(check, of) for of in (GPU, CPU) for check in (deeper, search)),
    named(export, GPU),
)
