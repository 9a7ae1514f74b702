"""Time limits within a process, by an alarm signal: for calls of Python code, in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from nbqueue.errors import JobTimeout


class Timer:
    """Raises JobTimeout in the call that goes on: a Clock for perform(). Outside of the main thread it does nothing."""

    def __init__(self, limit: float | None, text: Callable[[], str]) -> None:
        self._limit, self._text = limit, text
        self._before: object = None

    def start(self) -> None:
        """From now on JobTimeout may be raised."""
        if self._limit is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._limit)

    def _ring(self, _signum: int, _frame: FrameType | None) -> None:
        raise JobTimeout(self._text())

    def stop(self) -> None:
        """From now on it may not."""
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, self._before)  # type: ignore[arg-type]  # what signal() gave
            self._before = None
