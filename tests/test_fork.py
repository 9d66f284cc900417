"""Predicting in a forked child process after the parent used several threads does not hang."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import alexnet

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def exit_code_of_a_fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child and return its exit code: 0 if it finished, -9 if it hung."""
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 60
    while (result := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            result = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(result[1])


def test_predict_after_fork(trained: alexnet.Run, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))[:8]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [answer["predictions"][0]["label"] for answer in trained.predict(files)]

        def child() -> None:
            assert torch.get_num_threads() == 1
            answers = trained.predict(files)
            assert [answer["predictions"][0]["label"] for answer in answers] == expected

        assert exit_code_of_a_fork(child) == 0
        assert torch.get_num_threads() == 2, "nothing changes in the parent"
        assert [answer["predictions"][0]["label"] for answer in trained.predict(files)] == expected
    finally:
        torch.set_num_threads(before)
