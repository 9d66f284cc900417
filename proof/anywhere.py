"""Run the tests of `make test` as on other machines, as far as one machine can simulate them, and print which tests fail where.

    python -m proof.anywhere [SETTING…]          all settings, or those named: `python -m proof.anywhere avx2 kernels-off`
    python -m proof.anywhere --trained 20        only tests that train, each time with another seed and number of threads
    python -m proof.anywhere --list

It continues after a failure; the exit code is 1 if a test failed under any setting. Arguments after `--` are passed to pytest:
`python -m proof.anywhere avx2 -- tests/test_lrn.py`.

In the process of the tests, this file is a pytest plugin: ALEXNET_TEST_ORDER is the seed of a random order of the tests, and
ALEXNET_TEST_ONLY=training skips tests that train nothing.
"""

from __future__ import annotations

import argparse
import inspect
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parent.parent
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
THREADS = (1, 2, 4)


class Setting(NamedTuple):
    """A simulated machine: environment variables, whether other processes keep all cores busy, whether the checkout moves."""

    environment: Mapping[str, str] = {}
    busy: bool = False
    moved: bool = False


def instructions(aten: str, onednn: str, **more: str) -> Setting:
    """Return a setting that limits the processor to these instructions."""
    return Setting({"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, **more})


def a_locale() -> str:
    """Return a locale with unusual rules for upper and lower case, or else the plainest."""
    there = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    return next((name for name in there if name.lower() in ("tr_tr.utf8", "tr_tr.utf-8")), "C")


SETTINGS = {
    "plain": Setting(),
    "avx2": instructions("avx2", "AVX2"),
    "avx512": instructions("avx512", "AVX512_CORE"),
    "avx512-bf16": instructions("avx512", "AVX512_CORE_BF16"),
    "amx": instructions("avx512", "AVX512_CORE_AMX"),
    **{f"threads-{count}": Setting({"ALEXNET_TEST_THREADS": str(count)}) for count in THREADS[1:]},  # plain has one
    "kernels-off": Setting({"ALEXNET_KERNELS": "0"}),
    "avx2-kernels-off": instructions("avx2", "AVX2", ALEXNET_KERNELS="0"),
    "random-order": Setting({"ALEXNET_TEST_ORDER": "1"}),
    "locale": Setting({"LC_ALL": a_locale(), "TZ": "Pacific/Kiritimati"}),
    "no-home": Setting({"HOME": os.devnull}),  # nobody can write to folders in it, not even root
    "odd-path": Setting(moved=True),
    "narrow-terminal": Setting({"COLUMNS": "40"}),
    "busy": Setting(busy=True),
}
NEEDS = {"avx512": "avx512_f", "avx512-bf16": "avx512_bf16", "amx": "amx_tile"}  # names of torch.cpu.get_capabilities()


class Outcome(NamedTuple):
    """The counts that pytest reported, and the names of the tests that failed."""

    passed: int
    failed: list[str]
    skipped: int
    minutes: float


def missing_reason(name: str) -> str | None:
    """Return what this machine lacks for a setting; None if it can be simulated."""
    need = NEEDS.get(name)
    return None if need is None or torch.cpu.get_capabilities().get(need) else need


@contextmanager
def busy_cores(busy: bool) -> Iterator[None]:
    """Keep all cores busy with endless loops."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)] if busy else []
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def checkout(moved: bool) -> Iterator[Path]:
    """Yield the project's folder, or a copy in a folder with spaces and non-ASCII letters in its name."""
    if not moved:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "ein Ordner für Ümläute"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".venv*", ".git", "build", "runs", "site", ".hypothesis"))
        yield place


