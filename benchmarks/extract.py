"""Features of image files into HDF5: `Run.extract`, alternating with a plain PyTorch loop, on the 60,000 files of CIFAR-10.

Needs a run, `python -m benchmarks.extract RUN`, h5py, and ALEXNET_TEST_DATA. The loop is what a notebook would contain: a data
loader over Pillow, the network's plain layers, a hook, a list of arrays, then one dataset. Each is a process of its own, which
prints its memory. Both use the same number of threads and write the same features. ROUNDS=1 in the environment measures once.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from benchmarks.turns import in_turn, ratios, real_data, spread, trained_run
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

import alexnet
from alexnet.inference.predict import find_images

LAYER = "relu7"
ROUNDS = int(os.environ.get("ROUNDS", "3"))


class Files(Dataset[Tensor]):
    """The inputs that a run's network takes, 3 S S float32, from files."""

    def __init__(self, run: alexnet.Run, paths: list[Path]) -> None:
        self.images, self.paths = run.config.preprocessing, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        image = Image.open(self.paths[i]).convert("RGB").resize((self.images.side, self.images.side))
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * self.images.value_range / 255
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.images.mean, self.images.std))
        return (levels - mean) / deviation


def plain(run: alexnet.Run, paths: list[Path], out: Path) -> None:
    """Write the features by the plain loop."""
    layers, found = nn.Sequential(*run.network.layers.values()).float().eval(), list[np.ndarray]()
    run.network.layers[LAYER].register_forward_hook(lambda module, inputs, output: found.append(output.numpy()))
    with torch.no_grad():
        for batch in DataLoader(Files(run, paths), 128):
            layers(interpolate(batch, scale_factor=float(run.config.preprocessing.upscale)))
    with h5py.File(out, "w") as file:
        file.create_dataset(LAYER, data=np.concatenate(found))


def one(way: str, run: alexnet.Run, out: Path) -> None:
    """Write the features in one of both ways, and print what it took."""
    paths, start = find_images([real_data() / "cifar10"]), time.perf_counter()
    if way == "alexnet":
        run.extract(paths, LAYER, out)
    else:
        plain(run, paths, out)
    seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "memory": memory, "images": len(paths)}))


def main(run: alexnet.Run) -> None:
    """Measure both in turn, and compare what they wrote."""
    memory, images = dict[str, float](), 0
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{way}.h5" for way in ("alexnet", "plain")}

        def measured(way: str) -> float:
            nonlocal images
            files[way].unlink(missing_ok=True)
            command = [sys.executable, "-m", "benchmarks.extract", str(run.path), way, str(files[way])]
            answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            memory[way], images = answer["memory"], answer["images"]
            return float(answer["seconds"])

        times = in_turn({way: lambda way=way: measured(way) for way in files}, ROUNDS, warm_up=0)
        with h5py.File(files["alexnet"]) as ours, h5py.File(files["plain"]) as theirs:
            largest = max(float(np.abs(row).max()) for row in theirs[LAYER])
            off = max(float(np.abs(a - b).max()) for a, b in zip(ours[LAYER], theirs[LAYER], strict=True)) / largest
    for way, taken in times.items():
        print(f"{way:8} {spread([images / seconds for seconds in taken], '.0f')} images/s, {memory[way]:.2f} GB at most")
    faster = ratios(times["plain"], times["alexnet"])
    print(f"{spread(faster)} times as fast; features differ by {off:.1e} of the largest")
    print(json.dumps({"benchmark": "extract", "ratio": statistics.median(faster), "difference": off, "memory": memory}))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        one(sys.argv[2], trained_run(), Path(sys.argv[3]))
    else:
        main(trained_run())
