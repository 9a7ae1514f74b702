"""The data model: frozen values without a connection. The Broker has the verbs, `client/` the handles.

Records that are read before their signature is trusted (spec, function record, outcome, worker info) are msgspec
Structs: they are validated when decoded, and never unpickled.
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
    """The state of a job. The last three are final, until a retry starts a new run."""

    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"
    CREATED = nonmember("created")  # a call that was not submitted: not on any server, and in no tally

    @property
    def over(self) -> bool:
        """Whether a job in this state has an outcome."""
        return self in OVER


OVER = frozenset({State.FINISHED, State.FAILED, State.CANCELED})


class Cause(StrEnum):
    """Why a job did not finish."""

    ERROR = "error"  # the function raised
    TIMEOUT = "timeout"  # its time limit passed
    RETRY = "retry"  # it returned a Retry, and no runs are left
    CRASHED = "crashed"  # its process died; the signal or exit code is in `code`
    OOM = "oom"  # its process was killed for its memory
    LOST = "lost"  # its worker was lost MAX_LOSSES times while it held no other job
    UNSERIALIZABLE = "unserializable"  # the result cannot be pickled
    TOO_LARGE = "too_large"  # the result is over max_result
    LOAD = "load"  # the function could not be loaded
    SIGNATURE = "signature"  # function or arguments had no valid signature
    LOST_BY_SERVER = "lost_by_server"  # the server lost its data
    USER = "user"  # canceled by a user
    DEPENDENCY = "dependency"  # canceled, because a dependency did not finish
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
    """An exception of a job as text, and pickled if possible."""

    type: str  # qualified name, as `KeyError` or `requests.exceptions.Timeout`
    message: str
    traceback: str = ""
    pickled: bytes | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Spilled(msgspec.Struct, frozen=True, array_like=True):
    """Where a large result is stored: a file under a folder or URL, its size in bytes, and its SHA-256."""

    root: str
    name: str
    size: int
    sha256: bytes


class Rerun(msgspec.Struct, frozen=True, array_like=True):
    """How often a job runs again, after how many seconds (the last interval repeats), and whether at the front."""

    times: int
    intervals: tuple[float, ...] = (0.0,)
    front: bool = False


def runs_left(rerun: Rerun | None, used: int) -> int | None:
    """The number of runs left after `used`; None without a `rerun`."""
    return None if rerun is None else max(0, rerun.times - used)


class Hook(msgspec.Struct, frozen=True, array_like=True):
    """A callback: its pickle, its name for people, its time limit in seconds."""

    payload: bytes
    label: str
    timeout: float = CALLBACK_TIMEOUT


class CallbackResult(msgspec.Struct, frozen=True, array_like=True):
    """The result of a callback or an exception handler: `hook` is success, failure, stopped or handler."""

    hook: str
    label: str
    failure: Failure | None = None


class JobMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a job reports while it runs: its meta, and its progress (done, total, text)."""

    meta: dict[str, Any] = {}
    progress: tuple[float, float | None, str] | None = None


