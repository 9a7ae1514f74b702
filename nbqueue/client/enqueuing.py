"""A call on its way into a queue: which keywords are ours, which the function's, and RQ's defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nbqueue.checks import brief, seconds
from nbqueue.client.calls import items
from nbqueue.client.calls.function import Function, goes_by_name, resolved
from nbqueue.client.calls.items import Calls
from nbqueue.client.job import Job
from nbqueue.client.lookup import job_meta
from nbqueue.client.session.batch_ref import BatchRef, Prepared
from nbqueue.client.state.batch_state import Watch
from nbqueue.client.submit import options as terms
from nbqueue.client.submit.submission import Submission, When, refuse_inside
from nbqueue.errors import BadOption
from nbqueue.model import Notes, Options, Spec, new_id

if TYPE_CHECKING:
    from nbqueue.client.queue import Queue

R = TypeVar("R")

TIMEOUT = 180.0  # seconds; RQ's defaults, for what is enqueued
RESULT_TTL = 500.0
OURS = frozenset(  # what enqueue takes out of the keywords
    (
        *("timeout", "job_timeout", "result_ttl", "failure_ttl", "ttl", "depends_on", "job_id", "at_front", "meta"),
        *("description", "retry", "retries", "repeat", "on_success", "on_failure", "on_stopped", "unique"),
    )
)
_EXPLICIT = ("args", "kwargs")


def created(
    queue: Queue,
    origin: str,
    func: Callable[..., Any] | str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Job[Any]:
    """A Job that describes a call, for `enqueue_job`: as what has run in this process, no server knows it.

    Raises BadOption, BadInput.
    """
    given = {name: value for name, value in options.items() if value is not None}
    said, (call, _, label) = queue.options(**given).said, resolved(func)
    spec = Spec(
        label=label,
        single=True,
        timeout=said.timeout if given.keys() & {"timeout", "job_timeout"} else None,
        result_ttl=said.result_ttl,
        failure_ttl=said.failure_ttl,
        description=said.description,
        retry=terms.rerun(said.retry),
        repeat=terms.rerun(said.repeat),
        depends_on=terms.parents(said),
    )
    watch = Watch(said.job_id or new_id(label, 8), origin, "", spec)
    watch.created_us, watch.expected = time.time_ns() // 1000, 1
    watch.notes[0] = Notes(job_meta.plain(said.meta or {}))
    batch = BatchRef(queue.session, watch, spec, function=call, inline="collect")
    batch.unsent = Prepared(func, positionals(args), keywords(kwargs), {**given, "ttl": said.ttl})
    return Job(batch, 0)


class Enqueuer:
    """A queue with options said beforehand: all keywords of `enqueue` are then the function's."""

    def __init__(self, queue: Queue, options: Options, typed: frozenset[str]) -> None:
        self.queue, self.said, self._typed = queue, options, typed

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self.said, name)!r}" for name in sorted(self._typed))
        return f"{self.queue!r}.options({told})"

    def options(self, **changes: Any) -> Enqueuer:
        """These options with some changed. Raises BadOption."""
        found = understood(self.queue, changes)
        return Enqueuer(self.queue, self.said.replaced(**found), self._typed | found.keys())

    def enqueue(self, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any) -> Job[R]:
        """One call: `f(*args, **kwargs)`. Raises InUse, NoSuchDependency, BadItems."""
        return self.send("enqueue", f, args, kwargs)

    def enqueue_at(self, when: datetime, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any) -> Job[R]:
        """The same, not before a time; a datetime without a zone is local time."""
        return self.send("enqueue_at", f, args, kwargs, When(due_us=terms.due_us(when)))

    def enqueue_in(
        self, after: timedelta | float | str, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any
    ) -> Job[R]:
        """The same, not before some time has passed: a timedelta, seconds, or text such as '5m'."""
        return self.send("enqueue_in", f, args, kwargs, When(delay=terms.delay(after)))

    def send(
        self,
        verb: str,
        f: Callable[..., R] | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        when: When | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Job[R]:
        """Enqueues one call; `given` are the options among its keywords: none may be a parameter of the function."""
        refuse_inside(f"Queue.{verb}")
        return Job(self.submission(verb, f, args, kwargs, when, given).run(), 0)

    def submission(
        self,
        verb: str,
        f: Callable[..., Any] | Function | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        when: When | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Submission:
        """The call, ready to be sent."""

        def calls(function: Function) -> Calls:
            terms.refuse_clash(verb, function, given or {}, queue=self.queue.name)
            return items.single(function, tuple(args), dict(kwargs))

        source = "" if "timeout" in self._typed else self.queue.timeout_from
        said = self.said.replaced(pin=pinned(self.said, f)) if not isinstance(f, Function) else self.said
        if when is not None and not self.queue.is_async and self.queue.connection is not None:
            said = said.replaced(inline=False)  # as in RQ: what has its time waits for it, on the server
        return Submission(self.queue.session, said, f, calls, single=True, when=when, timeout_from=source)


def pinned(said: Options, f: Callable[..., Any] | str) -> bool:
    """Whether it runs with the code as it is now, or not at all. As in RQ, what a worker imports is not pinned."""
    return not goes_by_name(f) if said.pin is None else said.pin


# ---------------------------------------------------------------- what was typed


def understood(queue: Queue, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a queue as they were typed, in the words of Options. Raises BadOption."""
    found = terms.understood(typed)
    if found.get("queue", queue.name) != queue.name:
        raise BadOption(message=f"queue={found['queue']!r}: this is {queue!r}. Make a Queue for the other.")
    if "timeout" in found:
        found["timeout"] = time_limit("timeout", found["timeout"])
    return found


class Typed(NamedTuple):
    """What stood in the parentheses: the call, the options, and the keywords that were taken for ours."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    taken: dict[str, Any]


def split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Typed:
    """The call and the options among its keywords. Raises BadOption."""
    given = {name: value for name, value in kwargs.items() if name in OURS}
    rest = {name: value for name, value in kwargs.items() if name not in OURS}
    if not rest.keys() & set(_EXPLICIT):
        return Typed(args, rest, given, given)
    if args or rest.keys() - set(_EXPLICIT):
        raise BadOption(
            message="enqueue() takes the call as it is, or all of it in args= and kwargs=, not both. "
            "For a function that has such parameters: q.options().enqueue(f, args=...)."
        )
    # Said so, the call is in them and the other keywords are ours, as RQ's documentation advises: no clash.
    return Typed(positionals(rest.get("args")), keywords(rest.get("kwargs")), given, rest)


def positionals(args: Any) -> tuple[Any, ...]:
    """The positional arguments in `args=`. Raises BadOption."""
    if args is None:
        return ()
    if isinstance(args, str | bytes) or not isinstance(args, Iterable):
        raise BadOption(message=f"args={brief(args)} must be a tuple or a list of the positional arguments.")
    return tuple(args)


def keywords(kwargs: Any) -> dict[str, Any]:
    """The keyword arguments in `kwargs=`. Raises BadOption."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise BadOption(message=f"kwargs={brief(kwargs)} must be a dict of the keyword arguments.")
    return dict(kwargs or {})


def time_limit(option: str, value: Any) -> float | None:
    """A time limit in seconds; None and RQ's -1 mean that there is none."""
    if value is None or value == -1:
        return None
    if (limit := seconds(option, value)) <= 0:
        raise BadOption(message=f"{option}={brief(value)} must be over 0 seconds; -1 means no limit.")
    return limit
