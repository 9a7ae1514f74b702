"""Runs one call and turns its result or exception into a CallResult; used by workers and by `inline="collect"`.

A payload is one byte and a pickle: `1` a single positional argument, `2` (args, kwargs), `3` (args, kwargs, label).
After `4` comes no pickle, but the location of a spilled result of another job, as the single positional argument.
"""

from __future__ import annotations

import contextvars
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import Any, Protocol

from nbqueue import spill, wire
from nbqueue.checks import size_text
from nbqueue.errors import BadSignature, CannotOpen, JobTimeout, NbqueueError, NotPicklable, SpillFailed, TooLarge
from nbqueue.model import (
    MAX_ARGUMENTS,
    MAX_RESULT,
    CallResult,
    Cause,
    Failure,
    Outcome,
    Rerun,
    Spilled,
    State,
    decode,
    encode,
)
from nbqueue.policies import Retry

MAX_TRACEBACK = 64_000  # bytes; of a longer one the beginning and the end are kept
MAX_MESSAGE = 8_000  # characters
MAX_EXCEPTION = 1 << 20  # bytes of a pickled exception

_OURS = str(Path(__file__).parent)
_OURS_TOO = ("asyncio/runners.py", "asyncio/base_events.py")


class Clock(Protocol):
    """Enforces the time limit of a call."""

    def start(self) -> None:
        """JobTimeout may be raised after this."""

    def stop(self) -> None:
        """JobTimeout is not raised after this."""


class _NoClock:
    def start(self) -> None:
        """There is no time limit."""

    def stop(self) -> None:
        """There is no time limit."""


NO_CLOCK: Clock = _NoClock()


# ---------------------------------------------------------------- arguments


def pack(args: Sequence[Any], kwargs: Mapping[str, Any], label: Any = None, *, what: str = "An argument") -> bytes:
    """The arguments of a call as a payload. Raises TooLarge, or any error of pickling."""
    remedy = "Pass a path, or less of it."
    if label is not None:
        return b"3" + wire.dumps((tuple(args), dict(kwargs), label), MAX_ARGUMENTS, what, remedy)
    if len(args) == 1 and not kwargs:
        return b"1" + wire.dumps(args[0], MAX_ARGUMENTS, what, remedy)
    return b"2" + wire.dumps((tuple(args), dict(kwargs)), MAX_ARGUMENTS, what, remedy)


def handed_on(outcome: Outcome) -> bytes | None:
    """The result of a job as the payload of another; None if it has no result."""
    if outcome.spilled is not None:
        return b"4" + encode(outcome.spilled)
    return None if outcome.value is None else b"1" + outcome.value


def spilled_in(payload: bytes | None) -> Spilled | None:
    """The location of a call's argument, if it is a spilled result."""
    return decode(Spilled, memoryview(payload)[1:]) if payload is not None and payload[:1] == b"4" else None


def modules_in(payload: bytes) -> set[str]:
    """The modules that unpickling imports, as far as the beginning of the pickle shows."""
    return set() if payload[:1] == b"4" else wire.modules_named(memoryview(payload)[1:])


