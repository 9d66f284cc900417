"""The progress of a training, and when it is over: by its epochs, or by the clock if the recipe sets `train.minutes`.

By the clock, the progress is measured once before each step and written to `journal.txt`, a line per step. Learning rate, input
size and the end follow from it. A killed run repeats the steps since its last checkpoint with the progress in the journal, and
then reads the clock again; so it takes the same steps.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import IO

from alexnet.errors import RunError, error_reason
from alexnet.recipe import Train
from alexnet.training.checkpoint import TrainingState
from alexnet.training.distributed import ProcessGroup

WARM_UP_STEPS = 3  # slower ones, which also allocate memory and plan operations
EVALUATION_COST = 0.4  # seconds to evaluate an image, as a fraction of those to train on it


class Budget:
    """The epochs or minutes of a training. All processes make the same calls and get the same results.

    Attributes:
        started: `time.monotonic()` at the start of the training, moved back by the time of earlier sessions.
    """

    def __init__(self, train: Train, steps: int, evaluated: int, journal: Path, started: float, group: ProcessGroup) -> None:
        """`steps` are those of an epoch; by the clock, time is reserved to evaluate `evaluated` images at the end."""
        self.started = started
        self._steps, self._epochs, self._group = steps, train.epochs, group
        self._by_clock = train.minutes is not None
        self._clock: Clock | None = None  # in the main process
        if train.minutes is not None and group.is_main:
            self._clock = Clock(train.minutes, evaluated, started, journal)
        self._clock_progress = 0.0
        self._session_start = (0.0, 0.0)  # time and progress

    def add_elapsed(self, seconds: float) -> None:
        """Add the seconds of earlier sessions."""
        self.started -= seconds
        if self._clock is not None:
            self._clock.started = self.started

    def begin(self, state: TrainingState) -> None:
        """Begin the session, just before its first step."""
        if state.setup_seconds is None:
            state.setup_seconds = time.monotonic() - self.started
        if self._clock is not None:
            self._clock.setup_seconds = state.setup_seconds
        self._session_start = (time.monotonic(), self.progress(state))

    def progress(self, state: TrainingState, into_step: float = 0.0) -> float:
        """Return the fraction of the training that is done, from 0 to 1.

        `into_step` is the part of the current step to count as done; by the clock, it is ignored.
        """
        if self._by_clock:
            return self._clock_progress
        return (self._steps_done(state) + into_step) / (self._epochs * self._steps)

    def is_over(self, state: TrainingState) -> bool:
        """Return whether the training is over. By the clock, this sets the progress of the current step."""
        if self._clock is not None:
            self._clock_progress = self._clock.progress_at(self._steps_done(state))
        if self._by_clock:
            self._clock_progress = self._group.broadcast_number(self._clock_progress)
        return state.stopped_early or self.progress(state) >= 1.0

    def seconds_left(self, state: TrainingState) -> float:
        """Estimate the time left."""
        if self._clock is not None:
            return self._clock.seconds_left
        began, first_progress = self._session_start
        progress = self.progress(state)
        return (time.monotonic() - began) * (1 - progress) / max(progress - first_progress, 1e-9)

    def record_step(self, images: int) -> None:
        """Record a step on `images` images, from which the clock measures its pace."""
        if self._clock is not None:
            self._clock.record_step(images)

    def flush(self) -> None:
        """Flush the journal to disk, before a checkpoint that relies on it."""
        if self._clock is not None:
            self._clock.flush()

    def _steps_done(self, state: TrainingState) -> int:
        return (state.epoch - 1) * self._steps + state.batch


class Clock:
    """The clock of a training of `minutes`, which ends by evaluating `evaluated` images.

    Attributes:
        started: `time.monotonic()` from which the minutes count.
        setup_seconds: from there to the first step.
    """

    def __init__(self, minutes: float, evaluated: int, started: float, journal: Path) -> None:
        """Open the journal, which may hold the lines of earlier sessions, the last one cut off."""
        self.seconds, self.started, self.setup_seconds = minutes * 60, started, 0.0
        self._evaluated, self._path = evaluated, journal
        self._steps = self._images = 0  # of this session
        self._warmed_up: tuple[float, int] | None = None  # time and images at the end of the warm-up
        try:
            journal.touch()
            self._journal = read_journal(journal.read_bytes())
            text = "".join(f"{progress!r}\n" for progress in self._journal)
            self._file: IO[str] = journal.open("r+", encoding="ascii", errors="replace", newline="\n")
            self._file.truncate(self._file.write(text))
        except OSError as error:
            raise RunError(f"cannot write {journal}: {error_reason(error)}") from error

    def progress_at(self, step: int) -> float:
        """Return the progress before `step`, counted from 0. If the journal lacks it, read the clock and append it."""
        last = self._journal[-1] if self._journal else 0.0
        if step >= len(self._journal) and last < 1.0:
            missing = step - len(self._journal)  # lines that a damaged journal lacks; they are never read
            self._write([last] * missing + [max(last, self._elapsed_fraction())])
        return self._journal[min(step, len(self._journal) - 1)]

    @property
    def seconds_left(self) -> float:
        """The time until the minutes are over."""
        return self.seconds - (time.monotonic() - self.started)

    def record_step(self, images: int) -> None:
        """Record a step on `images` images, to measure the pace."""
        self._steps, self._images = self._steps + 1, self._images + images
        if self._steps == WARM_UP_STEPS:
            self._warmed_up = (time.monotonic(), self._images)

    def flush(self) -> None:
        """Flush the journal to disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error_reason(error)}") from error

    def _write(self, values: list[float]) -> None:
        self._journal += values
        try:
            self._file.writelines(f"{progress!r}\n" for progress in values)
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error_reason(error)}") from error

    def _elapsed_fraction(self) -> float:
        available = self.seconds - self._evaluation_seconds() - self.setup_seconds
        return min(1.0, max(0.0, time.monotonic() - self.started - self.setup_seconds) / max(1.0, available))

    def _evaluation_seconds(self) -> float:
        """Estimate the final evaluation's time from the pace of this session after its warm-up; at most half of all time."""
        pace = 0.0
        if self._warmed_up is not None and self._steps > WARM_UP_STEPS:
            began, images = self._warmed_up
            pace = (time.monotonic() - began) / max(1, self._images - images)
        return min(3.0 + EVALUATION_COST * pace * self._evaluated, self.seconds / 2)


def read_journal(content: bytes) -> list[float]:
    """Return the numbers in a journal, up to the first line that is cut off, out of range or out of order."""
    values: list[float] = []
    for line in content.split(b"\n")[:-1]:
        try:
            progress = float(line)
        except ValueError:
            break
        if not (math.isfinite(progress) and (values[-1] if values else 0.0) <= progress <= 1.0):
            break
        values.append(progress)
    return values
