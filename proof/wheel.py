"""Build the wheel, install it into an empty environment and run every command there, as a user would.

    python -m proof.wheel [--keep]

The source tree is not on any path there. First the wheel alone: every command, and a one-line error from those that need an
extra; then each extra with its commands; then machines that lack a compiler, a writable cache or `os.fork`; and two users of
one cache, which needs root. Prints a table of steps with seconds; continues after failures; the exit code is 1 if there were
any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from proof.pictures import class_folders

ROOT = Path(__file__).parent.parent
WINDOWS, LINUX = os.name == "nt", sys.platform == "linux"
SMALL = "--set model.width=0.0625 --set images.input=67"
SHORT = {"small": SMALL, "tiny": f"{SMALL} --epochs 1"}  # replaced with settings in commands
NOBODY = 65_534
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")

# Commands that need no extra, and the output that each must contain.
JOB = {
    "--version": "alexnet ",
    "train digits {tiny} --out runs/digits": "report.html",
    "train photos {tiny} --out runs/photos": "report.html",
    "evaluate runs/photos photos": "%",
    "predict runs/photos photos --json": '"probability"',
    "report runs/digits": "report.html",
    "compare runs/digits runs/photos": "",
    "data check photos": "",
    "data show photos --out sheet.png": "",
    "model summary paper": "conv1",
    "model plot paper --out paper.svg": "",
    "recipes show fast": "[train]",
    "ablate photos --vary optimizer.lr=0.01,0.001 --seeds 1 --out runs/ablation {small} --set train.epochs=1": "",
}
# For each extra, the commands that need it.
EXTRAS = {
    "parquet": ["data check table.parquet"],
    "keras": [
        "import x.h5 --variant cifar10 --recipe fast --set model.width=0.0625 --out runs/keras --set images.cache_size=64"
        " --set images.mean=[0.5,0.5,0.5] --set images.std=[0.2,0.2,0.2]",
        "predict runs/keras photos",
    ],
    "explain": ["explain runs/photos photos --out why"],
    "search": ["search index runs/photos photos", "search query runs/photos photos --out alike.png"],
    "export": ["export runs/photos", "export runs/photos --int8", "export runs/photos --bare"],
    "serve": ["serve runs/photos --port 0"],
}
# Remove what only some systems have; os.getuid, os.register_at_fork and resource stay, as libraries need them on Linux.
BARE_SYSTEM = """
import os, signal
absent = {os: "fork forkpty sched_getaffinity", signal: "setitimer SIGPROF SIGALRM"}
for module, names in absent.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
KERNELS = (
    "from alexnet.network.fast import kernels; print(kernels.missing_reason() or kernels.library() or 'not for this system')"
)


class Skipped(Exception):
    """A step that cannot be run here; the message says why."""


