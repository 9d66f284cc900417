"""Build the wheel, install it into an empty environment and walk the whole job in an empty folder: what a user gets, works.

    python -m proof.wheel [--keep]

The source tree is on no path there. First the wheel alone: every command, and one line from those that need an extra; then
each extra with its commands; then what machines lack: a compiler, a cache that can be written, `os.fork`; and two users of one
cache, which needs root. Prints a table of steps with seconds; goes on past failures; exit code 1 if there were any.
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
SMALL = ("--set", "model.width=0.0625", "--set", "images.input=67")
TINY = (*SMALL, "--epochs", "1")
NOBODY = 65_534
# Without what only some systems have; os.getuid, os.register_at_fork and resource stay, as libraries need them on Linux.
BARE_SYSTEM = """
import os, signal
absent = {os: "fork forkpty sched_getaffinity", signal: "setitimer SIGPROF SIGALRM"}
for module, names in absent.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""


class Skipped(Exception):
    """A step that cannot be tried here; the message says why."""


@dataclass
class Walk:
    """A folder of its own with an environment in it; `steps` are those that were made: name, what came of it, seconds."""

    place: Path
    steps: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def programs(self) -> Path:
        """Where the environment's programs lie."""
        return self.place / "venv" / ("Scripts" if WINDOWS else "bin")

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.programs / ("python.exe" if WINDOWS else "python")

    @property
    def work(self) -> Path:
        """The folder where commands run."""
        return self.place / "work"

    def step(self, name: str, do: Callable[..., None], *arguments: Any, **settings: Any) -> None:
        """Make a step, note how it went and print it."""
        started = time.monotonic()
        try:
            do(*arguments, **settings)
            came = "ok"
        except Skipped as reason:
            came = f"skipped: {reason}"
        except Exception as error:  # whatever it is: the next steps are to be seen, too
            came = f"FAILED: {type(error).__name__}: {error}"
        self.steps.append((name, came, time.monotonic() - started))
        print(f"{self.steps[-1][2]:6.1f} s  {name}: {came}", flush=True)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a user who has set none."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ALEXNET", "VIRTUAL_ENV"))}
        home = {"HOME": str(self.place / "home"), "USERPROFILE": str(self.place / "home")}
        return {**ours, **home, "ALEXNET_CACHE": str(self.place / "cache"), "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", **more}

    def run(self, *command: object, code: int = 0, user: int | None = None, **more: str) -> str:
        """Run a command in the empty folder and return what it printed; anything but the exit code `code` is a failure."""
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
        said = done.stdout.decode(errors="replace")
        if done.returncode != code or "Traceback" in said:
            shown = " ".join(map(str, command[-6:]))
            raise RuntimeError(f"exit code {done.returncode}, not {code}: {shown}\n{said[-2000:]}")
        return said

    def alexnet(self, *arguments: object, wanted: str = "", **how: Any) -> None:
        """Run `alexnet` as installed; `wanted` must be somewhere in what it prints."""
        said = self.run(self.programs / "alexnet", *arguments, **how)
        if wanted not in said:
            raise RuntimeError(f"{wanted!r} is not in: {said[-2000:]}")

    def pip(self, *arguments: object) -> None:
        """Run pip in the environment."""
        self.run(
            self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments, HOME=str(Path.home())
        )


# Building


def build(walk: Walk) -> None:
    """Build wheel and sdist in an environment of their own."""
    venv.create(walk.place / "build", with_pip=True)
    python = walk.place / "build" / walk.programs.name / walk.python.name
    walk.run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling>=1.24")
    for source, out in ((ROOT, walk.place / "dist"), (None, walk.place / "again")):
        if source is None:
            (archive,) = (walk.place / "dist").glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(walk.place / "unpacked", filter="data")
            (source,) = (walk.place / "unpacked").iterdir()
        kinds = ("-t", "sdist", "-t", "wheel") if source is ROOT else ("-t", "wheel")
        subprocess.run(
            [python, "-m", "hatchling", "build", *kinds, "-d", out],
            cwd=source,
            env=walk.environment(),
            check=True,
            capture_output=True,
        )


def wheel(walk: Walk, folder: str = "dist") -> Path:
    """Return the wheel that was built."""
    (found,) = (walk.place / folder).glob("*.whl")
    return found


