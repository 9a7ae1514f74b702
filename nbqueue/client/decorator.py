"""`@job("low", timeout=5)`: a function that can also be enqueued, as `f.delay(...)`.

Modules that use it are imported by workers too, so nothing heavy is imported here before something is enqueued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from nbqueue.client.job import Job
    from nbqueue.client.queue import Queue

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OURS = ("depends_on", "job_id", "at_front")  # what delay takes out of the keywords


class Delay(Generic[P, R_co]):
    """`f.delay(*args, **kwargs)` enqueues the call.

    Three keywords are options of that one call: depends_on, job_id, at_front. All others are the function's.
    """

    def __init__(self, function: Callable[P, R_co], maker: job) -> None:
        self.function, self._maker = function, maker

    def __repr__(self) -> str:
        return f"<{getattr(self.function, '__name__', self.function)}.delay into {self._maker.queue!r}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]:
        """Enqueues one call. Raises what Queue.enqueue raises."""
        given = {name: kwargs.pop(name) for name in OURS if name in kwargs}
        return cast("Job[R_co]", self._maker.enqueue(self.function, args, dict(kwargs), given))

    def __reduce__(self) -> tuple[Any, ...]:
        # In a job it can only say that a job cannot enqueue; for that it needs neither queue nor options.
        return Delay, (None, job())


class Delayable(Protocol[P, R_co]):
    """A function that can also be enqueued."""

    @property
    def delay(self) -> Delay[P, R_co]:
        """Enqueues a call."""

    @property
    def enqueue(self) -> Delay[P, R_co]:
        """As delay."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The plain call, here and now."""


class job:  # noqa: N801 - a decorator, with RQ's name
    """A decorator: `@job("low", timeout=5)` gives the function a `.delay(...)` that enqueues it.

    `queue` is a name or a Queue; the options are those of `Queue.options`. The defaults are those of `Queue.enqueue`.
    """

    def __init__(
        self, queue: Queue | str = "default", connection: Any = None, *, namespace: str | None = None, **options: Any
    ) -> None:
        if not isinstance(queue, str) and not hasattr(queue, "enqueue"):
            from nbqueue.errors import BadOption

            raise BadOption(message='Call the decorator: `@job()`, or `@job("low", timeout=5)`, above the function.')
        self.queue, self._connection, self._namespace, self._options = queue, connection, namespace, options

    def __call__(self, function: Callable[P, R]) -> Delayable[P, R]:
        """The same function, with `.delay`, and `.enqueue` as RQ calls it too."""
        delay = Delay(function, self)
        function.delay = function.enqueue = delay  # type: ignore[attr-defined]
        return cast("Delayable[P, R]", function)

    def enqueue(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[str, Any]) -> Job[Any]:
        """Enqueues one call, with the options of the decorator and those `given` with the call."""
        from nbqueue.client.queue import Queue

        if isinstance(self.queue, str):
            self.queue = Queue(self.queue, self._connection, namespace=self._namespace)
        return self.queue.delayed(function, args, kwargs, self._options, given)
