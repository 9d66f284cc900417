"""The files of the page, and what it says about a run."""

from pathlib import Path
from typing import Any

from alexnet.files import read_json
from alexnet.run import ModelConfig, RunFolder

WEB = Path(__file__).parent / "web"


def describe(folder: RunFolder, config: ModelConfig) -> dict[str, Any]:
    """Return what the page asks its backend for, but for the limits; RunError if the run's summary cannot be read."""
    summary: dict[str, Any] = read_json(folder.summary) if folder.summary.exists() else {}
    split = next((split for split in ("test", "validation") if summary.get(split)), None)
    accuracy = {"split": split, **{key: summary[split][key] for key in ("images", "top1", "top1_interval")}} if split else None
    preprocessing = config.preprocessing
    zoom = preprocessing.side / (preprocessing.crop or preprocessing.side)
    return {
        "run": folder.path.resolve().name,
        "variant": config.variant,
        "labels": config.labels,
        "input": (3, preprocessing.input_side, preprocessing.input_side),
        "fit": preprocessing.fit,
        "zoom": (-zoom if preprocessing.horizontal_flip else zoom, zoom),
        "temperature": config.temperature,
        "accuracy": accuracy,
    }