def same_wheel(walk: Walk) -> None:
    """Compare the wheel with the one that the sdist makes."""

    def content(file: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    if content(wheel(walk)) != content(wheel(walk, "again")):
        raise RuntimeError("the sdist makes another wheel")


def complete(walk: Walk) -> None:
    """Compare the files of the wheel with those of the source."""
    source = ROOT / "src"
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel(walk)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    if names != wanted:
        raise RuntimeError(f"lacks {sorted(wanted - names)}, has besides {sorted(names - wanted)}")


def install(walk: Walk, extra: str = "") -> None:
    """Install the wheel, with an extra."""
    walk.pip("-c", ROOT / "constraints.txt", f"{wheel(walk)}{extra and f'[{extra}]'}")


def elsewhere(walk: Walk) -> None:
    """See that it is the wheel that is imported."""
    said = walk.run(walk.python, "-c", "import alexnet; print(alexnet.__file__)")
    if "site-packages" not in said:
        raise RuntimeError(f"imported from {said}")


# The job


def without_extras(walk: Walk) -> None:
    """Make every step that needs no extra."""
    go = walk.alexnet
    walk.step("--version", go, "--version", wanted="alexnet ")
    walk.step("python -m alexnet", walk.run, walk.python, "-m", "alexnet", "--help")
    walk.step("train digits", go, "train", "digits", *TINY, "--out", "runs/digits", wanted="report.html")
    walk.step("train photos", go, "train", "photos", *TINY, "--out", "runs/photos", wanted="report.html")
    walk.step("evaluate", go, "evaluate", "runs/photos", "photos", wanted="%")
    walk.step("predict", go, "predict", "runs/photos", "photos", "--json", wanted='"probability"')
    walk.step("report", go, "report", "runs/digits", wanted="report.html")
    walk.step("compare", go, "compare", "runs/digits", "runs/photos")
    walk.step("data check", go, "data", "check", "photos")
    walk.step("data show", go, "data", "show", "photos", "--out", "sheet.png")
    walk.step("model summary", go, "model", "summary", "paper", wanted="conv1")
    walk.step("model plot", go, "model", "plot", "paper", "--out", "paper.svg")
    walk.step("recipes show", go, "recipes", "show", "fast", wanted="[train]")
    tried = ("--vary", "optimizer.lr=0.01,0.001", "--seeds", "1", "--out", "runs/ablation")
    walk.step("ablate", go, "ablate", "photos", *tried, *SMALL, "--set", "train.epochs=1")
    walk.step("import alexnet.scratch", walk.run, walk.python, "-c", "import alexnet.scratch")
    for name, (arguments, _) in EXTRAS.items():
        walk.step(f"without {name}: one line", one_line, walk, *arguments)


IMPORTED = ("import-keras", "x.h5", "--variant", "cifar10", "--recipe", "fast", "--set", "model.width=0.0625")
PREPARED = ("--set", "images.cache_size=64", "--set", "images.mean=[0.5,0.5,0.5]", "--set", "images.std=[0.2,0.2,0.2]")
# For each extra a command that needs it, and what else to run with it.
EXTRAS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "parquet": (("data", "check", "table.parquet"), ()),
    "keras": ((*IMPORTED, *PREPARED, "--out", "runs/keras"), (("predict", "runs/keras", "photos"),)),
    "explain": (("explain", "runs/photos", "photos", "--out", "why"), ()),
    "search": (
        ("search", "index", "runs/photos", "photos"),
        (("search", "query", "runs/photos", "photos", "--out", "alike.png"),),
    ),
    "export": (("export", "runs/photos"), (("export", "runs/photos", "--int8"), ("export", "runs/photos", "--bare"))),
    "serve": (("serve", "runs/photos", "--port", "0"), ()),
}


def one_line(walk: Walk, *arguments: str) -> None:
    """Run a command that lacks a library: exit code 1, and its last line names the way out."""
    said = walk.run(walk.programs / "alexnet", *arguments, code=1).splitlines()
    if len(said) != 1 or not said[0].startswith("alexnet: ") or "pip install" not in said[0]:
        raise RuntimeError(f"not one line with the way out: {said}")


def with_extras(walk: Walk) -> None:
    """Install each extra and run its commands."""
    for name, (arguments, others) in EXTRAS.items():
        walk.step(f"install [{name}]", install, walk, name)
        if name == "serve":
            walk.step("serve", serve, walk)
            continue
        for each in (arguments, *others):
            walk.step(
                " ".join(each[:2]) + (f" {each[2]}" if each[0] == "export" and len(each) > 2 else ""), walk.alexnet, *each
            )


def serve(walk: Walk, **more: str) -> None:
    """Start a server, ask it, and stop it."""
    command = [walk.programs / "alexnet", "serve", "runs/photos", "--port", "0"]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=walk.work, env=walk.environment(**more), **piped) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://[0-9.:]+", process.stdout.readline())[0]  # type: ignore[index]
            healthy = requests.get(f"{url}/healthz", timeout=60).json()
            photo = next((walk.work / "photos").rglob("*.png")).read_bytes()
            (found,) = requests.post(f"{url}/predict", photo, headers={"Content-Type": "image/png"}, timeout=60).json()
            page = requests.get(url, timeout=60).content
            process.terminate() if WINDOWS else process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
    if healthy != {"status": "ok"} or "predictions" not in found or b"<html" not in page or (code != 130 and not WINDOWS):
        raise RuntimeError(f"{healthy}, {found}, {len(page)} bytes of page, exit code {code}")


# Machines that lack something

KERNELS = (
    "from alexnet.network.fast import kernels; print(kernels.missing_reason() or kernels.library() or 'not for this system')"
)


def kernels(walk: Walk, wanted: str, **more: str) -> None:
    """Compile the kernels, or be told why not."""
    if not LINUX:
        raise Skipped("the kernels are for Linux")
    said = walk.run(walk.python, "-c", KERNELS, **more)
    if wanted not in said:
        raise RuntimeError(f"{wanted!r} is not in {said!r}")


