"""Reading the spool's files: one file (`SpoolFile`), and a batch merged from all its files (`SpooledBatch`).

Several sessions may have copied one batch, each to a file of its own. Withdrawn outcomes are named by checksum, so
that the order of the files does not matter. Nothing is unsealed here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nbqueue.checks import is_name
from nbqueue.client.spool import records
from nbqueue.client.spool.records import (
    BatchHeader,
    Block,
    Checkpoint,
    Headers,
    Record,
    RecordReader,
    RecordType,
    Withdrawals,
)
from nbqueue.errors import BadSignature

WHOLE = 8 << 20  # bytes of a record that are read at once
HELD = 64 << 20  # bytes of small outcomes that are kept while a file is read
MOST = 1 << 32  # upper limit of jobs in a batch
SMALL = 4_096  # bytes of an outcome that is kept
EXTRAS = (RecordType.LOGS, RecordType.METAS, RecordType.EARLIER_RUNS)
HASH_SIZE = 16  # bytes of the argument hash of a job


class Found(NamedTuple):
    """An outcome: its offset and size, its state and attempt (`head`), and its bytes if it is small."""

    offset: int
    size: int
    head: bytes
    blob: bytes | None


@dataclass
class Entry:
    """What one file holds of one batch."""

    header: BatchHeader | None = None
    outcomes: dict[int, Found] = field(default_factory=dict)
    withdrawn: dict[int, set[int]] = field(default_factory=dict)  # index -> checksums
    arguments: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> (offset, size)
    checkpoint: Checkpoint | None = None
    functions: list[tuple[int, int, int, int]] = field(
        default_factory=list
    )  # (time, offset, size of function, size of spec)
    hashes: list[tuple[int, int, int]] = field(default_factory=list)  # (first index, offset, size)
    extras: dict[int, dict[int, tuple[int, int]]] = field(
        default_factory=dict
    )  # record type -> index -> (offset, size)


class SpoolFile:
    """The content of one file; `entries` is by batch id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.forgotten: set[str] = set()
        self._last = ""
        self._held = 0
        self._scan = RecordReader(path)
        turns = {
            RecordType.HEADERS: self._header,
            RecordType.ARGUMENTS: self._arguments,
            RecordType.OUTCOMES: self._outcomes,
            RecordType.WITHDRAWALS: self._withdrawals,
            RecordType.CHECKPOINT: self._checkpoint,
            RecordType.FORGOTTEN: self._forgotten,
            RecordType.FUNCTION: self._function,
            RecordType.HASHES: self._hashes,
            **dict.fromkeys(EXTRAS, self._extras),
        }
        for record in self._scan:
            turn = turns.get(record.record_type)  # type: ignore[call-overload]
            try:
                if turn is not None:
                    turn(record)
            except (BadSignature, OSError):
                self._scan.damaged = True

    @property
    def damaged(self) -> bool:
        """Whether a part of the file could not be read."""
        return self._scan.damaged

    def _entry(self, block: Block | Withdrawals, position: int) -> Entry:
        return self.entries.setdefault(block.names[position] if block.names else self._last, Entry())

    def _header(self, record: Record) -> None:
        for header in record.read(Headers).headers:
            _sound(is_name(header.batch) and 0 <= header.n < MOST)
            known = self.entries.get(header.batch)
            if known is None or known.header is None or known.header.nonce != header.nonce:
                self.entries[header.batch] = Entry(header)
            self._last = header.batch

    def _arguments(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        for position, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            self._entry(block, position).arguments[index] = offset, size
            offset += size

    def _outcomes(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        data = self._scan.data(record) if record.size <= WHOLE else None
        for position, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            start = offset - record.offset
            blob = None if data is None else data[start : start + size]
            head = records.read(self.path, offset, min(size, 3)) if blob is None else blob[:3]
            small = blob if size <= SMALL and not block.names and self._held < HELD else None
            self._held += len(small or b"")
            entry, found = self._entry(block, position), Found(offset, size, head, small)
            entry.outcomes[index] = found
            if index in entry.withdrawn:  # copied again after the withdrawal: it is valid
                entry.withdrawn[index].discard(self.check(found))
            offset += size

    def _withdrawals(self, record: Record) -> None:
        withdrawals = record.read(Withdrawals)
        _agree(withdrawals.indexes, withdrawals.checks, withdrawals.names)
        for position, (index, check) in enumerate(zip(withdrawals.indexes, withdrawals.checks, strict=True)):
            entry = self._entry(withdrawals, position)
            entry.withdrawn.setdefault(index, set()).add(check)
            found = entry.outcomes.get(index)
            if found is not None and self.check(found) == check:
                del entry.outcomes[index]

    def _checkpoint(self, record: Record) -> None:
        checkpoint = record.read(Checkpoint)
        bounds = [*(end for low, high, _ in checkpoint.canceled_ranges for end in (low, high)), *checkpoint.requeued]
        _sound(all(0 <= number < MOST for number in (checkpoint.position, checkpoint.n, *bounds)))
        self.entries.setdefault(self._last, Entry()).checkpoint = checkpoint

    def _forgotten(self, record: Record) -> None:
        for name in record.read(Block).names:
            self.forgotten.add(name)
            entry = self.entries.get(name.partition("~")[0])
            if entry is not None and entry.header is not None and f"{entry.header.batch}~{entry.header.nonce}" == name:
                del self.entries[entry.header.batch]

    def _function(self, record: Record) -> None:
        block = record.read(Block)
        _sound(len(block.indexes) == len(block.sizes) == 2 and len(block.names) in {0, 2})
        _sound(min(block.sizes) >= 0 and sum(block.sizes) <= record.size)
        self._entry(block, 0).functions.append((block.indexes[0], record.offset, block.sizes[0], block.sizes[1]))

    def _hashes(self, record: Record) -> None:
        block = record.read(Block)
        _sound(len(block.indexes) == 1 and len(block.names) < 2 and not record.size % HASH_SIZE)
        _sound(0 <= block.indexes[0] <= MOST - record.size // HASH_SIZE)
        self._entry(block, 0).hashes.append((block.indexes[0], record.offset, record.size))

    def _extras(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        for position, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            self._entry(block, position).extras.setdefault(record.record_type, {})[index] = offset, size
            offset += size

    def check(self, found: Found) -> int:
        """The checksum by which a withdrawal names an outcome."""
        blob = found.blob if found.blob is not None else records.read(self.path, found.offset, found.size)
        return zlib.crc32(blob)


def _block(record: Record) -> Block:
    """The table of a record with blobs. Raises BadSignature if it does not fit the data."""
    block = record.read(Block)
    _agree(block.indexes, block.sizes, block.names)
    _sound(min(block.sizes, default=0) >= 0 and sum(block.sizes) <= record.size)
    return block


def _agree(indexes: list[int], others: list[int], names: list[str]) -> None:
    _sound(len(indexes) == len(others) and len(names) in {0, len(indexes)})
    _sound(min(indexes, default=0) >= 0 and max(indexes, default=0) < MOST)


def _sound(fits: bool) -> None:
    """Raises BadSignature unless `fits`: a checksum does not show who wrote a record."""
    if not fits:
        raise BadSignature(what="A record of the spool", why="its table makes no sense")


class SpooledBatch:
    """A batch merged from all its spool files."""

    def __init__(self, header: BatchHeader, files: list[SpoolFile], size: int) -> None:
        self.header, self.size = header, size  # size: bytes of its files when they were read
        self._files = [(file, entry) for file in files if (entry := file.entries.get(header.batch)) is not None]
        self.damaged = any(file.damaged for file in files)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint of the batch."""
        return max(self._checkpoints(), key=lambda each: each.written_at, default=None)

    def _checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of the latest log: a batch that is restored to a server gets a new log."""
        checkpoints = [entry.checkpoint for _, entry in self._files if entry.checkpoint is not None]
        latest = max((each.restored for each in checkpoints), default=0)
        return [each for each in checkpoints if each.restored == latest]

    @property
    def position(self) -> int:
        """The position up to which the log was read and copied."""
        return max((each.position for each in self._checkpoints()), default=0)

    @property
    def n(self) -> int:
        """The number of known jobs."""
        checkpoint = self.checkpoint
        numbers = [self.header.n, checkpoint.n if checkpoint is not None else 0]
        for _, entry in self._files:
            numbers += [max(each, default=-1) + 1 for each in (entry.outcomes, entry.arguments)]
        return max(numbers)

    def is_canceled(self, index: int) -> bool:
        """Whether a job was canceled as part of a range, and so has no record of its own."""
        last = self.checkpoint
        if last is None or index in last.requeued:
            return False
        return any(low <= index < high for low, high, _ in last.canceled_ranges)

    def outcomes(self) -> Iterator[tuple[int, Path, Found]]:
        """(index, file, outcome) of all valid outcomes, roughly in the order in which the jobs ended."""
        best: dict[int, tuple[bytes, SpoolFile, Found]] = {}
        for file, entry in self._files:
            for index, found in entry.outcomes.items():
                known = best.get(index)
                attempt = found.head[1:3]
                if (known is None or attempt >= known[0]) and not self._withdrawn(file, index, found):
                    best[index] = attempt, file, found
        for index, (_, file, found) in best.items():
            yield index, file.path, found

    def _withdrawn(self, file: SpoolFile, index: int, found: Found) -> bool:
        checks = [
            entry.withdrawn[index] for other, entry in self._files if other is not file and index in entry.withdrawn
        ]
        return any(file.check(found) in each for each in checks)

    def drop_outcomes(self) -> None:
        """Frees the outcomes; the offsets of the arguments stay."""
        for _, entry in self._files:
            entry.outcomes.clear()

    def indexes_with_arguments(self) -> set[int]:
        """The jobs whose arguments were copied."""
        return {index for _, entry in self._files for index in entry.arguments}

    def arguments(self, index: int) -> bytes | None:
        """The sealed arguments of a job; None if they were not copied, or cannot be read."""
        for file, entry in self._files:
            where = entry.arguments.get(index)
            if where is not None:
                try:
                    return records.read(file.path, *where)
                except OSError:
                    continue  # file removed by another session
        return None

    # ------------------------------------------------------------ what else was copied

    def function(self) -> bytes | None:
        """The latest sealed function; None if it was not copied, or cannot be read."""
        return self._fact(function=True)

    def spec(self) -> bytes:
        """The latest sealed spec."""
        return self._fact(function=False) or self.header.spec

    def _fact(self, *, function: bool) -> bytes | None:
        copies = [(fact, file) for file, entry in self._files for fact in entry.functions]
        for (_, offset, size, more), file in sorted(copies, key=lambda each: each[0][0], reverse=True):
            start, length = (offset, size) if function else (offset + size, more)
            if length and (found := self._read(file, start, length)) is not None:
                return found
        return None

    def hashes(self) -> bytes:
        """The argument hashes of all jobs, concatenated; zeros where one is missing."""
        found = bytearray(HASH_SIZE * self.n)
        for file, entry in self._files:
            for index, offset, size in entry.hashes:
                blob = self._read(file, offset, size) or b""
                found[HASH_SIZE * index : HASH_SIZE * index + len(blob)] = blob
        return bytes(found)

    def extra_record(self, record_type: RecordType, index: int) -> bytes | None:
        """The latest copy of one of EXTRAS of a job; None if there is none."""
        for file, entry in reversed(self._files):
            if (where := entry.extras.get(record_type, {}).get(index)) is not None:
                return self._read(file, *where)
        return None

    @staticmethod
    def _read(file: SpoolFile, offset: int, size: int) -> bytes | None:
        try:
            return records.read(file.path, offset, size)
        except OSError:
            return None  # file removed by another session
