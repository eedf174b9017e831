"""The time budget of a run: how its minutes are divided, and whether another item fits."""

from __future__ import annotations

import time

EVALUATION_SHARE, PRIOR_SHARE = 0.08, 0.12
"""The shares of the budget for the final evaluation and for the prior."""
MAX_SECONDS = 600.0
"""The longest evaluation; a long run needs no more."""
SAVE_SECONDS = 1.0
"""Seconds to write the model file and to show its facts."""
VALIDATION_SHARE, KMEANS_SHARE = 0.025, 0.08
"""The shares of the budget for one validation and for one initialization of the codebooks."""


class Clock:
    """The time of a command.

    Args:
        minutes: The budget; None for no limit.
        began: When the command started, by `time.monotonic()`; by default now. A resumed run moves it back by the time
            that it had used before.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None) -> None:
        self.began = time.monotonic() if began is None else began
        self.seconds = None if minutes is None else 60 * minutes

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def until(self) -> float | None:
        """The deadline for everything except writing the model file; None without a budget."""
        return None if self.seconds is None else self.began + self.seconds - SAVE_SECONDS

    def deadline(self, share: float) -> float | None:
        """Return the end of the next share of the time that is left, by `time.monotonic()`; None without a budget."""
        if self.until is None or share == 1:
            return self.until
        now = time.monotonic()
        return now + share * (self.until - now)


def evaluation_seconds(clock: Clock) -> float:
    """Return the seconds to reserve for the final evaluation; 0 without a budget."""
    return 0.0 if clock.seconds is None else min(EVALUATION_SHARE * clock.seconds, MAX_SECONDS)


class Pace:
    """Estimates whether another item fits before a deadline, from the time per sample of the earlier items.

    Args:
        until: The deadline, by `time.monotonic()`; None if there is none.
        rate: The expected seconds per sample (one number of the media's data) before the first item is done.
    """

    def __init__(self, until: float | None, rate: float = 0.0) -> None:
        self.until, self.rate = until, rate
        self._size, self._since = 0, 0.0
        self._spent = 0.0

    def begins(self, size: int) -> bool:
        """Return whether an item of that size fits, and if so start to measure it. The first item always fits."""
        self._since = time.monotonic()
        if self.until is not None and self._size and self._since + size * self.rate > self.until:
            return False
        self._size += size
        return True

    def done(self) -> None:
        """Update the rate with the item that is done."""
        self._spent += time.monotonic() - self._since
        self.rate = self._spent / self._size
