"""The running job, for the code inside it: id, arguments, meta, progress, random numbers.

A child process calls `enter` and `leave` around each call; SimpleWorker and `inline=True` use `inside`. Meta and
progress go to `here.note`, so that a job needs no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue.checks import size_text
from nbqueue.errors import BadInput, BadSignature
from nbqueue.model import MAX_META, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Thread

    import numpy as np

META, PROGRESS = 1, 2  # kinds of notes
_DEEPEST = 50  # levels of lists and dicts in meta
_INTEGERS = range(-(1 << 63), 1 << 64)


class CurrentJob:
    """The running job. `meta` may be changed; `save_meta` makes the changes visible to others."""

    def __init__(
        self,
        id: str,  # noqa: A002 - RQ's name
        *,
        batch: str = "",
        index: int = 0,
        attempt: int = 1,
        func_name: str = "",
        description: str = "",
        queue: str = "",
        timeout: float | None = None,
        meta: bytes = b"",
        left: Sequence[int | None] = (),
        worker: str = "",
        began: float | None = None,
        arguments: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        """`meta` comes from `pack_meta`; `arguments()` returns a tuple that begins with args and kwargs.

        `left` are the numbers of retries and repeats left; None: the job has none.
        """
        self.id = id
        self.batch = batch or id.partition(":")[0]
        self.index = index
        self.attempt = attempt
        self.func_name = func_name
        self.description = description or func_name
        self.queue = queue
        self.timeout = timeout
        self.retries_left, self.repeats_left = left or (None, None)
        self.worker_name = worker or None
        self.started_at = datetime.now(UTC) if began is None else datetime.fromtimestamp(began, UTC)
        self._state = State.STARTED
        self._packed = meta
        self._meta: dict[str, Any] | None = None
        self._arguments = arguments
        self._opened: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id} of {self.func_name}, attempt {self.attempt}>"

    def get_status(self, refresh: bool = True) -> State:
        """`started` while it runs; in a callback the final state. `refresh` is RQ's, and has no effect here."""
        del refresh
        return self._state

    def ended(self, state: State) -> None:
        """Sets the final state, for callbacks."""
        self._state = state

    @property
    def origin(self) -> str:
        """The name of the queue, as RQ calls it."""
        return self.queue

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments: a copy of those that the function was called with."""
        args: tuple[Any, ...] = self._open()[0]
        return args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments: a copy of those that the function was called with."""
        kwargs: dict[str, Any] = self._open()[1]
        return kwargs

    def _open(self) -> tuple[Any, ...]:
        if self._opened is None:
            self._opened = self._arguments() if self._arguments is not None else ((), {})
        return self._opened

    @property
    def meta(self) -> dict[str, Any]:
        """A dict of plain data that is stored with the job; others see it after `save_meta`."""
        if self._meta is None:
            self._meta = unpack_meta(self._packed)
        return self._meta

    @meta.setter
    def meta(self, value: dict[str, Any]) -> None:
        self._meta = value

    def get_meta(self, refresh: bool = True) -> dict[str, Any]:
        """As `meta`; `refresh` is RQ's, and has no effect while the job runs."""
        del refresh
        return self.meta

    def save_meta(self) -> None:
        """Stores `meta`, so that others see it. Raises BadInput if it is not plain data."""
        note(META, pack_meta(self.meta))

    def save(self) -> None:
        """As `save_meta`: nothing else of a job can change."""
        self.save_meta()

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Reports progress: `done` of `total`, and a short text."""
        progress(done, total, text)


class Here:
    """The job that a child process runs, or a thread of another process."""

    __slots__ = ("index", "job", "made", "note", "present", "seed", "stream")

    def __init__(self) -> None:
        self.job: str | None = None
        self.seed: int | None = None
        self.index = 0
        self.note: Callable[[int, bytes], None] | None = None
        self.present: Callable[[], CurrentJob] | None = None
        self.made: dict[str, CurrentJob] = {}
        self.stream: np.random.Generator | None = None


here = Here()  # in a child process, where all threads belong to the job
_mine: ContextVar[Here | None] = ContextVar("nbqueue job", default=None)  # of a thread that runs a call itself
_others: dict[
    Here, frozenset[Thread]
] = {}  # such calls -> the threads that existed before and do not belong to the job


def _present() -> Here:
    found = _mine.get()
    if found is not None or not _others:
        return found or here
    import threading  # on demand, so that forked children stay small

    # A thread that was started after exactly one of the jobs belongs to that job.
    # Compared by object: thread numbers are reused.
    own = [job for job, before in list(_others.items()) if threading.current_thread() not in before]
    return own[0] if len(own) == 1 else here


# ---------------------------------------------------------------- for the process that runs a call


def enter(job: str, seed: int | None, index: int, present: Callable[[], CurrentJob] | None = None) -> None:
    """Marks this process as running `job`; `present` makes the CurrentJob on the first get_current_job()."""
    here.job, here.seed, here.index, here.present, here.stream = job, seed, index, present, None


def leave() -> None:
    """Marks this process as running no job."""
    here.job = here.stream = here.present = None
    if here.made:
        here.made = {}


@contextmanager
def inside(
    job: str,
    seed: int | None,
    index: int,
    present: Callable[[], CurrentJob] | None = None,
    note: Callable[[int, bytes], None] | None = None,
) -> Iterator[None]:
    """Marks this thread, and the threads that it starts, as running `job`; its meta and progress go to `note`.

    Other threads of this process stay outside: they may submit, or run other jobs.
    """
    import threading

    mine = Here()
    mine.job, mine.seed, mine.index, mine.present, mine.note = job, seed, index, present, note
    _others[mine] = frozenset(threading.enumerate())
    token = _mine.set(mine)
    try:
        yield
    finally:
        _mine.reset(token)
        del _others[mine]


def current() -> str | None:
    """The id of the job that this code runs in; None outside of jobs."""
    return _present().job


def note(kind: int, payload: bytes) -> None:
    """Sends META or PROGRESS of the running job to its worker; does nothing without one."""
    if (send := _present().note) is not None:
        send(kind, payload)


# ---------------------------------------------------------------- for the code of jobs


def get_current_job() -> CurrentJob | None:
    """The running job; None outside of jobs. It needs no connection."""
    now = _present()
    if (job := now.job) is None:
        return None
    if (found := now.made.get(job)) is None:
        made = now.present() if now.present is not None else CurrentJob(job, index=now.index)
        found = now.made.setdefault(job, made)  # two threads that ask at once get the same object
    return found


def progress(done: float, total: float | None = None, text: str = "") -> None:
    """Reports progress of the running job: `done` of `total`, and a short text. Does nothing outside of jobs."""
    now = _present()
    if now.note is not None and now.job is not None:
        whole = None if total is None else _number("total", total)
        now.note(PROGRESS, msgspec.msgpack.encode((_number("done", done), whole, str(text)[:1_000])))


def rng() -> np.random.Generator:
    """The job's own NumPy Generator: the same stream for the same (seed, index), through retries too."""
    now = _present()
    if now.stream is None:
        import numpy as np

        key = None if now.job is None or now.seed is None else [now.seed, now.index]
        now.stream = np.random.default_rng(key)
    return now.stream


