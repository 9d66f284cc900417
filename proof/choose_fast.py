"""Choose the settings of `fast`: train with each of `ARMS`, in turn, and compare them on validation images.

    python -m proof.choose_fast DATA OUT [--arms NAME …] [--seeds 0 1 2] [--set KEY=VALUE]…

The length of a training is among the settings: `--set train.minutes=15`, or `train.epochs=40` and `train.max_images=0`, which
gives the same result on every machine. No test image is looked at. OUT/trainings.jsonl keeps a line for each training, and one
that is there is not repeated. The table has the mean over seeds, and the mean difference from `today` of the same seeds.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import alexnet
from alexnet.recipe import load, parse_settings
from alexnet.run import RunFolder, read_metrics

CROP = {"augment.area": [0.35, 1.0], "augment.shift": 0.0}
COLOUR = {"augment.brightness": 0.3, "augment.contrast": 0.3, "augment.saturation": 0.3}
HEAD = {"model.dense_units": 1024}
ARMS: dict[str, dict[str, Any]] = {
    "today": {},
    "average": {"train.average": 0.03},
    "crop": CROP,
    "mild crop": {**CROP, "augment.area": [0.6, 1.0]},
    "crop, larger test": {**CROP, "schedule.progressive_resize": [[1.0, 0.78]]},
    "colour": COLOUR,
    "erasing": {"augment.erasing": 0.5},
    "mixup": {"augment.mixup": 0.2},
    "cutmix": {"augment.cutmix": 1.0},
    "mixup, cutmix": {"augment.mixup": 0.4, "augment.cutmix": 1.0},
    "trivial": {"augment.trivial": True},
    "no trivial": {"augment.trivial": False},
    "dropout": {"model.dropout": 0.5},
    "decay 0.005": {"optimizer.weight_decay": 0.005},
    "decay 0.02": {"optimizer.weight_decay": 0.02},
    "decay 0.005, trivial": {"optimizer.weight_decay": 0.005, "augment.trivial": True},
    "decay 0.005, erasing": {"optimizer.weight_decay": 0.005, "augment.erasing": 0.5},
    "128 pixels": {"images.input": 128},
    "160 pixels": {"images.input": 160},
    "192 pixels": {"images.input": 192},
    "224 pixels": {"images.input": 224},
    "1024 units": HEAD,
    "1024 units, faster": {**HEAD, "optimizer.lr_scale": {"fc6": 0.02, "fc7": 0.2, "fc8": 0.4}},
    "512 units, faster": {"model.dense_units": 512, "optimizer.lr_scale": {"fc6": 0.02, "fc7": 0.4, "fc8": 0.8}},
    "crop, cutmix": {**CROP, "augment.cutmix": 1.0},
    "crop, colour": {**CROP, **COLOUR},
    "crop, colour, cutmix": {**CROP, **COLOUR, "augment.cutmix": 1.0},
    "crop, trivial": {**CROP, "augment.trivial": True},
    "crop, trivial, cutmix": {**CROP, "augment.trivial": True, "augment.cutmix": 1.0},
}


def train(data: str, arm: str, seed: int, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train once without a look at the test set; return what it came to."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        changes = {**settings, **ARMS[arm], "train.seed": seed}
        run = alexnet.train(data, out=Path(folder) / "run", settings=changes)
        rows = read_metrics(RunFolder(run.path), ("train_top1", "val_top1", "images_per_second"))
        validation = run.summary["validation"]
        result = {"top1": validation["top1"], "loss": validation["loss"], "seconds": run.summary["seconds"]}
    return {**result, "epochs": len(rows), "train": rows[-1]["train_top1"], "last": rows[-1]["val_top1"]}


def table(results: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Return the comparison of arms, as Markdown."""
    lines = [
        "| arm | seeds | validation accuracy | against today | validation loss | training accuracy | epochs |",
        "|---" * 7 + "|",
    ]
    for arm in dict.fromkeys(arm for arm, _ in results):
        rows = {seed: row for (name, seed), row in results.items() if name == arm}
        paired = [
            100 * (row["top1"] - results["today", seed]["top1"]) for seed, row in rows.items() if ("today", seed) in results
        ]
        gain = f"{statistics.mean(paired):+.1f} ({min(paired):+.1f} to {max(paired):+.1f})" if paired else ""
        top1, loss, train = (statistics.mean(row[key] for row in rows.values()) for key in ("top1", "loss", "train"))
        epochs = statistics.mean(row["epochs"] for row in rows.values())
        lines.append(f"| {arm} | {len(rows)} | {top1:.1%} | {gain} | {loss:.3f} | {train:.1%} | {epochs:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table after each training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    settings = {"data.test": 0.0, **parse_settings(options.set)}
    load("fast").with_settings(settings)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "trainings.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    results = {(row["arm"], row["seed"]): row for row in map(json.loads, lines)}
    for seed in options.seeds:
        for arm in options.arms:
            if (arm, seed) not in results:
                row = {"arm": arm, "seed": seed, **train(options.data, arm, seed, settings, options.out)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                results[arm, seed] = row
                print(table(results), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
