"""Ctrl-C and SIGTERM held back until the training step is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class HeldBackInterrupt:
    """While entered, the first SIGINT or SIGTERM only sets `asked`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> HeldBackInterrupt:
        # Python runs signal handlers in the main thread alone, and lets only it set them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
