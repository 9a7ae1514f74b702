"""The nouns: frozen values without a connection. Verbs live in the Broker, handles in `client/`.

Records that anyone may read without trust (spec, function record, outcome, worker info) are msgspec Structs: they are
validated as they are decoded, and never unpickled.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum, nonmember
from typing import Any, TypeVar

import msgspec

from nbqueue.checks import CHECKS, DAY
from nbqueue.errors import BadOption, BadSignature

MB = 1 << 20

DEFAULT_QUEUE = "default"
RESULT_TTL = 7 * DAY
FAILURE_TTL = 30 * DAY
GRACE = 2.0
SLICE = 0.1
MAX_RESULT = 64 * MB
MAX_ARGUMENTS = 64 * MB
WARN_ARGUMENTS = 1 * MB
MAX_FUNCTION = 256 * MB
WARN_FUNCTION = 10 * MB
TAIL_FINISHED = 4_096
TAIL_FAILED = 65_536
LEASE = 30.0
BEAT = 5.0
MAX_LOSSES = 3
CALLBACK_TIMEOUT = 60.0
MAX_META = 1 * MB


class State(StrEnum):
    """Where a job is. The last three are for good, until a retry opens a new run."""

    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"
    CREATED = nonmember("created")  # of a call that was described only: no store has it, and nothing counts it

    @property
    def over(self) -> bool:
        """Whether a job in this state has an outcome."""
        return self in OVER


OVER = frozenset({State.FINISHED, State.FAILED, State.CANCELED})


class Cause(StrEnum):
    """Why a job did not finish."""

    ERROR = "error"  # the function raised
    TIMEOUT = "timeout"  # its time limit passed
    RETRY = "retry"  # it returned a Retry, and has used up its runs
    CRASHED = "crashed"  # its process died; the signal or exit code is in `code`
    OOM = "oom"  # its process was killed for its memory
    LOST = "lost"  # its worker was lost MAX_LOSSES times while it held only this job
    UNSERIALIZABLE = "unserializable"  # the result cannot be pickled
    TOO_LARGE = "too_large"  # the result is over max_result
    LOAD = "load"  # the function could not be loaded
    SIGNATURE = "signature"  # function or arguments did not carry a valid signature
    LOST_BY_SERVER = "lost_by_server"  # the server forgot it
    USER = "user"  # canceled by someone
    DEPENDENCY = "dependency"  # canceled, because what it depended on did not finish
    EXPIRED = "expired"  # canceled, because its ttl passed while it was queued


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """A batch's counts by state; they always sum to `n`, the number of jobs that have arrived."""

    n: int = 0
    deferred: int = 0
    scheduled: int = 0
    queued: int = 0
    started: int = 0
    finished: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def over(self) -> int:
        """The number of jobs that have an outcome."""
        return self.finished + self.failed + self.canceled

    def __str__(self) -> str:
        counts = {state: getattr(self, state) for state in State}
        return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count) or "no jobs"


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What went wrong in a job, as text, and the exception itself where it could be pickled."""

    type: str  # qualified name, as `KeyError` or `requests.exceptions.Timeout`
    message: str
    traceback: str = ""
    pickled: bytes | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Spilled(msgspec.Struct, frozen=True, array_like=True):
    """Where a large result lies: a file under a folder or URL, its size in bytes, and what it must be."""

    root: str
    name: str
    size: int
    sha256: bytes


class Rerun(msgspec.Struct, frozen=True, array_like=True):
    """How often a job runs again, after how many seconds each (the last holds for all that follow), and where."""

    times: int
    intervals: tuple[float, ...] = (0.0,)
    front: bool = False


def runs_left(rerun: Rerun | None, used: int) -> int | None:
    """How many runs are left when so many were used; None where there were none to begin with."""
    return None if rerun is None else max(0, rerun.times - used)


class Hook(msgspec.Struct, frozen=True, array_like=True):
    """A callback on its way: its pickle, its name for people, its time limit in seconds."""

    payload: bytes
    label: str
    timeout: float = CALLBACK_TIMEOUT


class Echo(msgspec.Struct, frozen=True, array_like=True):
    """What became of a callback or an exception handler: `hook` is success, failure, stopped or handler."""

    hook: str
    label: str
    failure: Failure | None = None


class Notes(msgspec.Struct, frozen=True, array_like=True):
    """What a job says of itself while it runs: its meta, and how far it is (done, total, a few words)."""

    meta: dict[str, Any] = {}
    progress: tuple[float, float | None, str] | None = None


class Ride(msgspec.Struct, frozen=True, array_like=True):
    """What a horse (or its death certificate) says of one call; the parent makes an Outcome of it.

    Times are on this machine's monotonic clock, in seconds; sizes in kB.
    """

    state: State
    cause: Cause | None
    started: float
    ended: float
    cpu_s: float = 0.0
    max_rss_kb: int | None = None  # None where the process was shared with other jobs
    code: int | None = None  # exit code, or minus the signal that ended the process
    failure: Failure | None = None
    value: bytes | None = None  # the pickled result
    rerun: Rerun | None = None  # the job returned a Retry: it failed, and asks for this
    spilled: Spilled | None = None  # the result, where it is too large to be here


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The record of a job's run, as it lies in the store: times in microseconds on Redis's clock, sizes in kB."""

    state: State
    cause: Cause | None
    attempt: int
    started_us: int
    runtime_us: int
    cpu_us: int = 0
    max_rss_kb: int | None = None
    code: int | None = None
    host: str = ""
    worker: str = ""
    failure: Failure | None = None
    value: bytes | None = None
    spilled: Spilled | None = None  # in place of the value
    version: str = ""  # of the function that ran: see Spec.version

    @property
    def ended_us(self) -> int:
        """When it ended, in microseconds since the epoch."""
        return self.started_us + self.runtime_us


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A part of a function: its digest (empty: it cannot be compared), its text where that is short, its line."""

    digest: bytes
    shown: str = ""
    line: int = 0


class FunctionFingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What a function is made of, by labels, to tell later what has changed; `lines` are those of its code."""

    python: str
    parts: dict[str, Part]
    lines: dict[str, tuple[tuple[int, bytes], ...]]


class FunctionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A function on its way: its pickle, and the place in which it must be loaded."""

    payload: bytes
    key: str  # digest of all that decides how it runs; one stable serves one key
    label: str
    python: str  # "3.11"
    interpreter: str
    host: str
    cwd: str
    path: tuple[str, ...] = ()  # what the client had added to sys.path; "" stands for the standard library
    modules: dict[str, str] = {}  # the function's own modules -> SHA-256 of their source, where it is pinned
    pinned: bool = True  # whether it runs with these modules only; else with what the worker has when the job begins
    env: dict[str, str | None] = {}  # variables that travel with it; None: one that the notebook has not
    hooks: dict[str, Hook] = {}  # callbacks: success, failure, stopped
    likeness: FunctionFingerprint | None = None  # of the function of a named batch, for those who submit it again
    imports: tuple[str, ...] = ()  # modules that it will want, to be imported once rather than in every process
    sources: dict[str, list[tuple[int, str]]] = {}  # file -> (first line, text) of what travels whole: for tracebacks


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What workers and later readers need to know of a batch. Immutable, but for a retry with other limits."""

    label: str  # the function's name, for people
    key: str = ""  # FunctionRecord.key: the signature over the spec binds the batch to its function
    columns: tuple[str, ...] = ()  # argument columns of the frame, fixed at submission
    timeout: float | None = None
    timeout_from: str = ""  # whose default the time limit was; empty: the user's own
    grace: float = GRACE
    isolate: bool = False
    slice: float = SLICE
    preload: bool = True
    max_result: int | None = None  # None: MAX_RESULT, or with a spill MAX_SPILLED
    spill: str = ""  # where large results go; empty: where the worker says; "off": nowhere
    seed: int | None = None
    env: tuple[str, ...] = ()  # names of the variables that travel with the function
    result_ttl: float = RESULT_TTL
    failure_ttl: float = FAILURE_TTL
    labeled: bool = False  # whether items carry index labels of a Series or DataFrame
    index_names: tuple[str | None, ...] = ()  # names of the levels of those labels
    single: bool = False  # a batch of one, made by submit or enqueue; its job id is the batch id
    owner: str = ""  # user@host
    description: str = ""  # what the user calls it; empty: the function's name
    meta: bytes = b""  # what the meta of each job begins with, as msgpack; a single job has a record of its own
    retry: Rerun | None = None  # after a failure
    repeat: Rerun | None = None  # after a success
    hooks: tuple[str, ...] = ()  # which of FunctionRecord.hooks there are
    depends_on: tuple[str, ...] = ()  # ids of jobs and batches
    source: str = ""  # the batch whose results are the arguments, job by job
    salt: bytes = b""  # of a named batch: goes into the marks of its jobs
    restored: int = 0  # how often it was brought back to a server that had forgotten it; each time its log began anew

    @property
    def version(self) -> str:
        """The function in a few signs, for people: another one after `update=True` or `retry(func=)`."""
        return self.key[:8]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself when it joins."""

    id: str
    name: str
    host: str
    pid: int
    slots: int
    queues: tuple[str, ...]
    python: str
    keys: tuple[str, ...] = ()
    version: str = ""
    local: bool = False
    born: float = 0.0  # when it joined, in seconds since the epoch on its own clock
    lease: float = LEASE  # for how long each renewal holds


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch runs. `Options().replaced(timeout="3m")` checks what a user typed."""

    queue: str = DEFAULT_QUEUE
    name: str | None = None
    update: bool = False
    fresh: bool = False
    timeout: float | None = None
    grace: float = GRACE
    result_ttl: float = RESULT_TTL
    failure_ttl: float = FAILURE_TTL
    ttl: float | None = None
    at_front: bool = False
    isolate: bool = False
    slice: float = SLICE
    preload: bool = True
    pin: bool | None = None  # None: as the verb does
    max_result: int | None = None
    spill: str | None = None
    max_failed: float | None = None
    seed: int | None = None
    env: tuple[str, ...] = ()
    progress: bool | None = None
    inline: bool | str = False
    job_id: str | None = None
    unique: bool = False
    description: str = ""
    meta: dict[str, Any] | None = None
    depends_on: Any = None
    retry: Any = None
    repeat: Any = None
    on_success: Any = None
    on_failure: Any = None
    on_stopped: Any = None

    def replaced(self, **changes: Any) -> Options:
        """A copy with some options changed; raises BadOption or BadName for what cannot be meant."""
        unknown = sorted(set(changes) - set(self.__struct_fields__))
        if unknown:
            known = ", ".join(self.__struct_fields__)
            raise BadOption(message=f"There is no option {unknown[0]!r}. The options are: {known}.")
        return msgspec.structs.replace(self, **{key: CHECKS[key](key, value) for key, value in changes.items()})


