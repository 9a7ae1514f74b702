"""The frames that parent, stable and horse send each other over Unix stream sockets.

A frame is `>IB` (length of the payload, kind) and the payload. This module needs the standard library only, because a
stable stays lean until it loads its function; the codecs of records import msgspec when they are first used.

    parent -> stable   HELLO (first of all) the protocol and the version of nbqueue
                       SETUP Setup (before LOAD)   LOAD model.FunctionRecord
                       LOAD_BARE the same, for every horse to load   RUN Run   AFTER After
                       FENCE f64 on limits.fence_clock()   THAW seqs   KILL seqs   DRAIN -
    stable -> parent   READY f64 seconds   UNFIT model.Failure   BEGUN seqs   BACK seqs   DONE Done
                       NOTE Note   GONE seqs   ECHO seq and list of model.CallbackResult   FILES list of File
                       LEARNT Learnt (before it imports them: it hears nobody until READY comes again)
    horse -> stable    DONE with flags in place of the tail; NOTE; ECHO; FILES; LEARNT; WARMED f64 seconds
    stable -> horse    RUN with further calls, once their tickets are there; AFTER with the name of the hook

A frame sent with a descriptor carries it by SCM_RIGHTS, and the highest bit of its kind says so: a DONE whose value is
over 1 MB has None for it in its CallResult, and the value in a memfd. So may an AFTER.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nbqueue.model import CallbackResult, CallResult

LOAD, LOAD_BARE, RUN, FENCE, THAW, KILL, DRAIN, SETUP, AFTER, HELLO = range(1, 11)
READY, UNFIT, BEGUN, BACK, DONE, NOTE, GONE, ECHO, FILES, LEARNT, WARMED = range(16, 27)
WITH_FD = 0x80

# One more with each change of a frame: on one machine the notebook's nbqueue may be another than the worker's.
PROTOCOL = 3

META, PROGRESS = 1, 2  # kinds of NOTE, as in current.py, which a lean stable must not import

HEAD = struct.Struct(">IB")
_DONE = struct.Struct(">QI")
_NOTE = struct.Struct(">QB")
_SECONDS = struct.Struct(">d")
_SEQ = struct.Struct(">Q")

BIG_FROM = 1 << 20  # a value over 1 MB travels in a memfd


class Setup(NamedTuple):
    """SETUP: what a worker was told to prepare, whatever the function."""

    paths: tuple[str, ...] = ()  # go first into sys.path
    preload: tuple[str, ...] = ()  # modules to import before the function
    handlers: tuple[str, ...] = ()  # dotted names of exception handlers
    spill: str = ""  # the worker's own folder or URL for large results
    namespace: str = ""
    learn: bool = True  # whether what calls import may be imported ahead


class Job(NamedTuple):
    """One call of a RUN: `seq` names it between parent and stable, `payload` is what perform.pack made."""

    seq: int
    index: int  # type: ignore[assignment]  # the name that the field has everywhere
    attempt: int
    payload: bytes
    meta: bytes = b""  # a msgpack map: what is kept with the job
    retries_left: int | None = None
    repeats_left: int | None = None


class Run(NamedTuple):
    """RUN: jobs of one batch for one slot, to be called in this order."""

    slot: int
    batch: str
    label: str
    isolate: bool
    timeout: float | None
    grace: float
    slice: float
    max_result: int | None
    seed: int | None
    jobs: list[Job]
    single: bool = False  # a batch of one: its job id is the batch id
    timeout_from: str = ""  # whose default the time limit was; empty: the user's own
    queue: str = ""
    description: str = ""
    hooks: tuple[str, ...] = ()  # which callbacks the function record has: success, failure, stopped
    spill: str = ""  # the batch's own folder or URL for large results; "off": none
    worker: str = ""  # the id of the worker


class After(NamedTuple):
    """AFTER: the end of a job is settled, and this is to be done about it.

    `run` has the one job, so that a fresh horse can do it where the one that made the call is gone.
    """

    run: Run
    hook: str = ""  # the callback to run: success, failure, stopped; empty: none
    handlers: bool = False  # whether the exception handlers of SETUP are called
    value: bytes | None = None  # the pickled result, where it does not come in a descriptor
    failure: bytes = b""  # an encoded model.Failure
    spilled: bytes = b""  # an encoded model.Spilled
    began: float | None = None  # when the call began, in seconds since the epoch

    @property
    def seq(self) -> int:
        """The seq of the job."""
        return self.run.jobs[0].seq


class Done(NamedTuple):
    """DONE: an encoded model.CallResult and the tail; the value may come beside it in a descriptor."""

    seq: int
    ride: bytes
    tail: bytes


class Note(NamedTuple):
    """NOTE: META or PROGRESS of a running job."""

    seq: int
    kind: int
    payload: bytes


class File(NamedTuple):
    """FILES: a file whose code has been loaded, as it was then; a time of 0 says that it changed meanwhile."""

    path: str
    mtime_ns: int
    size: int


class Learnt(NamedTuple):
    """LEARNT: modules that calls have imported, in the order of that, and the seconds that it took at most."""

    seconds: float
    modules: list[str]


class FrameError(Exception):
    """A peer sent what is no frame."""


_decoders: dict[Any, Any] = {}


def hello() -> bytes:
    """The payload of HELLO."""
    from importlib import metadata

    return f"{PROTOCOL} {metadata.version('nbqueue')}".encode()


def stranger(payload: bytes) -> str:
    """Why the peer that sent this HELLO cannot be understood; empty if it can."""
    protocol, _, version = payload.decode("utf-8", "replace").partition(" ")
    if protocol == str(PROTOCOL):
        return ""
    mine = hello().decode().partition(" ")[2]
    remedy = "install the same version in both environments"
    return f"the notebook's interpreter has nbqueue {mine}, the worker {version}: {remedy}"


def encode(record: Setup | Run | After | Learnt | list[File]) -> bytes:
    """A record as msgpack."""
    import msgspec

    return msgspec.msgpack.encode(record)


def decode_run(payload: bytes) -> Run:
    """The payload of RUN, validated; raises FrameError."""
    run: Run = _decode(Run, payload)
    return run


def decode_setup(payload: bytes) -> Setup:
    """The payload of SETUP, validated; raises FrameError."""
    setup: Setup = _decode(Setup, payload)
    return setup


def decode_after(payload: bytes) -> After:
    """The payload of AFTER, validated; raises FrameError."""
    after: After = _decode(After, payload)
    return after


def decode_files(payload: bytes) -> list[File]:
    """The payload of FILES, validated; raises FrameError."""
    files: list[File] = _decode(list[File], payload)
    return files


def decode_learnt(payload: bytes) -> Learnt:
    """The payload of LEARNT, validated; raises FrameError."""
    learnt: Learnt = _decode(Learnt, payload)
    return learnt


def decode_ride(payload: bytes) -> CallResult:
    """The CallResult in a DONE; raises FrameError."""
    from nbqueue.model import CallResult

    ride: CallResult = _decode(CallResult, payload)
    return ride


def pack_echoes(seq: int, echoes: list[CallbackResult]) -> bytes:
    """The payload of ECHO."""
    import msgspec

    return _SEQ.pack(seq) + msgspec.msgpack.encode(echoes)


def unpack_echoes(payload: bytes) -> tuple[int, list[CallbackResult]]:
    """What an ECHO says; raises FrameError."""
    from nbqueue.model import CallbackResult

    (seq,) = _numbers(_SEQ, payload)
    echoes: list[CallbackResult] = _decode(list[CallbackResult], payload[_SEQ.size :])
    return seq, echoes


def _decode(kind: Any, payload: bytes) -> Any:
    import msgspec

    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as why:
        raise FrameError(f"no {getattr(kind, '__name__', kind)}: {why}") from why


def _numbers(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) < layout.size:
        raise FrameError(f"{len(payload)} bytes are too few")
    return layout.unpack_from(payload)


def pack_seqs(seqs: Iterable[int]) -> bytes:
    """The payload of THAW, BEGUN, BACK and GONE."""
    return array("Q", seqs).tobytes()


def unpack_seqs(payload: bytes) -> list[int]:
    """The seqs in the payload of THAW, BEGUN, BACK and GONE; raises FrameError."""
    seqs = array("Q")
    if len(payload) % seqs.itemsize:
        raise FrameError(f"{len(payload)} bytes are no list of jobs")
    seqs.frombytes(payload)
    return seqs.tolist()


def pack_seconds(value: float) -> bytes:
    """The payload of READY, FENCE, and WARMED."""
    return _SECONDS.pack(value)


pack_fence = pack_seconds


def unpack_seconds(payload: bytes) -> float:
    """The number in the payload of FENCE, READY, or WARMED; raises FrameError."""
    value: float = _numbers(_SECONDS, payload)[0]
    return value


unpack_fence = unpack_seconds


def pack_done(seq: int, ride: bytes, tail: bytes) -> bytes:
    """The payload of DONE."""
    return b"".join((_DONE.pack(seq, len(ride)), ride, tail))


def unpack_done(payload: bytes) -> Done:
    """What a DONE says; raises FrameError."""
    seq, size = _numbers(_DONE, payload)
    end = 12 + size
    return Done(seq, payload[12:end], payload[end:])


def check_done(payload: bytes, seq: int) -> None:
    """Raises FrameError or struct.error for what is not a horse's DONE of this call: a job may have written it."""
    done = unpack_done(payload)
    if done.seq != seq or len(done.tail) != 1:
        raise FrameError("the end of a call that does not go on, or is cut short")
    decode_ride(done.ride)


def pack_note(seq: int, kind: int, payload: bytes) -> bytes:
    """The payload of NOTE."""
    return _NOTE.pack(seq, kind) + payload


def unpack_note(payload: bytes) -> Note:
    """What a NOTE says; raises FrameError."""
    seq, kind = _numbers(_NOTE, payload)
    return Note(seq, kind, payload[9:])


def read_value(fd: int, most: int | None = None) -> bytes:
    """The value that came beside a DONE or an AFTER; closes the descriptor. Raises FrameError for one over `most`."""
    try:
        size = os.fstat(fd).st_size
        if most is not None and size > most:
            raise FrameError(f"a value of {size:,} bytes is over the limit of {most:,}")
        parts, offset = [], 0
        while offset < size:
            part = os.pread(fd, size - offset, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def write_value(value: bytes) -> int:
    """A descriptor with `value` in it, without a name in any folder."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("nbqueue-value")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(value)
    while view:
        view = view[os.write(fd, view) :]
    return fd
