"""The rate of a batch, and durations in words."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nbqueue.checks import DAY, in_units
from nbqueue.model import Tally

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

WINDOW = 30.0  # seconds over which the rate is measured ...
ENOUGH = 20  # ... if so many jobs ended in it; else since the beginning
LAG = 2.0  # seconds of uncopied results, after which the panel says so


class RateEstimator:
    """Rate and elapsed time of a batch, since it was first seen. `age`: seconds that it had run by then.

    A retry or new items after the end restart the measurement, but not for `several` batches of one cell.
    """

    def __init__(self, age: float = 0.0, *, several: bool = False) -> None:
        self._several = several
        self._rests = False
        self._begin(age)

    def _begin(self, age: float) -> None:
        self._age = age
        self._first: tuple[float, int] | None = None
        self._recent = deque[tuple[float, int]]()
        self._now = self._over = 0.0
        self._seen_running = False
        self._behind: float | None = None

    def see(self, over: int, *, ended: bool, missing: int = 0) -> None:
        """Records the number of ended jobs, and of those that are not copied yet."""
        now = time.monotonic()
        self._behind = None if not missing else self._behind or now
        anew = over < self._over or (self._rests and not ended and not self._several)
        self._rests = ended
        if self._first is None or anew:
            if self._first is not None:
                self._begin(0.0)
            self._first = now, over
        if not ended or (self._seen_running and over > self._over):
            self._now = now
        self._seen_running |= not ended
        self._over = over
        if not self._recent or now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, over))
        while len(self._recent) > 2 and now - self._recent[1][0] > WINDOW and over - self._recent[1][1] >= ENOUGH:
            self._recent.popleft()

    @property
    def lags(self) -> bool:
        """Whether results have been uncopied for more than LAG."""
        return self._behind is not None and time.monotonic() - self._behind > LAG

    @property
    def elapsed(self) -> float | None:
        """Seconds from the beginning to the end; None if it had ended before it was first seen."""
        return self._now - self._first[0] + self._age if self._first is not None and self._seen_running else None

    @property
    def rate(self) -> float | None:
        """Recent jobs per second; None while unknown."""
        if not self._recent or self._first is None:
            return None
        since, before = self._recent[0]
        came, passed = self._over - before, self._now - since
        return came / passed if came > 0 and passed > 0 else None

    def eta(self, left: int) -> float | None:
        """Seconds until `left` more jobs have ended; None while unknown."""
        rate = self.rate
        return left / rate if rate and left > 0 else None


_estimators: WeakKeyDictionary[BatchState, RateEstimator] = WeakKeyDictionary()


def rate_of(state: BatchState) -> RateEstimator:
    """The estimator of a batch, shared by all its panels."""
    if state not in _estimators:
        _estimators[state] = RateEstimator(max(0.0, time.time() - state.created_us / 1e6) if state.created_us else 0.0)
    return _estimators[state]


# ---------------------------------------------------------------- words


# The order of states in a line of counts.
_LINED = ("deferred", "scheduled", "queued", "started", "finished", "failed", "canceled")


def line(tally: Tally, n: int, eta: float | None) -> str:
    """`120 of 1,000: 700 queued, 2 started, 118 finished, 2 failed, about 3 min left`."""
    counts = [(name, int(getattr(tally, name))) for name in _LINED]
    shown = ", ".join(f"{count:,} {name}" for name, count in counts if count or name == "finished")
    left = f", about {left_words(eta)} left" if eta is not None and tally.over < n else ""
    return f"{tally.over:,} of {n:,}: {shown}{left}"


def span(seconds: float) -> str:
    """A duration in a word."""
    return in_units(seconds, "days", "h", "min") or f"{seconds:.0f} s"


def left_words(seconds: float) -> str:
    """How long it may take, in a word; never nothing."""
    return span(max(1.0, seconds))


def lifetime(seconds: float) -> str:
    """How long something is kept, in a word."""
    return "a year" if seconds < 0 else span(seconds)


def clock(seconds: float) -> str:
    """`21 ms`, `0.4 s`, `42 s`, `12:05`, `1:05:12`."""
    if 0 < seconds < 0.095:
        return f"{max(1.0, seconds * 1e3):.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 and seconds != int(seconds) else f"{seconds:.0f} s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def rate_words(rate: float) -> str:
    """`1,234/s`, `3.2/s`, `12/min`, `5/h`."""
    for size, word in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * size >= 1:
            return f"{rate * size:,.0f}/{word}" if rate * size >= 9.95 else f"{rate * size:.1f}/{word}"
    return f"{rate * DAY:.1f}/day"