def new_id(stem: str, letters: int = 4) -> str:
    """A fresh id that people can read, as `count_words-7k2f`."""
    import secrets

    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    clean = re.sub(r"[^A-Za-z0-9_.]+", "", stem).lstrip(".")[:40] or "job"
    return f"{clean}-{''.join(secrets.choice(alphabet) for _ in range(letters))}"


R = TypeVar("R", bound=msgspec.Struct)
_decoders: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[Any]] = {}
_encoder = msgspec.msgpack.Encoder()


def encode(record: msgspec.Struct) -> bytes:
    """A record as msgpack."""
    return _encoder.encode(record)


def decode(kind: type[R], data: bytes | memoryview, what: str = "A record") -> R:
    """The record in `data`, validated; raises BadSignature (it is not what we wrote) for anything else."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        found: R = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as why:  # TypeError: a map as a map's key
        raise BadSignature(what=what, why=f"it is no {kind.__name__} ({why})") from why
    return found


def worker_info(data: bytes) -> WorkerInfo | None:
    """What a worker says of itself; None where that cannot be read: someone else wrote there, and others serve."""
    try:
        return decode(WorkerInfo, data)
    except BadSignature:
        return None


def job_id(batch: str, index: int) -> str:
    """The id of a job of a batch."""
    return f"{batch}:{index}"


def utc(us: int) -> datetime:
    """Microseconds of Redis's clock as an aware datetime."""
    return datetime.fromtimestamp(us / 1e6, tz=UTC)
