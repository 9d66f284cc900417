"""How far a training is, and when it is over: by its epochs, or by the clock where the recipe names minutes."""

from __future__ import annotations

import time
from pathlib import Path

from alexnet.recipe import Train
from alexnet.training.clock import Clock
from alexnet.training.processes import Group
from alexnet.training.state import Progress


class Budget:
    """What a training may take; where processes train together, all of them ask alike and get the same answers.

    Attributes:
        started: the `time.monotonic()` that the training's seconds count from, those of earlier sessions too.
    """

    def __init__(self, train: Train, steps: int, evaluated: int, journal: Path, started: float, group: Group) -> None:
        """`steps` are those of an epoch; by the clock, the training ends by evaluating `evaluated` images once more."""
        self.started = started
        self._steps, self._epochs, self._group = steps, train.epochs, group
        self._by_clock = train.minutes is not None
        self._clock: Clock | None = None  # the first process's
        if train.minutes is not None and group.first:
            self._clock = Clock(train.minutes, evaluated, started, journal)
        self._clock_says = 0.0
        self._began = (0.0, 0.0)  # when this session began, and how much was done then

    def take_up(self, seconds: float) -> None:
        """Count the seconds of earlier sessions too."""
        self.started -= seconds
        if self._clock is not None:
            self._clock.started = self.started

    def begin(self, at: Progress) -> None:
        """Note that the first step of this session is next."""
        if at.prelude is None:
            at.prelude = time.monotonic() - self.started
        if self._clock is not None:
            self._clock.prelude = at.prelude
        self._began = (time.monotonic(), self.done(at))

    def done(self, at: Progress, into_step: float = 0.0) -> float:
        """Return how much of the training is done, from 0 to 1; by the clock, before the step at work."""
        if self._by_clock:
            return self._clock_says
        return (self._steps_done(at) + into_step) / (self._epochs * self._steps)

    def over(self, at: Progress) -> bool:
        """Tell whether nothing is left to do; by the clock, that is decided here, once for each step."""
        if self._clock is not None:
            self._clock.decide(self._steps_done(at))
            self._clock_says = self._clock.share
        if self._by_clock:
            self._clock_says = self._group.agreed(self._clock_says)
        return at.ended or self.done(at) >= 1.0

    def seconds_left(self, at: Progress) -> float:
        """Return about how long it will take."""
        if self._clock is not None:
            return self._clock.seconds_left
        began, before = self._began
        done = self.done(at)
        return (time.monotonic() - began) * (1 - done) / max(done - before, 1e-9)

    def stepped(self, images: int) -> None:
        """Count a step on so many images, for the clock's pace."""
        if self._clock is not None:
            self._clock.stepped(images)

    def flush(self) -> None:
        """Write to disk what was decided, before a checkpoint that counts on it.

        Raises:
            RunError: it cannot be written.
        """
        if self._clock is not None:
            self._clock.flush()

    def _steps_done(self, at: Progress) -> int:
        return (at.epoch - 1) * self._steps + at.batch