class CallResult(msgspec.Struct, frozen=True, array_like=True):
    """The result of one call, from the child process or its post-mortem; the worker makes an Outcome of it.

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
    spilled: Spilled | None = None  # the result, if it is too large for `value`


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The record of a job's run, as stored in Redis: times in microseconds on Redis's clock, sizes in kB."""

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
    spilled: Spilled | None = None  # instead of the value
    version: str = ""  # version of the function: see Spec.version

    @property
    def ended_us(self) -> int:
        """When it ended, in microseconds since the epoch."""
        return self.started_us + self.runtime_us


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a function: its digest (empty: not comparable), its text if short, its line."""

    digest: bytes
    shown: str = ""
    line: int = 0


class FunctionFingerprint(msgspec.Struct, frozen=True, array_like=True):
    """The pieces of a function by label, to describe changes later; `lines` are digests of the lines of its code."""

    python: str
    parts: dict[str, Part]
    lines: dict[str, tuple[tuple[int, bytes], ...]]


class FunctionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A function as sent to workers: its pickle, and the environment in which it must be loaded."""

    payload: bytes
    key: str  # digest of all that affects how it runs; a forkserver serves one key
    label: str
    python: str  # "3.11"
    interpreter: str
    host: str
    cwd: str
    path: tuple[str, ...] = ()  # the client's additions to sys.path; "" stands for the standard library
    modules: dict[str, str] = {}  # the user's modules that it imports -> SHA-256 of their source, if pinned
    pinned: bool = True  # whether it runs with exactly these modules; else with the worker's at the start of the job
    env: dict[str, str | None] = {}  # environment variables sent with it; None: not set in the notebook
    hooks: dict[str, Hook] = {}  # callbacks: success, failure, stopped
    likeness: FunctionFingerprint | None = None  # of a named batch, to describe changes when it is submitted again
    imports: tuple[str, ...] = ()  # modules to import once in the forkserver, rather than in every process
    sources: dict[str, list[tuple[int, str]]] = {}  # file -> (first line, text) of pickled code, for tracebacks


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a batch for workers and readers. Immutable, except for a retry with other limits."""

    label: str  # the function's name, for people
    key: str = ""  # FunctionRecord.key: the signature over the spec binds the batch to its function
    columns: tuple[str, ...] = ()  # argument columns of the frame, fixed at submission
    timeout: float | None = None
    timeout_from: str = ""  # the method whose default the time limit is; empty: set by the user
    grace: float = GRACE
    isolate: bool = False
    slice: float = SLICE
    preload: bool = True
    max_result: int | None = None  # None: MAX_RESULT, or with a spill MAX_SPILLED
    spill: str = ""  # where large results are stored; empty: the worker's setting; "off": in Redis
    seed: int | None = None
    env: tuple[str, ...] = ()  # names of the environment variables sent with the function
    result_ttl: float = RESULT_TTL
    failure_ttl: float = FAILURE_TTL
    labeled: bool = False  # whether items carry index labels of a Series or DataFrame
    index_names: tuple[str | None, ...] = ()  # names of the levels of those labels
    single: bool = False  # a batch of one, made by submit or enqueue; its job id is the batch id
    owner: str = ""  # user@host
    description: str = ""  # by the user; empty: the function's name
    meta: bytes = b""  # initial meta of each job, as msgpack; a single job has a record of its own
    retry: Rerun | None = None  # after a failure
    repeat: Rerun | None = None  # after a success
    hooks: tuple[str, ...] = ()  # the keys of FunctionRecord.hooks
    depends_on: tuple[str, ...] = ()  # ids of jobs and batches
    source: str = ""  # the batch whose results are the arguments, job by job
    salt: bytes = b""  # of a named batch: goes into the argument hashes of its jobs
    restored: int = 0  # how often it was restored to a server that had lost it; each time with a new log

    @property
    def version(self) -> str:
        """Short id of the function, for people; `update=True` and `retry(func=)` change it."""
        return self.key[:8]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The record that a worker writes when it joins."""

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
    lease: float = LEASE  # seconds that each heartbeat extends it by


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a batch. `Options().replaced(timeout="3m")` validates user input."""

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
    pin: bool | None = None  # None: the default of the method
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
        """A copy with some options changed; raises BadOption or BadName for invalid ones."""
        unknown = sorted(set(changes) - set(self.__struct_fields__))
        if unknown:
            known = ", ".join(self.__struct_fields__)
            raise BadOption(message=f"There is no option {unknown[0]!r}. The options are: {known}.")
        return msgspec.structs.replace(self, **{key: CHECKS[key](key, value) for key, value in changes.items()})


def new_id(stem: str, letters: int = 4) -> str:
    """A new, readable id, as `count_words-7k2f`."""
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
    """The record in `data`, validated; raises BadSignature for anything else."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        found: R = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as why:  # TypeError: a map as a map's key
        raise BadSignature(what=what, why=f"it is not a valid {kind.__name__} ({why})") from why
    return found


def worker_info(data: bytes) -> WorkerInfo | None:
    """The record of a worker; None if it cannot be read, so that one bad record does not hide other workers."""
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
