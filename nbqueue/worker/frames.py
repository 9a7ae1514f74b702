"""The frames that parent, stable and horse send each other over Unix stream sockets.

A frame is `>IB` (length of the payload, kind) and the payload. This module needs the standard library only, because a
stable stays lean until it loads its function; the codecs of records import msgspec when they are first used.

    parent -> stable   LOAD model.FunctionRecord   LOAD_BARE the same, for every horse to load   RUN Run
                       FENCE f64 on limits.fence_clock()   THAW seqs   KILL seqs   DRAIN -
    stable -> parent   READY f64 seconds   UNFIT model.Failure   BEGUN seqs   BACK seqs   DONE Done
                       NOTE Note   GONE seqs
    horse -> stable    DONE with flags in place of the tail; NOTE

A frame sent with a descriptor carries it by SCM_RIGHTS, and the highest bit of its kind says so: a DONE whose value is
over 1 MB has None for it in its Ride, and the value in a memfd.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nbqueue.model import Ride

LOAD, LOAD_BARE, RUN, FENCE, THAW, KILL, DRAIN = range(1, 8)
READY, UNFIT, BEGUN, BACK, DONE, NOTE, GONE = range(16, 23)
WITH_FD = 0x80

META, PROGRESS = 1, 2  # kinds of NOTE

HEAD = struct.Struct(">IB")
_DONE = struct.Struct(">QI")
_NOTE = struct.Struct(">QB")
_SECONDS = struct.Struct(">d")

BIG_FROM = 1 << 20  # a value over 1 MB travels in a memfd
_CHUNK = 1 << 18
_READ_AT_ONCE = 1 << 22  # one receive takes no more than this, so that nobody is starved


class Job(NamedTuple):
    """One call of a RUN: `seq` names it between parent and stable, `payload` is what perform.pack made."""

    seq: int
    index: int  # type: ignore[assignment]  # the name that the field has everywhere
    attempt: int
    payload: bytes


class Run(NamedTuple):
    """RUN: jobs of one batch for one slot, to be called in this order."""

    slot: int
    batch: str
    label: str
    isolate: bool
    timeout: float | None
    grace: float
    slice: float
    max_result: int
    seed: int | None
    jobs: list[Job]
    single: bool = False  # a batch of one: its job id is the batch id
    timeout_from: str = ""  # whose default the time limit was; empty: the user's own


class Done(NamedTuple):
    """DONE: an encoded model.Ride and the tail; the value may come beside it in a descriptor."""

    seq: int
    ride: bytes
    tail: bytes


class Note(NamedTuple):
    """NOTE: META or PROGRESS of a running job."""

    seq: int
    kind: int
    payload: bytes


Frames = list[tuple[int, bytes, int | None]]  # kind, payload, descriptor that came along


class FrameError(Exception):
    """A peer sent what is no frame."""


_decoders: dict[type, Any] = {}


def encode(record: Run) -> bytes:
    """A record as msgpack."""
    import msgspec

    return msgspec.msgpack.encode(record)


def decode_run(payload: bytes) -> Run:
    """The payload of RUN, validated; raises FrameError."""
    run: Run = _decode(Run, payload)
    return run


def decode_ride(payload: bytes) -> Ride:
    """The Ride in a DONE; raises FrameError."""
    from nbqueue.model import Ride

    ride: Ride = _decode(Ride, payload)
    return ride


def _decode(kind: type, payload: bytes) -> Any:
    import msgspec

    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as why:
        raise FrameError(f"no {kind.__name__}: {why}") from why


def pack_seqs(seqs: Iterable[int]) -> bytes:
    """The payload of THAW, BEGUN, BACK and GONE."""
    return array("Q", seqs).tobytes()


def unpack_seqs(payload: bytes) -> list[int]:
    """The seqs in the payload of THAW, BEGUN, BACK and GONE."""
    seqs = array("Q")
    seqs.frombytes(payload)
    return seqs.tolist()


def pack_seconds(value: float) -> bytes:
    """The payload of READY and FENCE."""
    return _SECONDS.pack(value)


pack_fence = pack_seconds


def unpack_seconds(payload: bytes) -> float:
    """The number in the payload of FENCE and READY."""
    value: float = _SECONDS.unpack(payload)[0]
    return value


unpack_fence = unpack_seconds


def pack_done(seq: int, ride: bytes, tail: bytes) -> bytes:
    """The payload of DONE."""
    return b"".join((_DONE.pack(seq, len(ride)), ride, tail))


def unpack_done(payload: bytes) -> Done:
    """What a DONE says."""
    seq, size = _DONE.unpack_from(payload)
    end = 12 + size
    return Done(seq, payload[12:end], payload[end:])


def pack_note(seq: int, kind: int, payload: bytes) -> bytes:
    """The payload of NOTE."""
    return _NOTE.pack(seq, kind) + payload


def unpack_note(payload: bytes) -> Note:
    """What a NOTE says."""
    seq, kind = _NOTE.unpack_from(payload)
    return Note(seq, kind, payload[9:])


def read_value(fd: int) -> bytes:
    """The value that came beside a DONE; closes the descriptor."""
    try:
        size = os.fstat(fd).st_size
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


class Channel:
    """One end of a socket, which never blocks: what cannot be written yet waits in memory.

    `eof` becomes True when the other side is gone; frames that came before are still handed out. A descriptor given
    to `send` belongs to the channel, one handed out by `receive` to the caller.
    """

    def __init__(self, sock: socket.socket, limit: int = (1 << 32) - 1) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[bytearray, list[int]]] = deque()
        self.eof = False
        self.dry = False  # whether the last receive took all that there was

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out) and not self.eof

    def queue(self, kind: int, payload: bytes = b"", fd: int | None = None) -> None:
        """Adds a frame to what `flush` will write."""
        if fd is not None:
            self._out.append((bytearray(), [fd]))
        elif not self._out:
            self._out.append((bytearray(), []))
        buffer = self._out[-1][0]
        buffer += HEAD.pack(len(payload), kind if fd is None else kind | WITH_FD)
        buffer += payload

    def send(self, kind: int, payload: bytes = b"", fd: int | None = None) -> None:
        """Queues a frame and writes what can be written now; never blocks."""
        self.queue(kind, payload, fd)
        self.flush()

    def flush(self) -> None:
        """Writes what can be written now."""
        while self._out and not self.eof:
            buffer, fds = self._out[0]
            try:
                with memoryview(buffer) as view, view[:_CHUNK] as part:
                    sent = socket.send_fds(self._sock, [part], fds) if fds else self._sock.send(part)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.eof = True
                return
            while fds:
                os.close(fds.pop())
            del buffer[:sent]
            if not buffer:
                self._out.popleft()

    def receive(self) -> Frames:
        """The frames that are there, as (kind, payload, descriptor that came with it). Raises FrameError."""
        taken, self.dry = 0, False
        while not self.eof and taken < _READ_AT_ONCE:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, 16)
            except (BlockingIOError, InterruptedError):
                self.dry = True
                break
            except OSError:
                self.eof = True
                break
            self._fds.extend(fds)
            if not data:
                self.eof = True
            self._in += data
            taken += len(data)
            if len(data) < _CHUNK // 4 and not fds:
                break
        self.dry = self.dry or self.eof
        return self._parse()

    def _parse(self) -> Frames:
        frames: Frames = []
        start, end = 0, len(self._in)
        with memoryview(self._in) as view:
            while end - start >= HEAD.size:
                size, kind = HEAD.unpack_from(view, start)
                if size > self._limit:
                    raise FrameError(f"a frame of {size:,} bytes is over the limit of {self._limit:,}")
                stop = start + HEAD.size + size
                if stop > end:
                    break
                fd = self._fds.popleft() if kind & WITH_FD and self._fds else None
                frames.append((kind & ~WITH_FD, bytes(view[start + HEAD.size : stop]), fd))
                start = stop
        del self._in[:start]
        return frames

    @property
    def unread(self) -> bytes:
        """What has arrived of a frame that is not complete."""
        return bytes(self._in)

    def feed(self, data: bytes) -> None:
        """Puts bytes before all that is still to come, as if they had just arrived."""
        self._in[:0] = data

    def close(self) -> None:
        """Closes the socket and every descriptor that nobody took."""
        self.eof = True
        for fd in (*self._fds, *(fd for _, fds in self._out for fd in fds)):
            os.close(fd)
        self._fds.clear()
        self._out.clear()
        self._sock.close()
