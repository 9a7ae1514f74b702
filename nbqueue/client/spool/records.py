"""One file of a spool: records one after the other, each with checksums, appended by one process and read by any.

A record is a head (kind, sizes, checksums), a table in msgpack, and data: sealed blobs, as they lay in the store. What
a crash left half written at the end is passed over; after a damaged head the next whole record is looked for.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec

from nbqueue.errors import BadSignature
from nbqueue.model import Cause, Tally, decode, encode

MAGIC = b"\xf5nbq"
SUFFIX = ".spool"
_HEAD = struct.Struct("<4sBIQII")  # magic, kind, size of the table, size of the data, checksum of each
_CHECK = struct.Struct("<I")  # the checksum of the head
_PART = 1 << 20
OPEN = 32  # files that are kept open for reading
MOST_BIRTHS = 10_000  # files of which is held what they say first

R = TypeVar("R", bound=msgspec.Struct)


class RecordType(IntEnum):
    """What a record holds."""

    BORN = 1  # Headers
    ARGUMENTS = 2  # a Block of sealed arguments
    OUTCOMES = 3  # a Block of stored outcomes
    BACK = 4  # a Back
    STATE = 5  # a Checkpoint
    FORGOTTEN = 6  # a Block without data: single jobs that were removed
    FUNCTION = 7  # a Block of the sealed function and the sealed spec (or nothing); indexes: when, in us
    MARKS = 8  # a Block: the marks of a named batch, by which arguments are known again, from an index on
    TAILS = 9  # a Block of sealed log tails
    METAS = 10  # a Block of sealed metas
    PASTS = 11  # a Block of earlier runs


class BatchHeader(msgspec.Struct, frozen=True, array_like=True):
    """What a batch is. Only `spec` is signed; the rest is for finding and showing it."""

    batch: str
    nonce: str
    spec: bytes
    queue: str
    name: str | None
    label: str
    server: str
    namespace: str
    epoch: str
    created_us: int
    n: int
    single: bool


class Headers(msgspec.Struct, frozen=True, array_like=True):
    """The table of a BORN record: one batch, or many single jobs."""

    births: list[BatchHeader]


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Whose blobs the data holds, and how long each is. `names` are batches, where these are single jobs."""

    indexes: list[int]
    sizes: list[int]
    names: list[str] = []


class Withdrawals(msgspec.Struct, frozen=True, array_like=True):
    """Outcomes that a retry withdrew, each named by its checksum, so that no order of files matters."""

    indexes: list[int]
    checks: list[int]
    names: list[str] = []


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """How a batch stood when its log had been read and copied up to `position`."""

    told: float  # when, in seconds on this machine's clock
    position: int
    n: int
    open: bool
    cut: bool
    over: bool
    expires_us: int | None
    cuts: list[tuple[int, int, Cause]]
    back: list[int]  # those of the cuts that run again
    epoch: str = ""
    tally: Tally = Tally()
    restored: int = 0  # Spec.restored: of which of the batch's logs the position is


class Record(NamedTuple):
    """A record as it was found: its table, and where its data lies."""

    kind: int
    table: bytes
    offset: int
    size: int
    check: int

    def read(self, kind: type[R]) -> R:
        """The table. Raises BadSignature."""
        return decode(kind, self.table, "A record of the spool")


# ---------------------------------------------------------------- places

_SIZE, _OFFSET, _FILE = 32, 48, 12


def place(file: int, offset: int, size: int, head: bytes) -> int:
    """Where a blob lies, and its first 3 bytes, in one number: a hundred thousand of them are held."""
    return (((int.from_bytes(head[:3], "big") << _FILE | file) << _OFFSET) | offset) << _SIZE | size


def head_of(found: int) -> bytes:
    """The first 3 bytes of the blob at a place: its state and attempt."""
    return (found >> (_SIZE + _OFFSET + _FILE)).to_bytes(3, "big")


class Span(NamedTuple):
    """A place taken apart."""

    file: int
    offset: int
    size: int


def span(found: int) -> Span:
    """A place, taken apart."""
    offset = found >> _SIZE & ((1 << _OFFSET) - 1)
    return Span(found >> (_SIZE + _OFFSET) & ((1 << _FILE) - 1), offset, found & ((1 << _SIZE) - 1))


_files: OrderedDict[Path, int] = OrderedDict()  # descriptors
_reading = threading.Lock()


