"""Submission options, parsed and checked before anything is sent: retries, repeats, callbacks, dependencies."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from nbqueue.checks import brief, check_name, seconds
from nbqueue.client.calls.function import DescribedFunction, goes_by_name, label_of, signature_of
from nbqueue.client.lookup.waiting import refuse_unsent
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.session.session import Session
from nbqueue.errors import BadInput, BadOption
from nbqueue.model import Options, Rerun
from nbqueue.policies import Callback, Dependency, Repeat, Retry
from nbqueue.store.records import Need

ALIASES = {"retries": "retry", "job_timeout": "timeout"}
OPTION_NAMES = frozenset({*Options.__struct_fields__, *ALIASES})  # what options(...) accepts
SINGLE_ONLY = ("job_id", "unique", "repeat")  # options of a single call only
CALLBACKS = {  # option -> (name of the hook, what it is called with)
    "on_success": ("success", ("job", "connection", "result")),
    "on_failure": ("failure", ("job", "connection", "type", "value", "traceback")),
    "on_stopped": ("stopped", ("job", "connection")),
}

TIMEOUT = 180.0  # seconds; RQ's defaults, for what is enqueued
RESULT_TTL = 500.0
ENQUEUE_OPTIONS = frozenset(  # the keywords of enqueue that are options
    (
        *("timeout", "job_timeout", "result_ttl", "failure_ttl", "ttl", "depends_on", "job_id", "at_front", "meta"),
        *("description", "retry", "retries", "repeat", "on_success", "on_failure", "on_stopped", "unique"),
    )
)


# ---------------------------------------------------------------- parsing


def check_update_and_fresh(options: Options) -> None:
    """Raises BadOption for `update` or `fresh` without a name, and for both."""
    for word in ("update", "fresh"):
        if getattr(options, word) and options.name is None:
            raise BadOption(message=f"{word}=True is for an existing named batch: give name= too.")
    if options.update and options.fresh:
        raise BadOption(message="update=True keeps the batch of this name, fresh=True makes another: give one of them.")


def parse(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as fields of Options: aliases resolved, policies made. Raises BadOption."""
    found = dict(typed)
    for alias, name in ALIASES.items():
        if alias in found:
            if name in found:
                raise BadOption(message=f"{alias}= and {name}= mean the same: give one of them.")
            found[name] = found.pop(alias)
    if hasattr(found.get("queue"), "name"):
        found["queue"] = found["queue"].name
    for name, parser in _PARSERS.items():
        if name in found and found[name] is not None:
            found[name] = parser(name, found[name])
    return found


def _retry(option: str, value: Any) -> Retry | None:
    if isinstance(value, Retry):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Retry(value) if value else None
    raise BadOption(message=f"{option}={brief(value)}: give a number of runs, or Retry(3, interval=[10, 60]).")


def _repeat(option: str, value: Any) -> Repeat:
    if isinstance(value, Repeat):
        return value
    raise BadOption(message=f"{option}={brief(value)}: give Repeat(times=3, interval=60).")


def _callback(option: str, value: Any) -> Callback:
    found = value if isinstance(value, Callback) else None
    if found is None and (callable(value) or isinstance(value, str)):
        found = Callback(value)
    if found is None:
        raise BadOption(
            message=f"{option}={brief(value)}: give a function, its dotted name, or Callback(f, timeout=10)."
        )
    if not isinstance(found.func, str):
        _check_signature(option, found.func, CALLBACKS[option][1])
    return found


def _check_signature(option: str, function: Callable[..., Any], given: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some builtins have none
    try:
        signature.bind(*given)
    except TypeError as why:
        name = getattr(function, "__name__", repr(function))
        raise BadOption(
            message=f"{option}={name}{signature} cannot be called as {name}({', '.join(given)}): {why}."
        ) from why


def _dependencies(option: str, value: Any) -> tuple[Dependency, ...]:
    found = tuple(_each_dependency(value))
    for dependency in found:
        for one in _members(dependency):
            if isinstance(one, str):
                check_name("depends_on", _split_id(one)[0])
            elif not isinstance(one, JobRef | BatchRef):
                raise BadOption(
                    message=f"{option}={brief(one)} names no job: give a Job, a Batch, an id, a list of them, or "
                    "Dependency([job], allow_failure=True)."
                )
    return found


def _each_dependency(value: Any) -> Iterator[Dependency]:
    """Dependencies as given, and one for each job, batch, id or list that is none."""
    if isinstance(value, Dependency):
        yield value
    elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, str) and _ref(value) is value:
        plain = [one for one in value if not isinstance(one, Dependency)]
        if plain:
            yield Dependency(plain)
        yield from (one for one in value if isinstance(one, Dependency))
    else:
        yield Dependency(value)


