"""The I/O thread of the spool: callers time out if the file system hangs.

A read or write on a dead network mount may hang for hours and cannot be interrupted. It hangs on this thread; the
caller waits for a limited time.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
TIMEOUT = 5.0  # seconds that a read or write may take,
BYTES_PER_SECOND = 2 << 20  # and one more second for each so many bytes written
POLL = 0.25  # seconds; a wait is made of many of these, so that time in which this process was suspended hardly counts


class IoTimeout(OSError):  # noqa: N818 - named as the errors of errors.py
    """A read or write timed out. It may still complete, or complete in part."""


class _Task:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.done = work, threading.Event()
        self.answer: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self.work()
        except BaseException as why:  # noqa: BLE001 - raised again in the caller's thread
            self.error = why
        self.done.set()


class IoThread:
    """Runs tasks one after the other, on a thread that starts with the first task."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._tasks = SimpleQueue[_Task | None]()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due: dict[_Task, float] = {}  # unfinished task -> seconds that it may take

    def run(self, work: Callable[[], T], size: int = 0) -> T:
        """Returns or raises what `work()` does; `size` is the number of bytes that it writes. Raises IoTimeout.

        Tasks that were queued before add their own time to the timeout: a busy disk does not count as a hung one.
        """
        if threading.current_thread() is self._thread:
            return work()
        task = _Task(work)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=_run, args=(self._tasks,), name="nbqueue spool", daemon=True)
                self._thread.start()
            self._tasks.put(task)
            self._due[task] = self.timeout + size / BYTES_PER_SECOND
            seconds = sum(self._due.values())
        met = any(task.done.wait(POLL) for _ in range(math.ceil(seconds / POLL)))
        with self._lock:
            del self._due[task]
        if not met:
            raise IoTimeout(errno.ETIMEDOUT, f"the disk has not answered for {seconds:.0f} s")
        if task.error is not None:
            raise task.error
        return task.answer  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Ends the thread after the queued tasks; the next `run` starts a new one."""
        with self._lock:
            if self._thread is not None:
                self._tasks.put(None)
                self._thread, self._tasks = None, SimpleQueue()


def _run(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
