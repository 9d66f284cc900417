"""How far a training is, and when it is over: by its epochs, or by the clock where the recipe names minutes.

By the clock, the progress is decided once before each step and written to `journal.txt`, a line a step: learning rate, input
size and end follow from it. A run that was killed repeats its steps since the last checkpoint with the progress that the
journal has for them, and only then looks at the clock again.
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

WARM_UP_STEPS = 3  # they also find places in memory and plans of their operations
EVALUATION_COST = 0.4  # of the time of a training step, by image


class Budget:
    """What a training may take. Processes that train together call it alike and get the same answers.

    Attributes:
        started: the `time.monotonic()` that the training's seconds count from, those of earlier sessions too.
    """

    def __init__(self, train: Train, steps: int, evaluated: int, journal: Path, started: float, group: ProcessGroup) -> None:
        """`steps` are those of an epoch; by the clock, the training ends by evaluating `evaluated` images once more."""
        self.started = started
        self._steps, self._epochs, self._group = steps, train.epochs, group
        self._by_clock = train.minutes is not None
        self._clock: Clock | None = None  # of the main process
        if train.minutes is not None and group.is_main:
            self._clock = Clock(train.minutes, evaluated, started, journal)
        self._clock_progress = 0.0
        self._began = (0.0, 0.0)  # when this session began, and the progress then

    def add_elapsed(self, seconds: float) -> None:
        """Count the seconds of earlier sessions too."""
        self.started -= seconds
        if self._clock is not None:
            self._clock.started = self.started

    def begin(self, state: TrainingState) -> None:
        """Note that the first step of this session is next."""
        if state.setup_seconds is None:
            state.setup_seconds = time.monotonic() - self.started
        if self._clock is not None:
            self._clock.setup_seconds = state.setup_seconds
        self._began = (time.monotonic(), self.progress(state))

    def progress(self, state: TrainingState, into_step: float = 0.0) -> float:
        """Return how much of the training is done, from 0 to 1; by the clock, before the current step."""
        if self._by_clock:
            return self._clock_progress
        return (self._steps_done(state) + into_step) / (self._epochs * self._steps)

    def is_over(self, state: TrainingState) -> bool:
        """Tell whether nothing is left to do; by the clock, that is decided here, once for each step."""
        if self._clock is not None:
            self._clock.decide(self._steps_done(state))
            self._clock_progress = self._clock.progress
        if self._by_clock:
            self._clock_progress = self._group.broadcast_number(self._clock_progress)
        return state.stopped_early or self.progress(state) >= 1.0

    def seconds_left(self, state: TrainingState) -> float:
        """Estimate how long the rest takes."""
        if self._clock is not None:
            return self._clock.seconds_left
        began, before = self._began
        progress = self.progress(state)
        return (time.monotonic() - began) * (1 - progress) / max(progress - before, 1e-9)

    def record_step(self, images: int) -> None:
        """Count a step on so many images, for the clock's pace."""
        if self._clock is not None:
            self._clock.record_step(images)

    def flush(self) -> None:
        """Write to disk what was decided, before a checkpoint that counts on it.

        Raises:
            RunError: it cannot be written.
        """
        if self._clock is not None:
            self._clock.flush()

    def _steps_done(self, state: TrainingState) -> int:
        return (state.epoch - 1) * self._steps + state.batch


class Clock:
    """The time of a training of so many `minutes`, which ends by evaluating `images` once more.

    Attributes:
        progress: of the training before the current step, 0 to 1.
        started: the `time.monotonic()` that the minutes count from.
        setup_seconds: from there to the first step: decoding and the like.
    """

    def __init__(self, minutes: float, images: int, started: float, journal: Path) -> None:
        """Open the `journal`; it may hold the lines of an earlier session, and a last line that was cut off.

        Raises:
            RunError: it cannot be read or written.
        """
        self.seconds, self.started, self.setup_seconds, self.progress = minutes * 60, started, 0.0, 0.0
        self._evaluated, self._path = images, journal
        self._steps = self._images = 0  # of this session
        self._warm: tuple[float, int] | None = None  # when the warm-up was over, and the images of it
        try:
            journal.touch()
            self._journal = read_journal(journal.read_bytes())
            text = "".join(f"{progress!r}\n" for progress in self._journal)
            self._file: IO[str] = journal.open("r+", encoding="ascii", errors="replace", newline="\n")
            self._file.truncate(self._file.write(text))
        except OSError as error:
            raise RunError(f"cannot write {journal}: {error_reason(error)}") from error

    def decide(self, step: int) -> None:
        """Set the progress before `step`, counted from 0: from the journal, or by the clock, and then it is written down.

        Raises:
            RunError: the journal cannot be written.
        """
        if step >= len(self._journal) and not self.is_over:
            last = self._journal[-1] if self._journal else 0.0
            missing = step - len(self._journal)  # of a journal that was cut before a checkpoint: never asked for
            self._write([last] * missing + [max(last, self._by_time())])
        self.progress = self._journal[min(step, len(self._journal) - 1)]

    @property
    def is_over(self) -> bool:
        """Whether the end was decided."""
        return bool(self._journal) and self._journal[-1] >= 1.0

    @property
    def seconds_left(self) -> float:
        """Until the minutes are over."""
        return self.seconds - (time.monotonic() - self.started)

    def record_step(self, images: int) -> None:
        """Count a step on so many images, for the pace."""
        self._steps, self._images = self._steps + 1, self._images + images
        if self._steps == WARM_UP_STEPS:
            self._warm = (time.monotonic(), self._images)

    def flush(self) -> None:
        """Flush the journal to disk, before a checkpoint that counts on it.

        Raises:
            RunError: it cannot be written.
        """
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

    def _by_time(self) -> float:
        whole = self.seconds - self._reserve() - self.setup_seconds
        return min(1.0, max(0.0, time.monotonic() - self.started - self.setup_seconds) / max(1.0, whole))

    def _reserve(self) -> float:
        """Return the seconds to keep for evaluating at the end, by this session's pace without its warm-up; at most half."""
        pace = 0.0
        if self._warm is not None and self._steps > WARM_UP_STEPS:
            began, images = self._warm
            pace = (time.monotonic() - began) / max(1, self._images - images)
        return min(3.0 + EVALUATION_COST * pace * self._evaluated, self.seconds / 2)


def read_journal(content: bytes) -> list[float]:
    """Return the numbers of a journal up to the first line that is cut off or cannot follow."""
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
