"""Starting several processes that train together, on this machine, by torchrun's own engine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexnet.errors import AlexNetError

SECONDS_TO_SAVE = 120  # after a signal


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `alexnet` with these arguments in so many processes that know of each other; return the exit code.

    The cores are shared out among them. What goes wrong in the first, it says itself.

    Raises:
        AlexNetError: a process was killed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if os.name == "nt":
        os.environ.setdefault("USE_LIBUV", "0")  # which PyTorch for Windows is built without
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "alexnet", *arguments)
    except SignalException as caught:
        return 128 + int(caught.sigval)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        name = signal.Signals(-first.exitcode).name
        raise AlexNetError(
            f"process {rank} of {processes} was killed ({name}), and the others with it; go on from the last "
            "checkpoint with --resume"
        ) from failed
    return 0
