"""A process that forks after it has predicted with several threads: the child predicts, and does not hang."""

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
    """Do `work` in a forked child and return its exit code: 0 where it came to its end, -9 where it hung."""
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ends = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            found = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def test_a_forked_child_predicts_with_one_thread_and_decoders_of_its_own(trained: alexnet.Run, photos: Path) -> None:
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
