"""What a user may say of a job's life: run it again, repeat it, run it after others, tell somebody of its end.

The names are RQ's. Each is checked as it is made, so that a mistake is met where it was typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nbqueue.checks import brief, seconds
from nbqueue.errors import BadOption
from nbqueue.model import CALLBACK_TIMEOUT, Rerun

_MOST = 1_000_000_000  # further runs


class _Policy:
    """A count and intervals, compared and shown by what they say."""

    __slots__ = ("rerun",)
    _word = ""

    def __init__(self, times: int, interval: Any, *, front: bool = False) -> None:
        if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= _MOST:
            raise BadOption(
                message=f"{type(self).__name__}({self._word}={brief(times)}): give a whole number from 1 to {_MOST:,}."
            )
        self.rerun = Rerun(times, _intervals(interval), front)

    @property
    def intervals(self) -> list[float]:
        """Seconds before each further run; the last holds for all that follow."""
        return list(self.rerun.intervals)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.rerun == self.rerun

    def __hash__(self) -> int:
        return hash((type(self), self.rerun))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._word}={self.rerun.times}, interval={self.intervals})"

    def __getstate__(self) -> tuple[int, tuple[float, ...], bool]:
        return self.rerun.times, self.rerun.intervals, self.rerun.front

    def __setstate__(self, state: tuple[int, tuple[float, ...], bool]) -> None:
        self.rerun = Rerun(*state)


class Retry(_Policy):
    """Run a job again when it fails: at most `max` times, after `interval` seconds (one number, or one for each).

    As the option `retry=Retry(3, interval=[10, 60])`, or as the value that a job returns. As RQ's.
    """

    __slots__ = ()
    _word = "max"

    def __init__(self, max: int, interval: Any = 0, enqueue_at_front: bool = False) -> None:  # noqa: A002 - RQ's name
        super().__init__(max, interval, front=enqueue_at_front)

    @property
    def max(self) -> int:
        """How often at most."""
        return self.rerun.times

    @property
    def enqueue_at_front(self) -> bool:
        """Whether it comes before all others that wait then."""
        return self.rerun.front


class Repeat(_Policy):
    """Run a job again when it has finished: `times` more, after `interval` seconds (one number, or one for each).

    A failure that is not retried ends it. As RQ's.
    """

    __slots__ = ()
    _word = "times"

    def __init__(self, times: int, interval: Any = 0) -> None:
        super().__init__(times, interval)

    @property
    def times(self) -> int:
        """How often more."""
        return self.rerun.times


class Callback:
    """A function to run in a horse after a job's end is settled, with a time limit (in seconds) of its own.

    `func` is a function, or its dotted name. On success it is called as `func(job, connection, result)`, on failure as
    `func(job, connection, type, value, traceback)`, on stop as `func(job, connection)`; `connection` is always None,
    since a horse has none. The signatures are RQ's.
    """

    __slots__ = ("func", "timeout")

    def __init__(self, func: Callable[..., Any] | str, timeout: Any = CALLBACK_TIMEOUT) -> None:
        if not callable(func) and not isinstance(func, str):
            raise BadOption(
                message=f"Callback({brief(func)}): give a function, or its dotted name such as 'mylib.report'."
            )
        limit = seconds("timeout", timeout)
        if limit <= 0:
            raise BadOption(message=f"Callback(timeout={brief(timeout)}): the limit must be over 0 seconds.")
        self.func, self.timeout = func, limit

    def __repr__(self) -> str:
        return f"Callback({getattr(self.func, '__name__', self.func)!s}, timeout={self.timeout:g})"


class Dependency:
    """What must have ended before a job runs: Jobs, ids, or whole batches. As RQ's.

    All of them must have finished; with `allow_failure` it is enough that they have ended.
    """

    __slots__ = ("allow_failure", "enqueue_at_front", "jobs")

    def __init__(self, jobs: Any, allow_failure: bool = False, enqueue_at_front: bool = False) -> None:
        listed = isinstance(jobs, list | tuple | set | frozenset)
        self.jobs: tuple[Any, ...] = tuple(jobs) if listed else (jobs,)
        if not self.jobs:
            raise BadOption(message="Dependency([]): name at least one job or batch.")
        for one in self.jobs:
            if not hasattr(one, "id") and not isinstance(one, str | Sequence):
                raise BadOption(message=f"Dependency([{brief(one)}]) names no job: give Jobs, batches, or their ids.")
        self.allow_failure, self.enqueue_at_front = allow_failure, enqueue_at_front

    def __repr__(self) -> str:
        return f"Dependency({list(self.jobs)!r}, allow_failure={self.allow_failure})"


def _intervals(value: Any) -> tuple[float, ...]:
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    found = tuple(seconds("interval", each) for each in (value if listed else (value,)))
    if not found or min(found) < 0:
        raise BadOption(message=f"interval={brief(value)} must be seconds, 0 or more, or a list of them.")
    return found
