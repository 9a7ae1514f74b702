"""What a notebook calls: `nbqueue.map(f, items)` and the other functions of the package.

All keywords of `submit` and `grid` are the function's; all keywords of `map` and `starmap` are nbqueue's.
`options(timeout=60)` has all four, so that both can be given at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from nbqueue.client.batch import Batch
from nbqueue.client.calls import dataframes, items
from nbqueue.client.calls.function import DescribedFunction, label_of
from nbqueue.client.calls.items import Calls
from nbqueue.client.frames import batches_frame
from nbqueue.client.job import Job
from nbqueue.client.jobs import Jobs
from nbqueue.client.lookup import find
from nbqueue.client.session import kernel, session
from nbqueue.client.session.local_mode import LocalServer
from nbqueue.client.session.session import Session
from nbqueue.client.submit import options as terms
from nbqueue.client.submit import reattach
from nbqueue.client.submit.submission import SubmitPlan, refuse_inside
from nbqueue.errors import BadInput, BadOption
from nbqueue.model import Options

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")


class Verbs:
    """Functions that submit, under given options. Immutable: `options(...)` gives another one."""

    __slots__ = ("_options", "_typed")
    _options: Options
    _typed: frozenset[str]  # the names of the options that were given

    def __init__(self, options: Options, typed: frozenset[str] = frozenset()) -> None:
        object.__setattr__(self, "_options", options)
        object.__setattr__(self, "_typed", typed)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"options are immutable: use options({name}=...) for another set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Verbs, (self._options, self._typed)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self._options, name)!r}" for name in sorted(self._typed))
        return f"nbqueue.options({given})"

    def options(self, **changes: Any) -> Verbs:
        """Options for what is submitted next: `nbqueue.options(timeout=60, queue="gpu").map(f, items)`.

        Called on options, these with some changed. Raises BadOption.
        """
        parsed = terms.parse(changes)
        return Verbs(self._options.replaced(**parsed), self._typed | parsed.keys())

    def map(self, f: Callable[..., R] | str, *iterables: Any, **keywords: Any) -> Batch[R]:
        """Runs `f(item)` for every item, on any number of machines; returns at once, and shows how it goes.

        Several iterables are zipped strictly; the rows of a DataFrame are keywords. With `name=` the same call again,
        also after a restart, finds its batch: only new arguments run, and Changed says what is different in the
        function. Keywords are nbqueue's options: queue, name, update, fresh, timeout, grace, result_ttl, failure_ttl,
        ttl, at_front, isolate, slice, preload, pin, max_result, spill, max_failed, seed, env, progress, inline,
        description, meta, depends_on, retries (or retry), on_success, on_failure, on_stopped.
        """
        return self._several("map", f, iterables, lambda function: items.calls_from_map(function, iterables), keywords)

    def starmap(
        self, f: Callable[..., R] | str, iterable: Iterable[tuple[Any, ...] | Mapping[str, Any]], **keywords: Any
    ) -> Batch[R]:
        """Runs `f(*item)` for tuples and `f(**item)` for dicts; keywords are nbqueue's options, as in `map`."""
        return self._several(
            "starmap", f, (iterable,), lambda function: items.calls_from_starmap(function, iterable), keywords
        )

    def grid(self, f: Callable[..., R] | str, /, **axes: Any) -> Batch[R]:
        """Runs `f` for every combination of the axes (lists, tuples, ranges, arrays, Series), the last keyword fastest.

        All keywords are the function's; options stand before: `options(timeout=60).grid(f, lr=[.1, .01])`.
        """
        refuse_inside("grid")
        terms.check_for_many(self._options, "grid")
        calls: Callable[[DescribedFunction], Calls] = lambda function: items.calls_from_grid(function, axes)  # noqa: E731
        return Batch.shown(reattach.submit(SubmitPlan(session.current(), self._options, f, calls)))

    def submit(self, f: Callable[P, R] | str, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Runs one call: `f(*args, **kwargs)`. Displays nothing.

        All keywords are the function's; options stand before: `options(timeout=60).submit(f, 1)`.
        """
        refuse_inside("submit")

        def calls(function: DescribedFunction) -> Calls:
            return items.single(function, args, kwargs)

        return Job(reattach.submit(SubmitPlan(session.current(), self._options, f, calls, single=True)), 0)

    def _several(
        self,
        verb: str,
        f: Callable[..., Any] | str,
        iterables: tuple[Any, ...],
        calls: Callable[[DescribedFunction], Calls],
        keywords: dict[str, Any],
    ) -> Batch[Any]:
        refuse_inside(verb)
        if keywords.keys() - terms.OPTION_NAMES:
            _refuse(verb, f, iterables, keywords)
        terms.check_clash(verb, f, keywords)
        options = self._options.replaced(**terms.parse(keywords))
        terms.check_for_many(options, verb)

        def checked(function: DescribedFunction) -> Calls:
            terms.check_clash(verb, function, keywords)  # of a dotted name; the others were asked before
            return calls(function)

        return Batch.shown(reattach.submit(SubmitPlan(session.current(), options, f, checked)))


def _refuse(verb: str, f: Callable[..., Any] | str, iterables: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raises BadOption for the keywords that are no options."""
    label = (f if isinstance(f, str) else label_of(f)).rpartition(".")[2]
    known = terms.OPTION_NAMES - {*terms.SINGLE_ONLY}
    strange = sorted(keywords.keys() - terms.OPTION_NAMES)
    name = strange[0]
    message = f"{verb}() has no option {name!r}."
    near = get_close_matches(name, known, 1, 0.75)
    if near:
        message += f" Did you mean {near[0]!r}?"
    elif not iterables and all(dataframes.is_axis(keywords[each]) for each in strange):
        axes = ", ".join(f"{each}=..." for each in strange)
        message += f" Items go by position: {verb}({label}, {', '.join(strange)}). For all combinations: "
        message += f"grid({label}, {axes})."
    else:
        message += f" Pass a keyword of the function with functools.partial: {verb}(functools.partial({label}, "
        message += f"{name}=...), items). Options, here or in nbqueue.options(...), are: {', '.join(sorted(known))}."
    raise BadOption(message=message)


_plain = Verbs(Options())
map = _plain.map  # noqa: A001 - as executors call it
starmap = _plain.starmap
grid = _plain.grid
submit = _plain.submit
options = _plain.options


def connect(url: Any = None, *, namespace: str | None = None) -> Session:
    """Uses this server from now on: a URL, a `redis.Redis`, or None for what the settings say.

    Raises NoServer, WrongPassword or ServerUnfit.
    """
    refuse_inside("connect")
    return session.connect(url, namespace=namespace)


def gather(
    jobs: Iterable[Job[Any]], timeout: float | None = None, *, meta: bool = False, args: bool = False
) -> pd.DataFrame:
    """Waits for jobs that were enqueued one by one, and gives the frame that a batch of these calls would have given.

    One row per job, in the order of `jobs`; `meta` and `args` are those of `Batch.to_frame`. Never raises for a failed
    job. NotDone after `timeout` seconds.
    """
    refuse_inside("gather")
    chosen: list[Job[Any]] = [jobs] if isinstance(jobs, Job) else list(jobs)
    if strange := [one for one in chosen if not isinstance(one, Job)]:
        raise BadInput(message=f"gather() takes Jobs, not {strange[0]!r}: Job.fetch(id) gives the Job of an id.")
    return Jobs(chosen, "gathered jobs").to_frame(meta=meta, args=args, timeout=timeout)


def attach(name: str | None = None) -> Batch[Any]:
    """The batch of this name or id, from whatever session; without one, the latest. A notebook shows how it goes.

    Raises NoSuchBatch.
    """
    refuse_inside("attach")
    found = find.attach(session.current(), name)
    found.shown_in, found.visible = kernel.cell(), found.wanted()
    return Batch.shown(found)


def batches() -> pd.DataFrame:
    """All batches on the server, the latest first: id, name, function, counts, times, owner."""
    refuse_inside("batches")
    return batches_frame.batches(session.current())


def local(slots: int | None = None, memory: int | str | None = None) -> LocalServer:
    """The private server of this machine, with a worker of `slots` and at most `memory` (bytes, or text such as '2GB').

    Both are used from now on, also where another server is configured. `.stop()` ends them.
    """
    refuse_inside("local")
    return LocalServer.start(slots, memory)
