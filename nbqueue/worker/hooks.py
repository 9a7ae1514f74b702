"""Callbacks and exception handlers: what is called when the end of a job is settled.

Child processes share this with processes that make calls themselves. An error in one is a CallbackResult, and changes
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any, NamedTuple

import msgspec

from nbqueue import current, perform, spill, wire
from nbqueue.errors import CannotOpen, JobFailed, RemoteTraceback
from nbqueue.model import CALLBACK_TIMEOUT, CallbackResult, Failure, Hook, Spilled, State

SUCCESS, FAILURE, STOPPED, HANDLER = "success", "failure", "stopped", "handler"
_ENDS = {SUCCESS: State.FINISHED, FAILURE: State.FAILED, STOPPED: State.CANCELED, HANDLER: State.FAILED}
_KINDS = {SUCCESS: "success callback", FAILURE: "failure callback", STOPPED: "stopped callback", HANDLER: "handler"}


class Step(NamedTuple):
    """One function to call: a callback, by its pickle, or an exception handler, by its dotted name or itself."""

    kind: str  # SUCCESS, FAILURE, STOPPED or HANDLER
    label: str
    timeout: float
    function: bytes | str | Callable[..., Any]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{_KINDS[self.kind]} {self.label}"


class Ending(NamedTuple):
    """How a job ended: the pickled result (or where it lies) or the failure, and the exception where it is here."""

    value: bytes | None = None
    failure: Failure | None = None
    error: BaseException | None = None
    spilled: Spilled | None = None


def steps_for(hook: str, hooks: Mapping[str, Hook], handlers: Sequence[str | Callable[..., Any]] = ()) -> list[Step]:
    """What is to be called: the callback named `hook` ("" for none) if there is one, then the exception handlers."""
    steps = []
    if (found := hooks.get(hook)) is not None:
        steps.append(Step(hook, found.label, found.timeout, found.payload))
    return steps + [Step(HANDLER, _label(each), CALLBACK_TIMEOUT, each) for each in handlers]


def _label(handler: str | Callable[..., Any]) -> str:
    if isinstance(handler, str):
        return handler
    return str(getattr(handler, "__qualname__", None) or type(handler).__qualname__)


def respond(steps: Sequence[Step], ending: Ending) -> list[CallbackResult]:
    """Takes all steps in this process, one after another; for those who make calls without a horse."""
    echoes = []
    for step in steps:
        echo, going = take(step, ending)
        echoes.append(echo)
        if not going:
            break
    return echoes


def take(
    step: Step, ending: Ending, clock: perform.Clock | None = None, before: Callable[[], None] | None = None
) -> tuple[CallbackResult, bool]:
    """Takes one step, for the job that `current` knows; never raises. Says whether the steps behind it follow.

    `before` is called first, and counts as a part of it.
    """
    clock = clock or perform.NO_CLOCK
    try:
        clock.start()
        if before is not None:
            before()
        answer = _call(step, ending)
        clock.stop()
    except BaseException as why:  # noqa: BLE001 - a callback may raise anything; all of it becomes its echo
        clock.stop()
        failure = msgspec.structs.replace(perform.failure_of(why), pickled=None)
        why.__traceback__ = None  # as in perform
        return CallbackResult(step.kind, step.label, failure), True
    return CallbackResult(step.kind, step.label), step.kind != HANDLER or answer is None or bool(answer)


def _call(step: Step, ending: Ending) -> Any:
    function, job = _function(step.function), current.get_current_job()
    if job is not None:
        job.ended(_ENDS[step.kind])
    if step.kind == HANDLER:
        answer = function(job, *_raised(ending))
    elif step.kind == FAILURE:
        answer = function(job, None, *_raised(ending))
    elif step.kind == SUCCESS:
        answer = function(job, None, _result(ending))
    else:
        answer = function(job, None)
    return perform.awaited(answer) if isinstance(answer, CoroutineType) else answer


def _function(found: Any) -> Callable[..., Any]:
    if isinstance(found, bytes):
        found = wire.loads(found)
    if isinstance(found, str):
        import pkgutil  # what is not imported need not be forked

        found = pkgutil.resolve_name(found)
    if not callable(found):
        raise TypeError(f"a callback must be a function, not a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _result(ending: Ending) -> Any:
    if ending.spilled is not None:
        return wire.loads(spill.read(ending.spilled))
    if ending.value is None:
        raise LookupError("the process that held the result had ended before its callback could run")
    return wire.loads(ending.value)


def _raised(ending: Ending) -> tuple[type[BaseException], BaseException, Any]:
    """What `sys.exc_info()` would have said; its cause tells of a traceback that is gone."""
    error = ending.error or _rebuilt(ending.failure or Failure("Unknown", "the job failed"))
    return type(error), error, error.__traceback__


def _rebuilt(failure: Failure) -> BaseException:
    error: BaseException = JobFailed(job=current.current() or "?", cause=failure.type, error=failure.message)
    if failure.pickled is not None:
        try:
            found = perform.careful(failure.pickled, "An exception")
        except CannotOpen:
            found = None  # what is known is said by JobFailed
        if isinstance(found, BaseException):
            error = found
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error
