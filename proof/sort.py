"""Kill `alexnet predict --sort` at random moments: every byte of the photos is somewhere, and returns to its place.

    python -m proof.sort [--photos 500] [--kills 20] [--seed 0]

Copying, moving and linking take turns. Each is killed, continued, killed while it is undone, and undone. Needs real images in
ALEXNET_TEST_DATA. Prints a line per turn and a line of JSON; the exit code is 1 if a byte is missing or out of place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HOWS = ((), ("--move",), ("--link",))


def content(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by path; links are not followed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def predict(*arguments: object, kill_after: float | None = None) -> float:
    """Run `alexnet predict`, killed after so many seconds; return the seconds that it took."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "alexnet", "predict", *map(str, arguments)], stdout=subprocess.DEVNULL)
    if kill_after is not None:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    if process.wait() not in ((0,) if kill_after is None else (0, -signal.SIGKILL)):
        raise SystemExit(f"alexnet predict {' '.join(map(str, arguments))} exited with {process.returncode}")
    return time.monotonic() - began


def main() -> None:
    """Run all turns and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = np.random.default_rng(options.seed)
    source = Path(os.environ["ALEXNET_TEST_DATA"]) / "cats-dogs" / "train"
    wrong = during = 0
    with tempfile.TemporaryDirectory() as temporary:
        run, photos, out = (Path(temporary, name) for name in ("run", "photos", "sorted"))
        train = [
            sys.executable,
            "-m",
            "alexnet",
            "train",
            "digits",
            "--epochs",
            "1",
            "--set",
            "model.width=0.1",
            "--out",
            str(run),
        ]
        subprocess.run(train, check=True, capture_output=True)
        photos.mkdir()
        for photo in sorted(source.iterdir())[: options.photos]:
            shutil.copy(photo, photos)
        before = content(photos)
        seconds = predict(run, photos, "--sort", out)
        undo_seconds = predict(run, out, "--undo")
        for turn in range(options.kills):
            how = HOWS[turn % len(HOWS)]
            predict(run, photos, "--sort", out, *how, kill_after=float(chance.uniform(0.3, 1)) * seconds)
            placed = len(content(out)) if out.exists() else 0
            during += 0 < placed < options.photos
            lost = set(before.values()) - {*content(photos).values(), *(content(out) if out.exists() else {}).values()}
            remaining = [photos] if any(photos.iterdir()) else []
            if remaining:
                predict(run, photos, "--sort", out, *how)
            predict(run, out, "--undo", kill_after=float(chance.uniform(0.3, 1)) * undo_seconds)
            if (out / "sorted.jsonl").exists():
                predict(run, out, "--undo")
            ok = not lost and content(photos) == before and not out.exists()
            wrong += not ok
            print(
                f"turn {turn + 1} {' '.join(how) or '--copy'}: {placed} placed at the kill, {'ok' if ok else 'WRONG'}",
                flush=True,
            )
    print(json.dumps({"turns": options.kills, "photos": options.photos, "killed_while_placing": during, "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
