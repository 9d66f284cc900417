"""Train on two machines from one object store, and compare with one process: the losses and the network.

    python -m proof.two_machines PHOTOS

Two network namespaces stand in for the machines, as in benchmarks/scale.py, and need Linux and root; the only connection is a
virtual cable. The first also has the store: moto's S3, whose bucket has the shards of PHOTOS. Neither machine has the images,
nor a cache of them. The exit code is 1 if losses differ by more than `TOLERANCE`, or a machine kept images.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.scale import cable

import alexnet

TOLERANCE = 2e-3  # of a loss, relative
STORE, PORT = "10.77.0.1", 5000
SETTINGS = {
    "model.width": 0.0625,
    "images.input": 67,
    "train.precision": "float32",
    "train.epochs": 2,
    "train.batch_size": 40,
    "optimizer.muon_lr": 0,
    "data.cache": "none",
    "train.threads": 1,
}
ENVIRONMENT = {
    **{"AWS_ENDPOINT_URL": f"http://{STORE}:{PORT}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
    **{"AWS_DEFAULT_REGION": "us-east-1", "MASTER_ADDR": STORE, "MASTER_PORT": "29400", "OMP_NUM_THREADS": "1"},
}


@contextmanager
def store(machine: str, log: Path) -> Iterator[None]:
    """Run an object store on a machine."""
    command = ["ip", "netns", "exec", machine, sys.executable, "-m", "moto.server", "-H", STORE, "-p", str(PORT)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def upload(machine: str, shards: Path) -> None:
    """Put the shards into a bucket."""
    code = (
        "import fsspec, sys, pathlib\n"
        "files = fsspec.filesystem('s3')\n"
        "files.mkdir('photos')\n"
        "[files.put_file(str(path), f'photos/{path.name}') for path in pathlib.Path(sys.argv[1]).iterdir()]"
    )
    for attempt in range(30):  # until the store answers
        done = on(machine, [sys.executable, "-c", code, str(shards)], {})
        if done.wait() == 0:
            return
        time.sleep(1 + attempt / 10)
    raise SystemExit("the object store does not answer")


def on(machine: str, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command on a machine."""
    environment = {**os.environ, **ENVIRONMENT, "GLOO_SOCKET_IFNAME": machine, **more}
    return subprocess.Popen(["ip", "netns", "exec", machine, *command], env=environment)


def train(machines: list[str], data: str, out: Path) -> None:
    """Train with a process on each machine; only the first has the run folder."""
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    running = []
    for rank, machine in enumerate(machines):
        place = out if rank == 0 else out.with_name(f"{out.name}-of-{rank}")
        command = [sys.executable, "-m", "alexnet", "train", data, "--out", str(place), *settings]
        workers = {"RANK": str(rank), "WORLD_SIZE": str(len(machines)), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        cache = {"ALEXNET_CACHE": str(out.parent / f"cache{rank}"), "XDG_CACHE_HOME": str(out.parent / f"home{rank}")}
        running.append(on(machine, command, cache | (workers if len(machines) > 1 else {})))
    if any([process.wait() for process in running]):
        raise SystemExit("a training failed")


def losses(run: Path) -> list[float]:
    """Return the training and validation losses of all epochs."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train_loss", "val_loss")]


def main() -> None:
    """Train on one machine and on two, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cable() as machines:
        place = Path(folder)
        alexnet.shard(options.photos, place / "shards", side=96)
        last = len(list((place / "shards").glob("images-*.tar"))) - 1
        with store(machines[0], place / "store.log"):
            upload(machines[0], place / "shards")
            data = f"s3://photos/images-{{000000..{last:06}}}.tar"
            train(machines[:1], data, place / "one")
            train(machines, data, place / "two")
        kept = [path for path in place.glob("cache*/*") if path.name != "kernels"]
        one, two = losses(place / "one"), losses(place / "two")
    off = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    print(f"losses on one machine {one}, on two {two}: off by {off:.1e} at most; {len(kept)} caches of images")
    if off > TOLERANCE or kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
