"""Training by the clock: what share of the time is over, decided once before each step and written down.

The rate, the input's size and the end follow from these shares. They are the lines of `journal.txt`, so a run that was killed
repeats its steps since the last checkpoint as it took them first, and only then looks at the clock again.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import IO

from alexnet.errors import RunError, reason_of

STEPS_TO_WARM_UP = 3  # they also find places in memory and plans of their operations
EVALUATED = 0.4  # of the time of a step's image is what one to evaluate takes


class Clock:
    """The time of a training of so many `minutes`, which ends by evaluating `images` once more.

    Attributes:
        share: of the training, done before the step at work, 0 to 1.
        started: the `time.monotonic()` that the minutes count from.
        prelude: seconds from there to the first step: decoding and the like.
    """

    def __init__(self, minutes: float, images: int, started: float, journal: Path) -> None:
        """Open the `journal`; it may hold the shares of an earlier session, and a last line that was cut off.

        Raises:
            RunError: it cannot be read or written.
        """
        self.seconds, self.started, self.prelude, self.share = minutes * 60, started, 0.0, 0.0
        self._evaluated, self._path = images, journal
        self._steps = self._images = 0  # of this session
        self._paced: tuple[float, int] | None = None  # when its first steps were over, and the images of them
        try:
            journal.touch()
            self._shares = _shares(journal.read_bytes())
            text = "".join(f"{share!r}\n" for share in self._shares)
            self._file: IO[str] = journal.open("r+", encoding="ascii", errors="replace", newline="\n")
            self._file.truncate(self._file.write(text))
        except OSError as error:
            raise RunError(f"cannot write {journal}: {reason_of(error)}") from error

    def decide(self, step: int) -> None:
        """Set the share for `step`, counted from 0: as the journal says, or else by the clock, and then it is written down.

        Raises:
            RunError: the journal cannot be written.
        """
        if step >= len(self._shares) and not self.over:
            last = self._shares[-1] if self._shares else 0.0
            missing = step - len(self._shares)  # of a journal that was cut before a checkpoint: never asked for
            self._write([last] * missing + [max(last, self._by_time())])
        self.share = self._shares[min(step, len(self._shares) - 1)]

    @property
    def over(self) -> bool:
        """Whether the end was decided."""
        return bool(self._shares) and self._shares[-1] >= 1.0

    @property
    def seconds_left(self) -> float:
        """Until the minutes are over."""
        return self.seconds - (time.monotonic() - self.started)

    def stepped(self, images: int) -> None:
        """Count a step on so many images, for the pace."""
        self._steps, self._images = self._steps + 1, self._images + images
        if self._steps == STEPS_TO_WARM_UP:
            self._paced = (time.monotonic(), self._images)

    def flush(self) -> None:
        """Write the journal to disk, before a checkpoint that counts on it.

        Raises:
            RunError: it cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {reason_of(error)}") from error

    def _write(self, shares: list[float]) -> None:
        self._shares += shares
        try:
            self._file.writelines(f"{share!r}\n" for share in shares)
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {reason_of(error)}") from error

    def _by_time(self) -> float:
        whole = self.seconds - self._reserve() - self.prelude
        return min(1.0, max(0.0, time.monotonic() - self.started - self.prelude) / max(1.0, whole))

    def _reserve(self) -> float:
        """Return the seconds to keep for evaluating at the end, by this session's pace.

        The first steps do not count, as they are slow; and never more than half of the time is kept.
        """
        pace = 0.0
        if self._paced is not None and self._steps > STEPS_TO_WARM_UP:
            began, images = self._paced
            pace = (time.monotonic() - began) / max(1, self._images - images)
        return min(3.0 + EVALUATED * pace * self._evaluated, self.seconds / 2)


def _shares(content: bytes) -> list[float]:
    """Return the numbers of a journal up to the first line that is cut off or is no share that can follow."""
    shares: list[float] = []
    for line in content.split(b"\n")[:-1]:
        try:
            share = float(line)
        except ValueError:
            break
        if not (math.isfinite(share) and (shares[-1] if shares else 0.0) <= share <= 1.0):
            break
        shares.append(share)
    return shares
