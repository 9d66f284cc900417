"""The progress of a training, and when it is over: by its epochs, or by the clock if the recipe sets `train.minutes`.

By the clock, the progress is measured once before each step and written to `journal.txt`, a line per step. Learning rate, input
size and the end of training follow from it. A killed run repeats the steps since its last checkpoint with the progress in the
journal, and then reads the clock again; so it takes the same steps.
"""

import math
import os
import time
from pathlib import Path
from typing import IO

from alexnet.files import writing
from alexnet.recipe import Recipe
from alexnet.training.checkpoint import TrainingState
from alexnet.training.distributed import ProcessGroup
from alexnet.training.schedule import work_done

WARM_UP_STEPS = 3  # slower ones, which also allocate memory and plan operations
EVALUATION_COST = 0.4  # seconds to evaluate an image, as a fraction of those to train on it


class Journal:
    """The progress before each step, one line per step in a file; a kill may cut off its last line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.touch()
            self.values = read_journal(path.read_bytes())
            self._file: IO[str] = path.open("r+", encoding="ascii", errors="replace", newline="\n")
            self._file.truncate(self._file.write("".join(f"{progress!r}\n" for progress in self.values)))

    def append(self, values: list[float]) -> None:
        """Append the progress before the next steps."""
        self.values += values
        with writing(self._path):
            self._file.writelines(f"{progress!r}\n" for progress in values)
            self._file.flush()

    def flush(self) -> None:
        """Flush the file to disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())


class Budget:
    """The epochs or minutes of a training. All processes make the same calls and get the same results."""

    def __init__(self, recipe: Recipe, steps: int, evaluated: int, journal: Path, started: float, group: ProcessGroup) -> None:
        """`steps` is the number per epoch; by the clock, time is reserved to evaluate `evaluated` images at the end."""
        self.started = started  # a `time.monotonic()`, to be moved back by the time of earlier sessions
        train, self._schedule = recipe.train, recipe.schedule
        self._steps, self._epochs, self._evaluated, self._group = steps, train.epochs, evaluated, group
        self._seconds = train.minutes * 60 if train.minutes and train.epochs else None
        self._journal = Journal(journal) if self._seconds is not None and group.is_main else None
        self._clock_progress = 0.0
        self._session_start = (0.0, 0.0)  # time and progress
        self._session_steps = self._session_images = 0
        self._warmed_up: tuple[float, int] | None = None  # time and images at the end of the warm-up

    def begin(self, state: TrainingState) -> None:
        """Begin the session, just before its first step."""
        if state.setup_seconds is None:
            state.setup_seconds = time.monotonic() - self.started
        self._session_start = (time.monotonic(), self.progress(state))

    def progress(self, state: TrainingState, into_step: float = 0.0) -> float:
        """Return the fraction of the training that is done, from 0 to 1.

        `into_step` is the part of the current step to count as done; by the clock, it is ignored.
        """
        if self._seconds is not None:
            return self._clock_progress
        return (self.steps_done(state) + into_step) / (self._epochs * self._steps) if self._epochs else 1.0

    def steps_done(self, state: TrainingState) -> int:
        """Return the number of steps that are done."""
        return (state.epoch - 1) * self._steps + state.batch

    def is_over(self, state: TrainingState) -> bool:
        """Return whether the training is over. By the clock, this sets the progress of the current step."""
        if self._seconds is not None:
            progress = 0.0 if self._journal is None else self._journalled_progress(self._journal, self._seconds, state)
            self._clock_progress = self._group.broadcast_number(progress)
        return state.stopped_early or self.progress(state) >= 1.0

    def seconds_left(self, state: TrainingState) -> float:
        """Estimate the time left."""
        if self._seconds is not None:
            return self._seconds - (time.monotonic() - self.started)
        began, first_progress = self._session_start
        done, done_before = (work_done(self._schedule, progress) for progress in (self.progress(state), first_progress))
        return (time.monotonic() - began) * (1 - done) / max(done - done_before, 1e-9)

    def record_step(self, images: int) -> None:
        """Record a step on `images` images, to measure the pace."""
        self._session_steps, self._session_images = self._session_steps + 1, self._session_images + images
        if self._session_steps == WARM_UP_STEPS:
            self._warmed_up = (time.monotonic(), self._session_images)

    def flush(self) -> None:
        """Flush the journal to disk, before a checkpoint that relies on it."""
        if self._journal is not None:
            self._journal.flush()

    def _journalled_progress(self, journal: Journal, seconds: float, state: TrainingState) -> float:
        """Return the progress before the current step. If the journal lacks it, read the clock and append it."""
        step, values = self.steps_done(state), journal.values
        last = values[-1] if values else 0.0
        if step >= len(values) and last < 1.0:
            setup = state.setup_seconds or 0.0
            available = seconds - self._evaluation_seconds(seconds) - setup
            elapsed = max(0.0, time.monotonic() - self.started - setup)
            missing = step - len(values)  # lines that a damaged journal lacks; they are never read
            journal.append([last] * missing + [max(last, min(1.0, elapsed / max(1.0, available)))])
        return values[min(step, len(values) - 1)]

    def _evaluation_seconds(self, seconds: float) -> float:
        """Estimate the final evaluation's time from the pace of this session after its warm-up; at most half of all time."""
        pace = 0.0
        if self._warmed_up is not None and self._session_steps > WARM_UP_STEPS:
            began, images = self._warmed_up
            pace = (time.monotonic() - began) / max(1, self._session_images - images)
        return min(3.0 + EVALUATION_COST * pace * self._evaluated, seconds / 2)


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
