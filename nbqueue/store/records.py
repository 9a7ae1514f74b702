"""What goes into the Broker and comes out of it: plain values, without a connection."""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from nbqueue.errors import BadSignature
from nbqueue.model import Cause, Rerun, State, Tally

_HEAD = struct.Struct(">cH")
_LETTERS = {b"F": State.FINISHED, b"X": State.FAILED, b"C": State.CANCELED}
LETTER = {state: letter for letter, state in _LETTERS.items()}


class Need(NamedTuple):
    """What must be over before a batch runs: a job of a batch, or (`index` None) the whole of it.

    It must have finished, without one failure; with `allow_failure` it is enough that it has ended.
    """

    batch: str
    index: int | None  # type: ignore[assignment]
    allow_failure: bool = False


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What submit writes. Times in seconds; a `result_ttl` or `failure_ttl` under 0 means a year."""

    id: str
    queue: str
    session: str
    name: str | None = None
    nonce: str  # the same nonce again is the same submit; another one meets InUse
    spec: bytes  # sealed Spec
    function: bytes  # sealed FunctionRecord
    key: str  # FunctionRecord.key
    signer: str  # id of the key that signed, in hexadecimal
    python: str  # "3.11"
    host: str  # of the client: on it any Python fits, since the client's own interpreter is used
    result_ttl: float
    failure_ttl: float
    ttl: float | None = None
    at_front: bool = False
    single: bool = False  # a batch of one whose end is told in the session's log
    due_us: int | None = None  # not before this time, on Redis's clock
    delay: float | None = None  # not before so many seconds from the server's now
    needs: tuple[Need, ...] = ()
    source: str = ""  # job i runs with the outcome of job i of that batch: it comes without arguments
    meta: bytes = b""  # sealed meta of the job of a single
    max_open: int = 1_000_000  # refused where its queue has so many batches that are not done


class Submitted(NamedTuple):
    """The answer of submit: the server's epoch, where the jobs are now, and how many there are."""

    epoch: str
    state: State
    n: int


class Fitness(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker can run."""

    keys: tuple[str, ...]  # ids of the keys that it knows
    python: str
    host: str
    unfit: tuple[str, ...] = ()  # function keys that it could not load


class Lease(NamedTuple):
    """Names one held job: the token is that of the claim which gave it."""

    batch: str
    index: int  # type: ignore[assignment]
    token: str


class Held(NamedTuple):
    """A job as claim hands it out; `attempt` counts its runs from 1, `solo` marks one whose worker was lost before."""

    index: int  # type: ignore[assignment]
    attempt: int
    args: bytes
    solo: bool
    meta: bytes = b""  # sealed, where there is one
    retried: int = 0  # runs that failures have cost,
    repeated: int = 0  # and successes


class Grant(msgspec.Struct, frozen=True):
    """The jobs of one batch in a claim. `spec` is sealed, `key` is the function's.

    With a `source` the `args` of job i are the record (see Stored) of outcome i of that batch.
    """

    batch: str
    queue: str
    spec: bytes
    key: str
    token: str
    jobs: list[Held]
    source: str = ""


class Claimed(msgspec.Struct, frozen=True):
    """The answer of claim. `skipped` counts batches that this worker cannot run, by reason.

    `due` is the number of seconds until promote has something to do, None if nothing is to come. While `suspended`
    nothing is given. `left`: the queues hold more, for this worker or for others. `more`: it gave nothing, and stopped
    before the end of the queues; the claim that is to go on from there, at once, is given this.
    """

    now_us: int
    grants: list[Grant]
    skipped: dict[str, int]
    due: float | None = None
    suspended: bool = False
    left: bool = True
    more: str = ""


class Settled(NamedTuple):
    """One run's end. `blob` is the sealed Outcome alone: the store puts state and attempt before it (see Stored).

    A failed one may bring `rerun`, a finished one `repeat`: the store counts whether runs are left.
    """

    batch: str
    index: int  # type: ignore[assignment]
    token: str
    state: State
    blob: bytes
    tail: bytes = b""
    rerun: Rerun | None = None
    repeat: Rerun | None = None


class Renewed(msgspec.Struct, frozen=True):
    """The answer of renew: `fallen` of the leases asked about stand no more; `held` jobs are in the worker's name."""

    now_us: int
    fallen: list[Lease]
    held: int = 0


class Reaped(msgspec.Struct, frozen=True):
    """The answer of reap. `lost` of the `jobs` had been lost too often and failed; `waiting`: the server was away.

    `more`: it has stopped before the end.
    """

    workers: list[str]
    jobs: int
    lost: int
    waiting: bool
    more: bool = False


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader sees of a batch. `cuts` are ranges (lo, hi, cause) that were canceled at once, without records."""

    id: str
    queue: str
    n: int
    open: bool
    cut: bool
    canceled: bool
    tally: Tally
    created_us: int
    done_us: int | None
    expires_us: int | None
    expired: bool
    log_length: int
    spec: bytes
    key: str
    signer: str
    session: str
    name: str | None
    single: bool
    nonce: str
    cuts: tuple[tuple[int, int, Cause], ...] = ()
    hold: str = ""  # "deferred" or "scheduled" while the whole batch waits for that
    due_us: int | None = None  # not before
    queued_us: int | None = None  # when it could first be handed out; None while it is held
    source: str = ""

    @property
    def done(self) -> bool:
        """Whether every job has an outcome and no more can arrive."""
        return self.done_us is not None


class QueuedBatch(NamedTuple):
    """A batch with jobs to hand out, and their indexes in the order of claims."""

    view: BatchView
    indexes: list[int]


class Holder(NamedTuple):
    """Who runs a job, for which time, since when."""

    worker: str
    attempt: int
    since_us: int


class Stored(msgspec.Struct, frozen=True):
    """A record of `out`: a letter for the state, the attempt in 2 bytes, a body.

    A capital letter: a worker wrote it, and the body is a sealed Outcome. A small one: a script wrote it, which cannot
    sign; the body is the msgpack array [cause, now_us, worker, host]. It says failed or canceled, and gives no value.
    """

    state: State
    attempt: int
    signed: bool
    body: bytes

    @classmethod
    def parse(cls, blob: bytes, what: str = "An outcome") -> Stored:
        """Raises BadSignature for what cannot be a record of ours."""
        if len(blob) < _HEAD.size:
            raise BadSignature(what=what, why="it is cut short")
        letter, attempt = _HEAD.unpack_from(blob)
        state = _LETTERS.get(letter.upper())
        signed = letter.isupper()
        if state is None or (state is State.FINISHED and not signed):
            raise BadSignature(what=what, why="it begins with no state of ours")
        return cls(state, attempt, signed, blob[_HEAD.size :])

    def note(self, what: str = "An outcome") -> Note:
        """The body of a record that a script wrote. Raises BadSignature."""
        try:
            return _note.decode(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as why:
            raise BadSignature(what=what, why=f"it is no note of the store ({why})") from why


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What a script writes of a job that it ended: why, when, and whose job it was and where (or empty)."""

    cause: Cause
    ended_us: int
    worker: str
    host: str = ""


_note = msgspec.msgpack.Decoder(Note)


def past(blob: bytes) -> list[bytes]:
    """The records in a field of `past`, oldest first; an empty one stands for an end without a record."""
    found = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return found
