"""The cost of augmentation: the speed of a training step of `fast` with more of it, relative to the step with its own.

Augmentation and step are timed in turn, on the same device and threads, with random images.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.step import Case, ours
from benchmarks.turns import in_turn, spread, timed

from alexnet.data.augment import DRAWS, training_input
from alexnet.network.device import choose_device, keep_freed_memory
from alexnet.recipe import Preprocessing, load

ROUNDS = 9
CROP = {"augment.area": [0.35, 1.0], "augment.shift": 0.0}
COLOUR = {"augment.brightness": 0.3, "augment.contrast": 0.3, "augment.saturation": 0.3}
MIX = {"augment.mixup": 0.4, "augment.cutmix": 1.0}
ERASE = {"augment.erasing": 0.5}
WAYS: dict[str, dict[str, Any]] = {
    "its own": {},
    "random resized crops": CROP,
    "brightness, contrast, saturation": COLOUR,
    "erasing": ERASE,
    "mixup and CutMix": MIX,
    "TrivialAugment": {"augment.trivial": True},
    "all but TrivialAugment": {**CROP, **COLOUR, **ERASE, **MIX},
    "all but colours": {**CROP, **ERASE, **MIX, "augment.trivial": True},
}
CASES = (Case("fast", 256, 32, 4), Case("fast", 64, 128), Case("fast", 32, 227))


def augmentation(case: Case, settings: dict[str, Any], device: torch.device) -> Callable[[], object]:
    """Return what augments and preprocesses a batch of `fast`; images of 32 pixels are CIFAR-10's, larger ones photos."""
    sizes = {"images.input": case.side * case.upscale, "images.cache_size": case.side, "images.upscale": case.upscale}
    changes = {"augment.horizontal_flip": True, **sizes, **settings}
    recipe = load(case.recipe).with_settings(changes)
    preprocessing = Preprocessing.model_validate(recipe.images.model_dump(include=set(Preprocessing.model_fields)))
    count = case.batch + recipe.augment.mixes
    images = torch.randint(256, (count, case.side, case.side, 3), dtype=torch.uint8, device=device)
    draws = torch.rand(count, len(DRAWS))
    return lambda: training_input(images, draws, preprocessing, recipe.augment)


def measure(case: Case, device: torch.device) -> dict[str, float]:
    """Time augmentation and step in turn, print a table, and return the relative speeds."""
    ways = {"step": timed(ours(case, device))} | {way: timed(augmentation(case, WAYS[way], device)) for way in WAYS}
    times = in_turn(ways, ROUNDS, warm_up=2)
    print(f"fast, {case.batch} images of {case.side}x{case.side} on {device}, {torch.get_num_threads()} threads")
    print(f"  step  {spread([1000 * seconds for seconds in times['step']], '.0f')} ms")
    speeds = {}
    for way in WAYS:
        turns = zip(times["step"], times["its own"], times[way], strict=True)
        ratios = [(step + own) / (step + more) for step, own, more in turns]
        speeds[way] = statistics.median(ratios)
        print(f"  {way:33} {spread([1000 * seconds for seconds in times[way]], '.1f')} ms, speed {spread(ratios, '.3f')}")
    return speeds


if __name__ == "__main__":
    keep_freed_memory()
    where = choose_device()
    results = {f"{case.batch} images of {case.side}": measure(case, where) for case in CASES}
    print(json.dumps({"benchmark": "augment", **results}))
