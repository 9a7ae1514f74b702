"""Clocks: the fence of a lease, and the time limit of a call.

A limit is enforced from outside, because a signal handler cannot interrupt C code: the horse writes on a shared board
which call it is in and since when; the stable reads it, sends the alarm at the limit, and kills after the grace.
"""

from __future__ import annotations

import mmap
import signal
import time
from collections.abc import Callable
from types import FrameType

from nbqueue.errors import JobTimeout
from nbqueue.worker.tree import become_subreaper, kill_strays

__all__ = ["ALARM", "Alarm", "Board", "become_subreaper", "fence_clock", "kill_strays", "overdue"]

# A real-time signal, where there are any: SIGALRM, SIGUSR1 and SIGUSR2 belong to the user.
ALARM: int = signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else signal.SIGXCPU

_FENCE_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS: its monotonic clock counts suspend
IDLE = -1.0


def fence_clock() -> float:
    """Seconds on the clock that also counts while the machine is suspended."""
    return time.clock_gettime(_FENCE_CLOCK)


def overdue(label: str, job: str, timeout: float, whose: str, grace: float | None = None) -> str:
    """What is said of a job over its time limit; with `grace`, of one that had to be killed."""
    source = f" ({whose})" if whose else ""
    killed = "" if grace is None else f" It did not end within the grace of {grace:g} s, so it was killed."
    return f"{label} ({job}) ran over its time limit of {timeout:g} s{source}.{killed}"


class Board:
    """Shared memory between the stable and the horse of one slot: the call it is in, since when, time spent frozen.

    Times are seconds on the monotonic clock less the time that the slot was frozen, so that limits stand still with it.
    """

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, 24)).cast("d")
        self.clear()

    def clear(self) -> None:
        """Makes the board ready for the next horse. `frozen` stays as it is: it only ever grows."""
        self._cells[0] = IDLE

    def now(self) -> float:
        """The slot's clock."""
        return time.monotonic() - self._cells[2]

    def begin(self, position: int) -> float:
        """Says that the call at `position` begins now; returns when that is."""
        now = self._cells[1] = self.now()
        self._cells[0] = position
        return now

    def end(self) -> None:
        """Says that no call is going on."""
        self._cells[0] = IDLE

    def read(self) -> tuple[int, float] | None:
        """The call that is going on and when it began; None between two calls."""
        position = self._cells[0]
        since = self._cells[1]
        if position == IDLE or self._cells[0] != position or not 0 <= position < 1 << 32:
            return None  # the last: a job has written where it should not
        return int(position), since

    def last_began(self) -> float:
        """When the last call began, on the monotonic clock."""
        return self._cells[1] + self._cells[2]

    def froze(self, seconds: float) -> None:
        """Sets the clock back by the time that the slot was frozen."""
        self._cells[2] += seconds


class Alarm:
    """The time limit of the call that goes on, in the horse: a Clock for perform().

    The handler is there in every horse from its fork on; it raises at most once a call, and only if this call, and
    not the one before it, is over its limit.
    """

    def __init__(self) -> None:
        self._armed = False
        self._now: Callable[[], float] = time.monotonic
        self._since = 0.0
        self._limit: float | None = None
        self._text: Callable[[], str] = str

    def install(self) -> None:
        """Makes ALARM do this. In the stable, where no call goes on, it does nothing."""
        signal.signal(ALARM, self.ring)

    def ring(self, _signum: int, _frame: FrameType | None) -> None:
        """Raises JobTimeout if the call that goes on is over its limit."""
        if self._armed and self._limit is not None and self._now() - self._since >= self._limit:
            self._armed = False
            raise JobTimeout(self._text())

    def set(self, now: Callable[[], float], since: float, limit: float | None, text: Callable[[], str]) -> None:
        """Prepares for a call, which began at `since` on the clock `now`; `start` arms it."""
        self._now, self._since, self._limit, self._text = now, since, limit, text

    def start(self) -> None:
        """Arms it."""
        self._armed = True

    def stop(self) -> None:
        """Disarms it."""
        self._armed = False