@dataclass
class Trial:
    """A folder with an environment in it; `steps` records name, result and seconds of each step."""

    folder: Path
    steps: list[tuple[str, str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.programs = self.folder / "venv" / ("Scripts" if WINDOWS else "bin")
        self.python = self.programs / ("python.exe" if WINDOWS else "python")
        self.work = self.folder / "work"  # where commands run

    def step(self, name: str, do: Callable[..., object], *arguments: Any, **settings: Any) -> None:
        """Run a step, record its result and print it."""
        started = time.monotonic()
        try:
            do(*arguments, **settings)
            result = "ok"
        except Skipped as reason:
            result = f"skipped: {reason}"
        except Exception as error:  # whatever the error, the next steps must run too
            result = f"FAILED: {type(error).__name__}: {error}"
        self.steps.append((name, result, time.monotonic() - started))
        print(f"{self.steps[-1][2]:6.1f} s  {name}: {result}", flush=True)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment variables of a user who has set none."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ALEXNET", "VIRTUAL_ENV"))}
        home = {"HOME": str(self.folder / "home"), "USERPROFILE": str(self.folder / "home")}
        return {**ours, **home, "ALEXNET_CACHE": str(self.folder / "cache"), "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", **more}

    def run(self, *command: object, code: int = 0, wanted: str = "", user: int | None = None, **more: str) -> str:
        """Run a command in the empty folder; it must exit with `code` and print `wanted`. Return its output."""
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        done = subprocess.run(
            [*as_user, *map(str, command)],
            cwd=self.work,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        output = done.stdout.decode(errors="replace")
        if done.returncode != code or "Traceback" in output or wanted not in output:
            shown = " ".join(map(str, command[-6:]))
            raise RuntimeError(f"{shown}: exit code {done.returncode}, wanted {code} and {wanted!r}\n{output[-2000:]}")
        return output

    def alexnet(self, command: str, **how: Any) -> str:
        """Run `alexnet` as installed; return its output."""
        return self.run(self.programs / "alexnet", *command.format(**SHORT).split(" "), **how)

    def install(self, extra: str = "") -> None:
        """Install the wheel, with an extra."""
        name = f"{wheel(self)}{extra and f'[{extra}]'}"
        self.run(self.python, *PIP, "-c", ROOT / "constraints.txt", name, HOME=str(Path.home()))


# Building


def build(trial: Trial) -> None:
    """Build the wheel and sdist in a separate environment, and another wheel from the sdist."""
    venv.create(trial.folder / "build", with_pip=True)
    python = trial.folder / "build" / trial.programs.name / trial.python.name
    trial.run(python, *PIP, "hatchling>=1.24")

    def hatch(source: Path, out: str, *kinds: str) -> None:
        command = [python, "-m", "hatchling", "build", *kinds, "-d", trial.folder / out]
        subprocess.run(command, cwd=source, env=trial.environment(), check=True, capture_output=True)

    hatch(ROOT, "dist", "-t", "sdist", "-t", "wheel")
    (archive,) = (trial.folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(trial.folder / "unpacked", filter="data")
    hatch(next((trial.folder / "unpacked").iterdir()), "again", "-t", "wheel")


def wheel(trial: Trial, folder: str = "dist") -> Path:
    """Return the path of the wheel that was built."""
    (found,) = (trial.folder / folder).glob("*.whl")
    return found


def content(file: Path) -> dict[str, bytes]:
    """Return the files in a wheel."""
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def same_wheel(trial: Trial) -> None:
    """Compare the wheel with the one built from the sdist."""
    if content(wheel(trial)) != content(wheel(trial, "again")):
        raise RuntimeError("the sdist makes another wheel")


def complete(trial: Trial) -> None:
    """Compare the files of the wheel with those of the source."""
    source = ROOT / "src"
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    names = {name for name in content(wheel(trial)) if ".dist-info/" not in name}
    if names != wanted:
        raise RuntimeError(f"lacks {sorted(wanted - names)}, has besides {sorted(names - wanted)}")


# The job


def without_extras(trial: Trial) -> None:
    """Run every command that needs no extra, and those that do: exit code 1, and one line that says what to install."""
    import_it = "import alexnet, alexnet.scratch; print(alexnet.__file__)"
    trial.step("import", trial.run, trial.python, "-c", import_it, wanted="site-packages")
    trial.step("python -m alexnet", trial.run, trial.python, "-m", "alexnet", "--help")
    for command, wanted in JOB.items():
        trial.step(command, trial.alexnet, command, wanted=wanted)

    def one_line(command: str) -> None:
        lines = trial.alexnet(command, code=1).splitlines()
        if len(lines) != 1 or not lines[0].startswith("alexnet: ") or "pip install" not in lines[0]:
            raise RuntimeError(f"not one line with the way out: {lines}")

    for name, commands in EXTRAS.items():
        trial.step(f"without {name}: one line", one_line, commands[0])


def with_extras(trial: Trial) -> None:
    """Install each extra and run its commands."""
    for name, commands in EXTRAS.items():
        trial.step(f"install [{name}]", trial.install, name)
        for command in commands:
            if name == "serve":
                trial.step(command, serve, trial)
            else:
                trial.step(command, trial.alexnet, command)


def serve(trial: Trial, **more: str) -> None:
    """Start a server, send a request, and stop it."""
    command = [trial.programs / "alexnet", *EXTRAS["serve"][0].split()]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=trial.work, env=trial.environment(**more), **piped) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://[0-9.:]+", process.stdout.readline())[0]  # type: ignore[index]
            healthy = requests.get(f"{url}/healthz", timeout=60).json()
            photo = next((trial.work / "photos").rglob("*.png")).read_bytes()
            (answer,) = requests.post(f"{url}/predict", photo, headers={"Content-Type": "image/png"}, timeout=60).json()
            page = requests.get(url, timeout=60).content
            process.terminate() if WINDOWS else process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
    if healthy != {"status": "ok"} or "predictions" not in answer or b"<html" not in page or (code != 130 and not WINDOWS):
        raise RuntimeError(f"{healthy}, {answer}, {len(page)} bytes of page, exit code {code}")


# Machines that lack something


def kernels(trial: Trial, wanted: str, **more: str) -> None:
    """Compile the kernels, or report why that is not possible."""
    if not LINUX:
        raise Skipped("the kernels are for Linux")
    trial.run(trial.python, "-c", KERNELS, wanted=wanted, **more)


def machines(trial: Trial) -> None:
    """Try what machines lack."""
    train, predict = "train photos {tiny} --out runs/", "predict runs/photos photos"
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    trial.step("kernels", kernels, trial, "<CDLL" if compiler else "no C++ compiler was found")
    none = {"PATH": str(trial.programs)}
    trial.step("kernels without a compiler", kernels, trial, "no C++ compiler was found", **none)
    trial.step("train without a compiler", trial.alexnet, f"{train}no-compiler", **none)
    file = trial.folder / "no-folder"
    file.touch()
    no_cache: dict[str, Any] = {"ALEXNET_CACHE": str(file)}
    trial.step("kernels, and a cache that cannot be written", kernels, trial, str(file) if compiler else "no C++", **no_cache)
    trial.step("predict, and a cache that cannot be written", trial.alexnet, predict, **no_cache)
    one_line: dict[str, Any] = {"code": 1, "wanted": "ALEXNET_CACHE", **no_cache}
    trial.step("train, and a cache that cannot be written: one line", trial.alexnet, f"{train}no-cache", **one_line)
    site = trial.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BARE_SYSTEM, encoding="utf-8")
    bare = {"PYTHONPATH": str(site)}
    trial.step("train without os.fork and the like", trial.alexnet, f"{train}bare", **bare)
    trial.step("predict without os.fork and the like", trial.alexnet, "predict runs/bare photos", **bare)
    trial.step("serve without os.fork and the like", serve, trial, **bare)
    trial.step("train in the locale C", plain_locale, trial, f"{train}ünïcode")
    trial.step("predict in the locale C", plain_locale, trial, "predict runs/ünïcode photos")