def tested(setting: Setting, arguments: list[str]) -> Outcome:
    """Run the tests under a setting."""
    with checkout(setting.moved) as root, tempfile.TemporaryDirectory(prefix="a place " if setting.moved else None) as folder:
        report = Path(folder) / "report.xml"
        own = {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "TMPDIR": folder}
        own["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads leave the cores to the other processes: twice as fast
        command = [sys.executable, "-m", "pytest", "-q", "-p", "proof.anywhere", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *arguments]
        start = time.monotonic()
        with busy_cores(setting.busy), (Path(folder) / "log").open("w+", encoding="utf-8", errors="replace") as log:
            environment = {**os.environ, **own, **setting.environment}
            code = subprocess.run(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
            minutes = (time.monotonic() - start) / 60
            if not report.exists():
                log.seek(0)
                return Outcome(0, [f"pytest ended with {code}: {log.read()[-2000:]}"], 0, minutes)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314 - pytest wrote it just now
        bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        failed = [f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}" for case in bad]
        skipped = sum(case.find("skipped") is not None for case in cases if case not in bad)
        if failed:
            kept = Path(tempfile.gettempdir()) / f"anywhere-{time.strftime('%H%M%S')}.log"
            shutil.copy(Path(folder) / "log", kept)
            print(f"  log of failures: {kept}", flush=True)
        return Outcome(len(cases) - len(failed) - skipped, failed, skipped, minutes)


def trained(count: int) -> Iterator[tuple[str, Setting]]:
    """Yield this number of settings for the tests that train, each with another seed."""
    for seed in range(1, count + 1):
        threads = THREADS[seed % len(THREADS)]
        names = {"ALEXNET_TEST_SEED": str(seed), "ALEXNET_TEST_THREADS": str(threads), "ALEXNET_TEST_ONLY": "training"}
        yield f"seed {seed}, {threads} threads", Setting(names)


# Calls that train, in the source of a test or of its fixtures.
TRAINS = re.compile(r"\btrain\(|\"train\"|\bstarted\(|training\.start|\bTrainer\b|\.resume\(|--resume|ablate|lr_finder|find_lr")


def trains(item: pytest.Item) -> bool:
    """Return whether a test, or a fixture that it uses, trains a network."""
    fixtures = getattr(item, "_fixtureinfo", None)
    functions = [each.func for found in fixtures.name2fixturedefs.values() for each in found] if fixtures else []
    functions.append(inspect.unwrap(getattr(item, "function", trains)))
    return any(TRAINS.search(inspect.getsource(function)) for function in functions)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select and shuffle the tests, in the same way in every worker."""
    if os.environ.get("ALEXNET_TEST_ONLY") == "training":
        left_out = [item for item in items if not trains(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if trains(item)]
    if order := os.environ.get("ALEXNET_TEST_ORDER"):
        random.Random(order).shuffle(items)  # noqa: S311


def main() -> int:
    """Run the requested settings, print a row for each, and return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(SETTINGS)}; all by default")
    parser.add_argument("--trained", type=int, default=0, metavar="N", help="run the tests that train N times instead")
    parser.add_argument("--list", action="store_true", help="print the settings and what this machine lacks")
    own, more = sys.argv[1:], ["-m", "not long"]
    if "--" in own:
        own, more = own[: own.index("--")], [*more, *own[own.index("--") + 1 :]]
    asked = parser.parse_args(own)
    if wrong := set(asked.settings) - set(SETTINGS):
        parser.error(f"no setting {sorted(wrong)[0]!r}: there are {', '.join(SETTINGS)}")
    if asked.list:
        for name, setting in SETTINGS.items():
            print(f"{name:18}{setting.environment or ''}{f'  lacks {lack}' if (lack := missing_reason(name)) else ''}")
        return 0
    chosen = list(trained(asked.trained)) or [(name, SETTINGS[name]) for name in asked.settings or SETTINGS]
    failures = 0
    print(f"{'setting':24}{'passed':>8}{'failed':>8}{'skipped':>9}{'minutes':>9}", flush=True)
    for name, setting in chosen:
        if lack := missing_reason(name):
            print(f"{name:24}  not run: this processor has no {lack}", flush=True)
            continue
        found = tested(setting, [*PARALLEL, *more])
        failures += len(found.failed)
        counts = f"{found.passed:8}{len(found.failed):8}{found.skipped:9}{found.minutes:9.1f}"
        print("\n    ".join([f"{name:24}{counts}", *found.failed]), flush=True)
    print(f"{failures} failures under {len(chosen)} settings")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
