"""The thread that touches the disk for a spool, so that a disk that does not answer holds up nobody for long.

A read or write on a dead network mount may hang for hours and cannot be interrupted. Whoever asks here waits for a
bounded time, and then goes on without.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 5.0  # seconds that the disk may take to answer,
PACE = 2 << 20  # and bytes that it may write in each second more
LOOK = 0.25  # seconds; a wait is many of these, so that time in which this whole process stood still hardly counts


class IoTimeout(OSError):  # noqa: N818 - as those of errors.py, it says what there is
    """The disk has not answered in time. What was asked may still happen, or half of it."""


class _Task:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.done = work, threading.Event()
        self.answer: Any = None
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self.work()
        except BaseException as why:  # noqa: BLE001 - it is raised again by whoever asked
            self.fault = why
        self.done.set()


class IoThread:
    """Does one thing after the other, on a thread of its own that begins with the first."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._errands = SimpleQueue[_Task | None]()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due: dict[_Task, float] = {}  # how many seconds each may take of those that are not done

    def ask(self, work: Callable[[], T], size: int = 0) -> T:
        """What `work()` answers or raises; `size` is how many bytes it writes. Raises IoTimeout.

        What was asked before comes first, and may take its own time: a disk that is busy is not one that hangs.
        """
        if threading.current_thread() is self._thread:
            return work()
        errand = _Task(work)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=_run, args=(self._errands,), name="nbqueue spool", daemon=True)
                self._thread.start()
            self._errands.put(errand)
            self._due[errand] = self.patience + size / PACE
            seconds = sum(self._due.values())
        met = any(errand.done.wait(LOOK) for _ in range(math.ceil(seconds / LOOK)))
        with self._lock:
            del self._due[errand]
        if not met:
            raise IoTimeout(errno.ETIMEDOUT, f"the disk has not answered for {seconds:.0f} s")
        if errand.fault is not None:
            raise errand.fault
        return errand.answer  # type: ignore[no-any-return]

    def leave(self) -> None:
        """The thread ends when it has done what was asked; another begins with the next question."""
        with self._lock:
            if self._thread is not None:
                self._errands.put(None)
                self._thread, self._errands = None, SimpleQueue()


def _run(errands: SimpleQueue[_Task | None]) -> None:
    while (errand := errands.get()) is not None:
        errand.run()