def plain_locale(trial: Trial, command: str) -> None:
    """Run a command in an ASCII locale, and check that our code opens no file without an encoding."""
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:backslashreplace"}
    warn = {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "default::EncodingWarning"}
    output = trial.alexnet(command, **locale, **warn).replace(str(trial.folder), "")
    if found := re.findall(r"alexnet[/\\]\S+\.py:\d+: EncodingWarning", output):
        raise RuntimeError(f"no encoding is named: {found}")


def two_users(trial: Trial, first: int, second: int) -> None:
    """Let two users train on the same photos with one cache that both may write."""
    if WINDOWS or os.geteuid() != 0 or not shutil.which("setpriv"):
        raise Skipped("needs root and setpriv")
    shared = trial.folder / f"shared-{first}"
    shared.mkdir()
    shared.chmod(0o1777)
    for user in (first, second):
        home = trial.folder / f"home-{first}-{user}"
        home.mkdir()
        os.chown(home, user, user)
        own = {"user": user, "HOME": str(home), "ALEXNET_CACHE": str(shared), "MPLCONFIGDIR": str(home)}
        trial.alexnet(f"train photos {{tiny}} --out {home}/run", **own)
        trial.alexnet(f"predict {home}/run photos", **own)


def prepare(trial: Trial) -> None:
    """Create the empty folder and a user's files: photos, a table, a Keras file."""
    for folder in ("work", "home", "cache"):
        (trial.folder / folder).mkdir()
    trial.folder.chmod(0o755)  # for another user
    photos = class_folders(trial.work / "photos")
    import pyarrow
    from pyarrow import parquet

    files = sorted(photos.rglob("*.png"))
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    parquet.write_table(pyarrow.table(columns), trial.work / "table.parquet")
    sys.path.insert(0, str(ROOT / "tests"))
    from keras_layouts import model, weights_h5

    weights_h5(trial.work / "x.h5", model())


def main() -> int:
    """Run all steps, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    keep = parser.parse_args().keep
    started = time.monotonic()
    trial = Trial(Path(tempfile.mkdtemp(prefix="alexnet-wheel-")).resolve())
    try:
        trial.step("prepare", prepare, trial)
        trial.step("build wheel and sdist", build, trial)
        trial.step("the sdist makes the same wheel", same_wheel, trial)
        trial.step("the wheel holds the files of src/, and no other", complete, trial)
        trial.step("an empty environment", venv.create, trial.folder / "venv", with_pip=True)
        trial.step("install the wheel", trial.install)
        without_extras(trial)
        with_extras(trial)
        machines(trial)
        trial.step("two users, root first", two_users, trial, 0, NOBODY)
        trial.step("two users, root last", two_users, trial, NOBODY, 0)
    finally:
        if keep:
            print(f"left: {trial.folder}")
        else:
            shutil.rmtree(trial.folder, ignore_errors=True)
    failed = [name for name, result, _ in trial.steps if result.startswith("FAILED")]
    print(f"\n{'step':50}  {'seconds':>7}  result")
    for name, result, seconds in trial.steps:
        print(f"{name[:50]:50}  {seconds:7.1f}  {result.splitlines()[0]}")
    seconds = round(time.monotonic() - started)
    print(json.dumps({"proof": "wheel", "steps": len(trial.steps), "failed": failed, "seconds": seconds}))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
