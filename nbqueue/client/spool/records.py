"""The format of a spool file: records with checksums, appended by one process and read by any.

A record is a head (record type, sizes, checksums), a table in msgpack, and data: sealed blobs, as stored in Redis. A
half-written record at the end is skipped; after a damaged head the reader searches for the next whole record.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec

from nbqueue.errors import BadSignature
from nbqueue.model import Cause, Tally, decode

MAGIC = b"\xf5nbq"
SUFFIX = ".spool"
HEAD = struct.Struct("<4sBIQII")  # magic, record type, size of the table, size of the data, checksum of each
CHECK = struct.Struct("<I")  # the checksum of the head
_CHUNK = 1 << 20
OPEN = 32  # files that are kept open for reading
MAX_CACHED_HEADERS = 10_000  # files whose headers are cached

R = TypeVar("R", bound=msgspec.Struct)


class RecordType(IntEnum):
    """What a record contains."""

    HEADERS = 1  # Headers
    ARGUMENTS = 2  # a Block of sealed arguments
    OUTCOMES = 3  # a Block of stored outcomes
    WITHDRAWALS = 4  # Withdrawals
    CHECKPOINT = 5  # a Checkpoint
    FORGOTTEN = 6  # a Block without data: single jobs that were removed
    FUNCTION = 7  # a Block of the sealed function and the sealed spec (may be empty); indexes: the time in us
    HASHES = 8  # a Block: argument hashes of a named batch, from an index on
    LOGS = 9  # a Block of sealed log tails
    METAS = 10  # a Block of sealed metas
    EARLIER_RUNS = 11  # a Block of earlier runs


class BatchHeader(msgspec.Struct, frozen=True, array_like=True):
    """Identity of a batch. Only `spec` is signed; the rest is for finding and showing the batch."""

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
    """The table of a HEADERS record: one batch, or many single jobs."""

    headers: list[BatchHeader]


class Block(msgspec.Struct, frozen=True, array_like=True):
    """The job and the size of each blob in the data. `names` are the batches of single jobs."""

    indexes: list[int]
    sizes: list[int]
    names: list[str] = []


class Withdrawals(msgspec.Struct, frozen=True, array_like=True):
    """Outcomes that a retry withdrew, named by checksum, so that the order of the files does not matter."""

    indexes: list[int]
    checks: list[int]
    names: list[str] = []


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """State of a batch when its log was read and copied up to `position`."""

    written_at: float  # seconds on this machine's clock
    position: int
    n: int
    open: bool
    truncated: bool
    over: bool
    expires_us: int | None
    canceled_ranges: list[tuple[int, int, Cause]]
    requeued: list[int]  # jobs of these ranges that were queued again
    epoch: str = ""
    tally: Tally = Tally()
    restored: int = 0  # Spec.restored: the log that the position refers to


class Record(NamedTuple):
    """A record as read: its table, and the offset and size of its data."""

    record_type: int
    table: bytes
    offset: int
    size: int
    check: int

    def read(self, record_type: type[R]) -> R:
        """The table. Raises BadSignature."""
        return decode(record_type, self.table, "A record of the spool")


# ---------------------------------------------------------------- offsets

_SIZE, _OFFSET, _FILE = 32, 48, 12


def pack_offset(file: int, offset: int, size: int, head: bytes) -> int:
    """A blob's file, offset and size, and its first 3 bytes, in one int: memory may hold 100,000 of them."""
    return (((int.from_bytes(head[:3], "big") << _FILE | file) << _OFFSET) | offset) << _SIZE | size


def head_of(found: int) -> bytes:
    """The first 3 bytes of the blob at a packed offset: its state and attempt."""
    return (found >> (_SIZE + _OFFSET + _FILE)).to_bytes(3, "big")


class SpoolOffset(NamedTuple):
    """Where a blob is: number of the file, offset and size in bytes."""

    file: int
    offset: int
    size: int


def unpack_offset(found: int) -> SpoolOffset:
    """The fields of a packed offset."""
    offset = found >> _SIZE & ((1 << _OFFSET) - 1)
    return SpoolOffset(found >> (_SIZE + _OFFSET) & ((1 << _FILE) - 1), offset, found & ((1 << _SIZE) - 1))


_files: OrderedDict[Path, int] = OrderedDict()  # descriptors
_reading = threading.Lock()


def read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file. Raises OSError, also if the file is too short."""
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


def after_fork() -> None:
    """Resets the lock in a forked child: a thread of the parent may have held it."""
    global _reading  # noqa: PLW0603 - the lock of `_files`
    _reading = threading.Lock()
    _files.clear()  # may be inconsistent; its descriptors stay open


def close_cached(path: Path) -> None:
    """Closes a file that `read` keeps open."""
    with _reading:
        file = _files.pop(path, None)
        if file is not None:
            os.close(file)


# ---------------------------------------------------------------- reading


class RecordReader:
    """The records of a file, in order. `damaged` is True if something before the end could not be read."""

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, False

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            end, start = os.fstat(file.fileno()).st_size, 0
            while start + HEAD.size + CHECK.size <= end:
                found = self._record(file, start, end)
                if isinstance(found, int):
                    start = found
                    continue
                if found is None:
                    return  # incomplete: the writer crashed
                yield found
                start = found.offset + found.size

    def _record(self, file: IO[bytes], start: int, end: int) -> Record | int | None:
        """A record; or the offset to search from; or None if the rest is incomplete."""
        file.seek(start)
        raw = file.read(HEAD.size + CHECK.size)
        magic, record_type, table_size, size, table_check, check = HEAD.unpack_from(raw)
        if magic != MAGIC or CHECK.unpack_from(raw, HEAD.size)[0] != zlib.crc32(raw[: HEAD.size]):
            self.damaged = True
            return _next(file, start + 1, end)
        offset = start + len(raw) + table_size
        if offset + size > end:
            return None
        table = file.read(table_size)
        if zlib.crc32(table) != table_check:
            self.damaged = True
            return int(offset + size)
        return Record(record_type, table, offset, size, check)

    def data(self, record: Record) -> bytes:
        """The data of a record; marks the file as damaged if the checksum does not match."""
        found = read(self.path, record.offset, record.size)
        if zlib.crc32(found) != record.check:
            self.damaged = True
        return found


def _next(file: IO[bytes], start: int, end: int) -> int:
    """Offset at which the next record may begin."""
    while start < end:
        file.seek(start)
        found = file.read(_CHUNK + len(MAGIC)).find(MAGIC)
        if found >= 0:
            return start + found
        start += _CHUNK
    return end


_headers: dict[
    Path, tuple[tuple[int, int], list[BatchHeader]]
] = {}  # file -> (its time and size when it was read, headers)


def headers_of(path: Path) -> list[BatchHeader]:
    """The headers at the beginning of a file; none if it cannot be read. Cached until the file changes."""
    try:
        facts = path.stat()
        stamp = facts.st_mtime_ns, facts.st_size
        known = _headers.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        record = next((found for found in RecordReader(path) if found.record_type == RecordType.HEADERS), None)
        found = [] if record is None else record.read(Headers).headers
    except (OSError, BadSignature):
        return []
    if len(_headers) >= MAX_CACHED_HEADERS:
        _headers.clear()
    _headers[path] = stamp, found
    return found