def read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file. Raises OSError, also where the file is shorter."""
    with _reading:
        file = _files.pop(path, None)
        if file is None:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        _files[path] = file
        if len(_files) > OPEN:
            os.close(_files.popitem(last=False)[1])
        data = os.pread(file, size, offset)
    if len(data) != size:
        raise OSError(f"{path} has no {size:,} bytes at {offset:,}")
    return data


def orphaned() -> None:
    """In a forked child: another thread of the parent's may have been reading, and nobody here ends that."""
    global _reading  # noqa: PLW0603 - the lock of the table beside it
    _reading = threading.Lock()
    _files.clear()  # it may be half changed; what is open in it stays open


def let_go(path: Path) -> None:
    """Closes a file that `read` has kept open."""
    with _reading:
        file = _files.pop(path, None)
        if file is not None:
            os.close(file)


# ---------------------------------------------------------------- reading


class RecordReader:
    """The records of a file, in order. `damaged` says whether something before the end could not be read."""

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, False

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            end, start = os.fstat(file.fileno()).st_size, 0
            while start + _HEAD.size + _CHECK.size <= end:
                found = self._record(file, start, end)
                if isinstance(found, int):
                    start = found
                    continue
                if found is None:
                    return  # cut short: whoever wrote it did not come to its end
                yield found
                start = found.offset + found.size

    def _record(self, file: IO[bytes], start: int, end: int) -> Record | int | None:
        """A record; or where to look next; or None where the rest is cut short."""
        file.seek(start)
        raw = file.read(_HEAD.size + _CHECK.size)
        magic, kind, table_size, size, table_check, check = _HEAD.unpack_from(raw)
        if magic != MAGIC or _CHECK.unpack_from(raw, _HEAD.size)[0] != zlib.crc32(raw[: _HEAD.size]):
            self.damaged = True
            return _next(file, start + 1, end)
        offset = start + len(raw) + table_size
        if offset + size > end:
            return None
        table = file.read(table_size)
        if zlib.crc32(table) != table_check:
            self.damaged = True
            return int(offset + size)
        return Record(kind, table, offset, size, check)

    def data(self, record: Record) -> bytes:
        """The data of a record; marks the file as damaged where it is not what was written."""
        found = read(self.path, record.offset, record.size)
        if zlib.crc32(found) != record.check:
            self.damaged = True
        return found


def _next(file: IO[bytes], start: int, end: int) -> int:
    """Where the next record may begin."""
    while start < end:
        file.seek(start)
        place = file.read(_PART + len(MAGIC)).find(MAGIC)
        if place >= 0:
            return start + place
        start += _PART
    return end


_births: dict[
    Path, tuple[tuple[int, int], list[BatchHeader]]
] = {}  # file -> (its time and size when it was read, births)


def births(path: Path) -> list[BatchHeader]:
    """What a file says first of its batch; nothing of one that cannot be read. Read again only when it has changed."""
    try:
        facts = path.stat()
        stamp = facts.st_mtime_ns, facts.st_size
        known = _births.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        record = next((found for found in RecordReader(path) if found.kind == RecordType.BORN), None)
        found = [] if record is None else record.read(Headers).births
    except (OSError, BadSignature):
        return []
    if len(_births) >= MOST_BIRTHS:
        _births.clear()
    _births[path] = stamp, found
    return found


# ---------------------------------------------------------------- writing


class Appender:
    """The end of a file of this process's own. A write that fails is taken back."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._fd = -1

    def append(self, kind: RecordType, table: msgspec.Struct, parts: Sequence[bytes] = ()) -> int:
        """Writes one record; answers where its data lies. Raises OSError, and the file is then as it was."""
        packed, data = encode(table), b"".join(parts)
        head = _HEAD.pack(MAGIC, kind, len(packed), len(data), zlib.crc32(packed), zlib.crc32(data))
        text = memoryview(b"".join((head, _CHECK.pack(zlib.crc32(head)), packed, data)))
        try:
            self._open()
            written = 0
            while written < len(text):
                written += os.write(self._fd, text[written:])
        except OSError:
            self.cut()
            raise
        self.size += len(text)
        return self.size - len(data)

    def _open(self) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink:
            return
        self.close()  # if it is open, it was removed, and what is written would be nowhere
        # Made once: one that someone has removed since is not begun anew in its middle.
        made = os.O_CREAT if not self.size else 0
        self._fd = os.open(self.path, os.O_WRONLY | made | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._fd).st_size != self.size:
            os.ftruncate(self._fd, self.size)  # a write that failed, and could not be taken back then

    def cut(self) -> None:
        """Takes back what a failed write left, and closes the file."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # readers pass over it then, and the next append tries again
                os.ftruncate(self._fd, self.size)
            self.close()

    def close(self) -> None:
        """Closes the file; the next append opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
