"""The clock of a run by minutes: how they are shared out, and whether one more piece of work fits."""

from __future__ import annotations

import time

EVALUATION_SHARE, PRIOR_SHARE = 0.08, 0.12
"""Of the minutes, for what follows training."""
MAX_SECONDS = 600.0
"""For the evaluation; a long run needs no more."""
SAVE_SECONDS = 1.0
"""To write and describe the model file."""
VALIDATION_SHARE, KMEANS_SHARE = 0.025, 0.08
"""Of the minutes, for one validation and for one start of the codebooks."""


class Clock:
    """The time that a command has.

    Args:
        minutes: Its budget; None: as long as it takes.
        began: When the command started, by `time.monotonic()`; by default now. A run that goes on moves it back by
            what it had used before.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None) -> None:
        self.began = time.monotonic() if began is None else began
        self.seconds = None if minutes is None else 60 * minutes

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def until(self) -> float | None:
        """When to have finished all but the writing of the model file; None without a budget."""
        return None if self.seconds is None else self.began + self.seconds - SAVE_SECONDS


def evaluation_seconds(clock: Clock) -> float:
    """Return the seconds to keep for the final evaluation; 0 without a budget."""
    return 0.0 if clock.seconds is None else min(EVALUATION_SHARE * clock.seconds, MAX_SECONDS)


class Pace:
    """Tell whether another item fits before a deadline, by the time that those before took for their size.

    Args:
        until: By `time.monotonic()`; None: everything fits.
        rate: Seconds per number of the media's data, as expected before there is an item.
    """

    def __init__(self, until: float | None, rate: float = 0.0) -> None:
        self.until, self.rate = until, rate
        self._size, self._since = 0, 0.0
        self._spent = 0.0

    def begins(self, size: int) -> bool:
        """Return whether an item of that size fits, and if so start to measure it; the first always fits."""
        self._since = time.monotonic()
        if self.until is not None and self._size and self._since + size * self.rate > self.until:
            return False
        self._size += size
        return True

    def done(self) -> None:
        """Learn from the item that is done."""
        self._spent += time.monotonic() - self._since
        self.rate = self._spent / self._size