# ---------------------------------------------------------------- meta as bytes


def pack_meta(meta: Mapping[str, Any]) -> bytes:
    """A meta dict as msgpack. Raises BadInput for an entry that is not plain data, or a size over 1 MB."""
    if not isinstance(meta, Mapping):
        raise BadInput(message=f"meta is a {type(meta).__name__}: it must be a dict with strings as keys.")
    data = msgspec.msgpack.encode(_plain("meta", meta, 0))
    if len(data) > MAX_META:
        raise BadInput(
            message=f"meta takes {size_text(len(data))}, over the limit of {size_text(MAX_META)}."
            " Store large data in a file, and its path in meta."
        )
    return data


def unpack_meta(data: bytes) -> dict[str, Any]:
    """The meta dict from `pack_meta`; empty for no bytes. Raises BadSignature for invalid data."""
    try:
        return msgspec.msgpack.decode(data, type=dict[str, Any]) if data else {}
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as why:  # as in model.decode
        raise BadSignature(what="The meta of a job", why=f"it is not valid meta ({why})") from why


def _plain(where: str, value: Any, depth: int) -> Any:
    """`value` in Python's own types; NumPy's numbers count as numbers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | bytes):  # also of a subclass: an enum's text, NumPy's str_
        return str.__str__(value) if isinstance(value, str) else bytes(value)
    if isinstance(value, Integral | Real):
        return _number(where, value)
    if depth > _DEEPEST:
        raise BadInput(message=f"{where} is nested more than {_DEEPEST} levels deep, or holds itself.")
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise BadInput(message=f"{where} has the key {odd[0]!r}: keys of meta must be strings.")
        return {str(key): _plain(f"{where}[{key!r}]", each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{where}[{position}]", each, depth + 1) for position, each in enumerate(value)]
    raise BadInput(
        message=f"{where} is of type {type(value).__name__}: meta takes numbers, strings, bytes, bools, None, lists"
        " and dicts. Store it as a string, or in a file whose path is in meta."
    )


def _number(where: str, value: Any) -> int | float:
    if not isinstance(value, Integral | Real):
        raise BadInput(message=f"{where} must be a number, not a {type(value).__name__}.")
    if not isinstance(value, Integral):
        return float(value)
    if (whole := int(value)) not in _INTEGERS:
        raise BadInput(message=f"{where} is a whole number of more than 64 bits: store it as a string.")
    return whole