def missing_reason(walk: Walk) -> None:
    """Try what machines lack."""
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    walk.step("kernels", kernels, walk, "<CDLL" if compiler else "no C++ compiler was found")
    none = {"PATH": str(walk.programs)}
    walk.step("kernels without a compiler", kernels, walk, "no C++ compiler was found", **none)
    walk.step("train without a compiler", walk.alexnet, "train", "photos", *TINY, "--out", "runs/no-compiler", **none)
    file = walk.place / "no-folder"
    file.touch()
    write_error = {"ALEXNET_CACHE": str(file)}
    walk.step("kernels, and a cache that cannot be written", kernels, walk, str(file) if compiler else "no C++", **write_error)
    walk.step("predict, and a cache that cannot be written", walk.alexnet, "predict", "runs/photos", "photos", **write_error)
    told = "ALEXNET_CACHE"
    walk.step(
        "train, and a cache that cannot be written: one line",
        *(walk.alexnet, "train", "photos", *TINY, "--out", "runs/no-cache"),
        **{"code": 1, "wanted": told, **write_error},
    )
    site = walk.place / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BARE_SYSTEM, encoding="utf-8")
    bare = {"PYTHONPATH": str(site)}
    walk.step("train without os.fork and the like", walk.alexnet, "train", "photos", *TINY, "--out", "runs/bare", **bare)
    walk.step("predict without os.fork and the like", walk.alexnet, "predict", "runs/bare", "photos", **bare)
    walk.step("serve without os.fork and the like", serve, walk, **bare)
    walk.step("train in the locale C", plain_locale, walk, "train", "photos", *TINY, "--out", "runs/ünïcode")
    walk.step("predict in the locale C", plain_locale, walk, "predict", "runs/ünïcode", "photos")


def plain_locale(walk: Walk, *arguments: str) -> None:
    """Run a command where text is ASCII unless its encoding is named, and look for files of ours opened without one."""
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:backslashreplace"}
    told = {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "default::EncodingWarning"}
    said = walk.run(walk.programs / "alexnet", *arguments, **locale, **told)
    if found := re.findall(r"alexnet[/\\]\S+\.py:\d+: EncodingWarning", said.replace(str(walk.place), "")):
        raise RuntimeError(f"no encoding is named: {found}")


def two_users(walk: Walk, first: int, second: int) -> None:
    """Let two users train on the same photos with one cache, which both may write."""
    if WINDOWS or os.geteuid() != 0 or not shutil.which("setpriv"):
        raise Skipped("needs root and setpriv")
    shared = walk.place / f"shared-{first}"
    shared.mkdir()
    shared.chmod(0o1777)
    for user in (first, second):
        home = walk.place / f"home-{first}-{user}"
        home.mkdir()
        os.chown(home, user, user)
        own = {"user": user, "HOME": str(home), "ALEXNET_CACHE": str(shared), "MPLCONFIGDIR": str(home)}
        walk.alexnet("train", "photos", *TINY, "--out", home / "run", **own)
        walk.alexnet("predict", home / "run", "photos", **own)


def prepare(walk: Walk) -> None:
    """Make the empty folder, and what a user has: photos, a table, a file of Keras'."""
    for folder in ("work", "home", "cache"):
        (walk.place / folder).mkdir()
    walk.place.chmod(0o755)  # for another user
    photos = class_folders(walk.work / "photos")
    import pyarrow
    from pyarrow import parquet

    files = sorted(photos.rglob("*.png"))
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    parquet.write_table(pyarrow.table(columns), walk.work / "table.parquet")
    sys.path.insert(0, str(ROOT / "tests"))
    from keras_layouts import model, weights_h5

    weights_h5(walk.work / "x.h5", model())


def main() -> int:
    """Walk, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    keep = parser.parse_args().keep
    started = time.monotonic()
    walk = Walk(Path(tempfile.mkdtemp(prefix="alexnet-wheel-")).resolve())
    try:
        walk.step("prepare", prepare, walk)
        walk.step("build wheel and sdist", build, walk)
        walk.step("the sdist makes the same wheel", same_wheel, walk)
        walk.step("the wheel holds the files of src/, and no other", complete, walk)
        walk.step("an empty environment", venv.create, walk.place / "venv", with_pip=True)
        walk.step("install the wheel", install, walk)
        walk.step("import", elsewhere, walk)
        without_extras(walk)
        with_extras(walk)
        missing_reason(walk)
        walk.step("two users, root first", two_users, walk, 0, NOBODY)
        walk.step("two users, root last", two_users, walk, NOBODY, 0)
    finally:
        if keep:
            print(f"left: {walk.place}")
        else:
            shutil.rmtree(walk.place, ignore_errors=True)
    failed = [name for name, came, _ in walk.steps if came.startswith("FAILED")]
    print(f"\n{'step':50}  {'seconds':>7}  result")
    for name, came, seconds in walk.steps:
        print(f"{name:50}  {seconds:7.1f}  {came.splitlines()[0]}")
    print(
        json.dumps({"proof": "wheel", "steps": len(walk.steps), "failed": failed, "seconds": round(time.monotonic() - started)})
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