def unpack(
    payload: bytes, loads: Callable[[bytes | memoryview], Any] = wire.loads
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """`(args, kwargs, label)`. Raises SpillLost, or any error of unpickling."""
    if (spilled := spilled_in(payload)) is not None:
        return (loads(spill.read(spilled)),), {}, None
    kind, value = payload[:1], loads(memoryview(payload)[1:])
    if kind == b"1":
        return (value,), {}, None
    args, kwargs, *label = value
    return tuple(args), dict(kwargs), label[0] if label else None


# ---------------------------------------------------------------- the call


def perform(
    function: Callable[..., Any],
    payload: bytes,
    *,
    job: str,
    max_result: int | None,
    spill_to: spill.Place | None = None,
    clock: Clock | None = None,
    keep: Callable[[BaseException], object] | None = None,
) -> CallResult:
    """Calls `function` with the packed arguments; never raises, whatever the function does.

    `max_result` None is MAX_RESULT, or MAX_SPILLED if results may be spilled. `keep` receives the exception of the
    function, with its traceback, for callbacks.
    """
    clock = clock or NO_CLOCK
    started, cpu = time.monotonic(), time.process_time()
    cause, failure, data, rerun, spilled = None, None, None, None, None
    stage = "arguments"
    try:
        clock.start()
        # A context of its own: context variables (decimal's precision, NumPy's options) are reset after the call.
        context = contextvars.copy_context()
        args, kwargs, _ = context.run(unpack, payload)
        stage = "call"
        value = context.run(_called, function, args, kwargs)
        stage = "result"
        if isinstance(value, Retry):
            cause, failure, rerun = Cause.RETRY, _retry_failure(value.rerun), value.rerun
        else:
            data, spilled = context.run(_stored, value, max_result, spill_to)
        clock.stop()
    except BaseException as why:  # noqa: BLE001 - a job may raise anything, and any exception becomes its outcome
        clock.stop()
        cause, failure = _judge(why, stage, job)
        data = rerun = spilled = None
        _let_go(why, keep)
    state, spent = State.FAILED if cause else State.FINISHED, time.process_time() - cpu
    ended = time.monotonic()
    return CallResult(
        state, cause, started, ended, cpu_s=spent, failure=failure, value=data, rerun=rerun, spilled=spilled
    )


def _called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of the function, with a copy of decimal's context (contextvars copy the reference only)."""
    if (decimal := sys.modules.get("decimal")) is not None:
        decimal.setcontext(decimal.getcontext().copy())
    value = function(*args, **kwargs)
    return awaited(value) if isinstance(value, CoroutineType) else value


def _let_go(why: BaseException, keep: Callable[[BaseException], object] | None) -> None:
    if keep is None:
        why.__traceback__ = None  # it references the frames of the job and all their variables
        return
    why.__traceback__ = _users(why.__traceback__)
    keep(why)


def _retry_failure(rerun: Rerun) -> Failure:
    often = "once" if rerun.times == 1 else f"{rerun.times:,} times"
    return Failure("nbqueue.Retry", f"the job asked to run again, at most {often}")


def awaited(value: Any) -> Any:
    """The result of a coroutine, run in a new event loop."""
    import asyncio

    return asyncio.run(value)


def _stored(value: Any, limit: int | None, place: spill.Place | None) -> tuple[bytes | None, Spilled | None]:
    """The result as bytes, or its location if spilled. Raises TooLarge, SpillFailed, or any error of pickling."""
    if place is None or wire.is_plain(value):
        return _dumped(value, limit or MAX_RESULT), None
    what = f"The result (a {type(value).__name__})"
    remedy = "Return less, or raise `max_result=`."
    sink = spill.Sink(place, limit or spill.MAX_SPILLED, what, remedy)
    try:
        wire.dump(value, sink)
        found = sink.finish()
    except SpillFailed as why:
        sink.discard()
        return _through_store(value, min(limit or MAX_RESULT, MAX_RESULT), why), None
    except BaseException:
        sink.discard()
        raise
    if isinstance(found, Spilled):
        return None, found  # not test-loaded: it is too large to be held twice
    return _checked(value, found, limit or MAX_RESULT), None


def _through_store(value: Any, limit: int, failed: SpillFailed) -> bytes:
    """The result as bytes after spilling failed; raises `failed` if it is too large for Redis."""
    try:
        data = _dumped(value, limit)
    except TooLarge:
        raise failed from failed.__cause__
    sys.stderr.write(f"nbqueue: {failed} This result was stored on the server.\n")  # into the job's log
    return data


def opened(outcome: Outcome, what: str = "A result") -> Any:
    """The value of a finished job, read from the spill if it is there. Raises SpillLost, BadSignature, CannotOpen."""
    if outcome.spilled is not None:
        return careful(spill.read(outcome.spilled), what)
    if outcome.value is None:
        raise BadSignature(what="An outcome", why="it is finished but has no value")
    return careful(outcome.value, what)


def careful(data: bytes | memoryview, what: str) -> Any:
    """Unpickles a value; raises CannotOpen for any exception of its code.

    The user's Ctrl-C and the job's time limit are raised unchanged.
    """
    try:
        return wire.loads(data)
    except JobTimeout:
        raise
    except BaseException as why:
        if isinstance(why, KeyboardInterrupt) and not _raised(why):
            raise
        raise CannotOpen(what=what, why=_shortened(f"{type_name(type(why))}: {text_of(why)}", 1_000)) from why


def _raised(why: BaseException) -> bool:
    """Whether a `raise` statement raised it, and not a signal."""
    from opcode import opmap

    tb = why.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and tb.tb_frame.f_code.co_code[tb.tb_lasti] == opmap["RAISE_VARARGS"]


def cell(why: NbqueueError) -> str:
    """The text that stands for a value that cannot be unpickled."""
    reason = why.facts["why"] if isinstance(why, CannotOpen) else f"{type_name(type(why))}: {why}"
    return f"<cannot be unpickled here: {reason}>"


def _dumped(value: Any, limit: int) -> bytes:
    remedy = (
        "Write it to a file and return the path, raise `max_result=`, or name a folder for large results: `spill=`."
    )
    what = f"The result (a {type(value).__name__})"
    data = wire.dumps(value, limit, what, remedy)
    if len(data) > limit:
        raise TooLarge(what=what, limit=size_text(limit), remedy=remedy)
    return _checked(value, data, limit)


def _checked(value: Any, data: bytes, limit: int) -> bytes:
    """`data`, after unpickling it once: in the notebook it would be too late. Raises CannotOpen."""
    if not wire.names_code(data):
        return data
    try:
        careful(data, "The result")
    except CannotOpen:
        rebuilt = wire.rebuilding(value, limit)
        if rebuilt is None:
            raise
        careful(rebuilt, "The result")
        return rebuilt
    return data


def _judge(why: BaseException, stage: str, job: str) -> tuple[Cause, Failure]:
    if isinstance(why, JobTimeout):
        return Cause.TIMEOUT, failure_of(why)
    if stage != "result":
        return Cause.ERROR, failure_of(why)
    if isinstance(why, TooLarge):
        return Cause.TOO_LARGE, failure_of(why)
    reason = f"{type_name(type(why))}: {_shortened(text_of(why), 1_000)}"
    if isinstance(why, CannotOpen):
        reason, why = f"it cannot be unpickled ({why.facts['why']})", why.__cause__ or why
    facts = {
        "what": f"The result of job {job}",
        "why": reason,
        "remedy": "Return plain data: numbers, text, lists, dicts, arrays, frames.",
    }
    error = NotPicklable(**facts)
    return Cause.UNSERIALIZABLE, Failure(type_name(NotPicklable), str(error), traceback_of(why), _pickled(error))


# ---------------------------------------------------------------- failures


def failure_of(why: BaseException) -> Failure:
    """The Failure for an exception. Never raises, even if the exception's own methods do."""
    return Failure(type_name(type(why)), _shortened(text_of(why), MAX_MESSAGE), traceback_of(why), _pickled(why))


def type_name(kind: type) -> str:
    """A class's qualified name, as tracebacks show it: without `builtins.` or `__main__.`."""
    module, name = getattr(kind, "__module__", ""), getattr(kind, "__qualname__", "?")
    plain = not isinstance(module, str) or module in {"builtins", "__main__", ""}
    return _clean(str(name) if plain else f"{module}.{name}")


def text_of(why: BaseException) -> str:
    """`str(why)`, or a note that it failed."""
    try:
        return _clean(str(why))
    except BaseException as error:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<its message cannot be shown: __str__ raised {type_name(type(error))}>"


def traceback_of(why: BaseException) -> str:
    """The traceback of `why`: the user's frames, and at most MAX_TRACEBACK bytes of text."""
    try:
        found = traceback.TracebackException(type(why), why, _users(why.__traceback__), compact=True)
        text = _clean("".join(found.format()))
    except BaseException as error:  # noqa: BLE001 - it calls the user's methods, which may raise anything
        text = f"<the traceback cannot be shown: {type_name(type(error))}>\n{_frames(why)}"
    return _shortened(text, MAX_TRACEBACK)


def _frames(why: BaseException) -> str:
    return "".join(
        f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n'
        for frame, line in traceback.walk_tb(_users(why.__traceback__))
    )


def _users(tb: TracebackType | None) -> TracebackType | None:
    """`tb` without nbqueue's frames at the beginning (the call) and at the end (the time limit)."""
    while tb is not None and _is_ours(tb):
        tb = tb.tb_next
    here = tb
    while here is not None and here.tb_next is not None:
        if here.tb_next.tb_next is None and _is_ours(here.tb_next):
            here.tb_next = None
            break
        here = here.tb_next
    return tb


def _is_ours(tb: TracebackType) -> bool:
    name = tb.tb_frame.f_code.co_filename
    return name.startswith(_OURS) or name.endswith(_OURS_TOO)


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of `text` in UTF-8: a quarter from its beginning, the rest from its end."""
    if len(text) <= limit // 4:
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    room = limit - 80
    head, tail = data[: room // 4], data[-(room - room // 4) :]
    middle = f"\n... {len(data) - room:,} bytes left out ...\n"
    return head.decode("utf-8", "ignore") + middle + tail.decode("utf-8", "ignore")


def _pickled(why: BaseException) -> bytes | None:
    """A pickle of the exception that unpickles, preferably with the same message; None if there is none."""
    found = None
    for way in (wire.dumps, wire.rebuilding):
        try:
            data = way(why, MAX_EXCEPTION)
            opened = None if data is None else wire.loads(data)
        except BaseException:  # noqa: BLE001, S112 - its own methods may raise anything; its text is stored anyway
            continue
        if isinstance(opened, BaseException) and type(opened).__qualname__ == type(why).__qualname__:
            found = found or data
            if text_of(opened) == text_of(why):
                return data
    return found