def _members(dependency: Dependency) -> Iterator[Any]:
    """The ids, JobRefs and BatchRefs of a dependency."""
    for one in map(_ref, dependency.jobs):
        if isinstance(one, Sequence) and not isinstance(one, str):
            yield from map(_ref, one)
        else:
            yield one


def _ref(one: Any) -> Any:
    """The BatchRef of a Batch; anything else as it is."""
    return getattr(one, "ref", one)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "retry": _retry,
    "repeat": _repeat,
    "depends_on": _dependencies,
    **dict.fromkeys(CALLBACKS, _callback),
}


def check_for_many(options: Options, verb: str) -> None:
    """Raises BadOption for options of a single call."""
    for name in SINGLE_ONLY:
        if getattr(options, name):
            raise BadOption(
                message=f"{name}= is for one call (submit, enqueue), not for {verb}. "
                + ("A batch is named by name=." if name == "job_id" else f"Leave it out of {verb}.")
            )


# ---------------------------------------------------------------- the keywords of enqueue


def pinned(options: Options, f: Callable[..., Any] | str) -> bool:
    """Whether only the code as it is now may run. As in RQ, a function that workers import is not pinned."""
    return not goes_by_name(f) if options.pin is None else options.pin


def parse_for_queue(queue: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """As `parse`, for a Queue: none may name another queue, and RQ's timeout=-1 means none. Raises BadOption."""
    found = parse(typed)
    if found.get("queue", queue) != queue:
        raise BadOption(message=f"queue={found['queue']!r}: this is Queue({queue!r}). Make a Queue for the other.")
    if "timeout" in found:
        found["timeout"] = time_limit("timeout", found["timeout"])
    return found


def split(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(arguments, keywords, options, the keywords that a parameter must not be called) of `enqueue(f, ...)`.

    Raises BadOption.
    """
    options = {name: value for name, value in kwargs.items() if name in ENQUEUE_OPTIONS}
    rest = {name: value for name, value in kwargs.items() if name not in ENQUEUE_OPTIONS}
    if not rest.keys() & {"args", "kwargs"}:
        return args, rest, options, options
    if args or rest.keys() - {"args", "kwargs"}:
        raise BadOption(
            message="enqueue() takes the call's arguments directly, or in args= and kwargs=, not both. "
            "For a function with parameters of these names: q.options().enqueue(f, args=...)."
        )
    # With args= and kwargs= all other keywords are ours, as RQ's documentation advises: they clash with no parameter.
    return *explicit(rest.get("args"), rest.get("kwargs")), options, rest


def explicit(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call in `args=` and `kwargs=`, either of which may be None. Raises BadOption."""
    if args is not None and (isinstance(args, str | bytes) or not isinstance(args, Iterable)):
        raise BadOption(message=f"args={brief(args)} must be a tuple or a list of the positional arguments.")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise BadOption(message=f"kwargs={brief(kwargs)} must be a dict of the keyword arguments.")
    return () if args is None else tuple(args), dict(kwargs or {})


def time_limit(option: str, value: Any) -> float | None:
    """A time limit in seconds; None and RQ's -1 mean that there is none."""
    if value is None or value == -1:
        return None
    if (limit := seconds(option, value)) <= 0:
        raise BadOption(message=f"{option}={brief(value)} must be over 0 seconds; -1 means no limit.")
    return limit


# ---------------------------------------------------------------- keywords that the function has too


def check_clash(verb: str, function: object, given: Mapping[str, Any], *, queue: str | None = None) -> None:
    """Raises BadOption where an option that was given is a parameter of the function too.

    The parameters of a dotted name are known only once it has been described.
    """
    if isinstance(function, DescribedFunction):
        label, signature = function.label, function.signature
    elif callable(function):
        label, signature = label_of(function), signature_of(function)
    else:
        return
    parameters = signature.parameters.values() if signature is not None else ()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    name = next((each for each in given if each in named), None)
    if name is None:
        return
    value = brief(given[name])
    if name in {"args", "kwargs"}:
        raise BadOption(
            message=f"{name}= holds the arguments of the call, but {label} has a parameter of that name, too. "
            f"To pass it to the function: q.options().{verb}({label}, {name}={value})."
        )
    if verb == "then":
        mine = f"then(functools.partial({label}, {name}={value}))"
        ours = f"then(lambda result: {label}(result), {name}={value})"
    elif queue is None:
        mine = f"{verb}(functools.partial({label}, {name}={value}), ...)"
        ours = f"nbqueue.options({name}={value}).{verb}({label}, ...)"
    else:
        mine = f"q.options().{verb}({label}, ..., {name}={value})"
        ours = f"q.options({name}={value}).{verb}({label}, ...)"
        ours += f". For both: q.{verb}({label}, args=(...), kwargs={{{name!r}: ...}}, {name}={value})"
    raise BadOption(
        message=f"{name!r} is an option of nbqueue and a parameter of {label}. "
        f"For the function: {mine}. For nbqueue: {ours}."
    )


# ---------------------------------------------------------------- as the store takes them


class Dependencies(NamedTuple):
    """`depends_on` for the store (`needs`), and as ids to show."""

    needs: tuple[Need, ...] = ()
    ids: tuple[str, ...] = ()
    front: bool = False


def dependencies(options: Options, session: Session) -> Dependencies:
    """`depends_on` for the store. Raises BadInput for jobs that are not on the server of `session`."""
    needs: dict[Need, None] = {}
    front = False
    for dependency in options.depends_on or ():
        front = front or dependency.enqueue_at_front
        for one in _members(dependency):
            batch, index = _batch_and_index(one)
            _check_server(one, session)
            needs[Need(batch, index, dependency.allow_failure)] = None
    return Dependencies(tuple(needs), parents(options), front)


def parents(options: Options) -> tuple[str, ...]:
    """The ids in `depends_on`."""
    named = (one for dependency in options.depends_on or () for one in _members(dependency))
    return tuple(dict.fromkeys(one if isinstance(one, str) else one.id for one in named))


def _check_server(one: Any, session: Session) -> None:
    """Raises BadInput for a job of another server: here its id may be that of something else."""
    if isinstance(one, str):
        return
    own = (one if isinstance(one, BatchRef) else one.batch).session
    if own is not session and own.place != session.place:
        raise BadInput(
            message=f"{one.id} is on {own.server} (namespace {own.settings.namespace}), but the new job goes to "
            f"{session.server} (namespace {session.settings.namespace}): submit both to the same server."
        )


def inline_dependencies(options: Options) -> Iterator[tuple[JobRef | BatchRef, bool]]:
    """(job or batch that an inline run waits for, whether it may fail). Raises BadInput for ids."""
    for dependency in options.depends_on or ():
        for one in _members(dependency):
            if isinstance(one, str):
                raise BadInput(
                    message=f"depends_on={brief(one)}: a call that runs in this process takes Jobs, not ids."
                )
            yield one, dependency.allow_failure


def _batch_and_index(one: Any) -> tuple[str, int | None]:
    """(batch, index) of a job; index None for a whole batch, or a single job."""
    if isinstance(one, str):
        return _split_id(one)
    batch = one if isinstance(one, BatchRef) else one.batch
    refuse_unsent(batch)
    if batch.inline:
        raise BadInput(
            message=f"{one.id} ran in this process and is not on the server: it has ended, so leave out depends_on=."
        )
    return (batch.id, None) if one is batch or batch.single else (batch.id, one.index)


def _split_id(name: str) -> tuple[str, int | None]:
    """(batch, index) of an id; index None where it has none."""
    batch, colon, digits = name.rpartition(":")
    if not colon:
        return name, None
    if not digits.isdecimal():
        raise BadInput(message=f"{name!r} is not a job id such as 'count_words-7k2f:17'.")
    return batch, int(digits)


def spill_folder(options: Options, session: Session) -> str:
    """The folder or URL for large results of a batch with these options; empty: none."""
    return options.spill or session.settings.spill or ""


def rerun(policy: Retry | Repeat | None) -> Rerun | None:
    """A policy as the spec has it."""
    return None if policy is None else policy.rerun


def hooks(options: Options) -> dict[str, Callback]:
    """The callbacks by the name of their hook."""
    found = {hook: getattr(options, option) for option, (hook, _) in CALLBACKS.items()}
    return {hook: callback for hook, callback in found.items() if callback is not None}


def due_us(when: Any) -> int:
    """A datetime as microseconds since the epoch; without a zone it is local time, as in RQ. Raises BadOption."""
    if not isinstance(when, datetime):
        raise BadOption(
            message=f"enqueue_at() takes a datetime first, not {brief(when)}. enqueue_in() takes a duration."
        )
    try:
        found = when.timestamp()
    except (OverflowError, ValueError, OSError) as why:
        raise BadOption(message=f"enqueue_at({brief(when)}): this machine's clock knows no such time ({why}).") from why
    seconds("the time until enqueue_at", found - time.time())
    return round(found * 1e6)


def delay(span: Any) -> float:
    """A duration in seconds; a negative one, as a computed one may be, means now. Raises BadOption."""
    return max(0.0, seconds("enqueue_in's duration", span))
