"""A file of the spool, read: what it says of its batch, or of each of many single jobs. Nothing is opened.

Several sessions may have followed one batch, each with a file of its own. What a retry withdrew is named by its
checksum, so that it makes no difference in which order the files are read.
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
HELD = 64 << 20  # bytes of them that are held while a file is read
MOST = 1 << 32  # jobs that no batch has
SMALL = 4_096  # bytes of an outcome that is worth holding
SAID = (RecordType.TAILS, RecordType.METAS, RecordType.PASTS)
MARK = 16  # bytes of the mark of a job


class Found(NamedTuple):
    """An outcome: where it lies, its state and attempt, and itself where it is small."""

    offset: int
    size: int
    head: bytes
    blob: bytes | None


@dataclass
class Entry:
    """What one file says of one batch."""

    birth: BatchHeader | None = None
    outcomes: dict[int, Found] = field(default_factory=dict)
    withdrawn: dict[int, set[int]] = field(default_factory=dict)  # index -> checksums
    arguments: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> where, how long
    standing: Checkpoint | None = None
    facts: list[tuple[int, int, int, int]] = field(default_factory=list)  # when, where, bytes of function and of spec
    marks: list[tuple[int, int, int]] = field(default_factory=list)  # from which index on, where, how long
    said: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)  # kind -> index -> where, how long


class SpoolFile:
    """One file, read. `entries` by batch. `damaged` says whether some of it could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.forgotten: set[str] = set()
        self._last = ""
        self._held = 0
        self._scan = RecordReader(path)
        turns = {
            RecordType.BORN: self._born,
            RecordType.ARGUMENTS: self._arguments,
            RecordType.OUTCOMES: self._outcomes,
            RecordType.BACK: self._back,
            RecordType.STATE: self._state,
            RecordType.FORGOTTEN: self._forgotten,
            RecordType.FUNCTION: self._function,
            RecordType.MARKS: self._marks,
            **dict.fromkeys(SAID, self._said),
        }
        for record in self._scan:
            turn = turns.get(record.kind)  # type: ignore[call-overload]
            try:
                if turn is not None:
                    turn(record)
            except (BadSignature, OSError):
                self._scan.damaged = True

    @property
    def damaged(self) -> bool:
        """Whether some of it could not be read."""
        return self._scan.damaged

    def _entry(self, block: Block | Withdrawals, place: int) -> Entry:
        return self.entries.setdefault(block.names[place] if block.names else self._last, Entry())

    def _born(self, record: Record) -> None:
        for birth in record.read(Headers).births:
            _sound(is_name(birth.batch) and 0 <= birth.n < MOST)
            known = self.entries.get(birth.batch)
            if known is None or known.birth is None or known.birth.nonce != birth.nonce:
                self.entries[birth.batch] = Entry(birth)
            self._last = birth.batch

    def _arguments(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        for place, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            self._entry(block, place).arguments[index] = offset, size
            offset += size

    def _outcomes(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        data = self._scan.data(record) if record.size <= WHOLE else None
        for place, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            start = offset - record.offset
            blob = None if data is None else data[start : start + size]
            head = records.read(self.path, offset, min(size, 3)) if blob is None else blob[:3]
            small = blob if size <= SMALL and not block.names and self._held < HELD else None
            self._held += len(small or b"")
            entry, found = self._entry(block, place), Found(offset, size, head, small)
            entry.outcomes[index] = found
            if index in entry.withdrawn:  # copied again after that: it stands
                entry.withdrawn[index].discard(self.check(found))
            offset += size

    def _back(self, record: Record) -> None:
        back = record.read(Withdrawals)
        _agree(back.indexes, back.checks, back.names)
        for place, (index, check) in enumerate(zip(back.indexes, back.checks, strict=True)):
            entry = self._entry(back, place)
            entry.withdrawn.setdefault(index, set()).add(check)
            found = entry.outcomes.get(index)
            if found is not None and self.check(found) == check:
                del entry.outcomes[index]

    def _state(self, record: Record) -> None:
        standing = record.read(Checkpoint)
        bounds = [*(end for low, high, _ in standing.cuts for end in (low, high)), *standing.back]
        _sound(all(0 <= number < MOST for number in (standing.position, standing.n, *bounds)))
        self.entries.setdefault(self._last, Entry()).standing = standing

    def _forgotten(self, record: Record) -> None:
        for name in record.read(Block).names:
            self.forgotten.add(name)
            entry = self.entries.get(name.partition("~")[0])
            if entry is not None and entry.birth is not None and f"{entry.birth.batch}~{entry.birth.nonce}" == name:
                del self.entries[entry.birth.batch]

    def _function(self, record: Record) -> None:
        block = record.read(Block)
        _sound(len(block.indexes) == len(block.sizes) == 2 and len(block.names) in {0, 2})
        _sound(min(block.sizes) >= 0 and sum(block.sizes) <= record.size)
        self._entry(block, 0).facts.append((block.indexes[0], record.offset, block.sizes[0], block.sizes[1]))

    def _marks(self, record: Record) -> None:
        block = record.read(Block)
        _sound(len(block.indexes) == 1 and len(block.names) < 2 and not record.size % MARK)
        _sound(0 <= block.indexes[0] <= MOST - record.size // MARK)
        self._entry(block, 0).marks.append((block.indexes[0], record.offset, record.size))

    def _said(self, record: Record) -> None:
        block, offset = _block(record), record.offset
        for place, (index, size) in enumerate(zip(block.indexes, block.sizes, strict=True)):
            self._entry(block, place).said.setdefault(record.kind, {})[index] = offset, size
            offset += size

    def check(self, found: Found) -> int:
        """The checksum by which a withdrawal names an outcome."""
        blob = found.blob if found.blob is not None else records.read(self.path, found.offset, found.size)
        return zlib.crc32(blob)


def _block(record: Record) -> Block:
    """Whose blobs a record holds. Raises BadSignature for a table that does not fit its data."""
    block = record.read(Block)
    _agree(block.indexes, block.sizes, block.names)
    _sound(min(block.sizes, default=0) >= 0 and sum(block.sizes) <= record.size)
    return block


def _agree(indexes: list[int], others: list[int], names: list[str]) -> None:
    _sound(len(indexes) == len(others) and len(names) in {0, len(indexes)})
    _sound(min(indexes, default=0) >= 0 and max(indexes, default=0) < MOST)


def _sound(fits: bool) -> None:
    """Raises BadSignature unless what is read `fits`: anyone may have written it, and no checksum says more."""
    if not fits:
        raise BadSignature(what="A record of the spool", why="its table makes no sense")


class SpooledBatch:
    """All that the spool tells of one batch, by all of its files."""

    def __init__(self, birth: BatchHeader, books: list[SpoolFile], size: int) -> None:
        self.birth, self.size = birth, size  # size: of its files in bytes, when they were read
        self._books = [(book, entry) for book in books if (entry := book.entries.get(birth.batch)) is not None]
        self.damaged = any(book.damaged for book in books)

    @property
    def standing(self) -> Checkpoint | None:
        """How the batch stood last."""
        return max(self._standings(), key=lambda each: each.told, default=None)

    def _standings(self) -> list[Checkpoint]:
        """What was noted of its latest log: it begins anew when the batch is brought back to a server."""
        told = [entry.standing for _, entry in self._books if entry.standing is not None]
        latest = max((each.restored for each in told), default=0)
        return [each for each in told if each.restored == latest]

    @property
    def position(self) -> int:
        """Up to where its log has been read and copied."""
        return max((each.position for each in self._standings()), default=0)

    @property
    def n(self) -> int:
        """The number of jobs, as far as they are known."""
        standing = self.standing
        numbers = [self.birth.n, standing.n if standing is not None else 0]
        for _, entry in self._books:
            numbers += [max(each, default=-1) + 1 for each in (entry.outcomes, entry.arguments)]
        return max(numbers)

    def is_cut(self, index: int) -> bool:
        """Whether a job was canceled with a range of others, and has no record of its own."""
        told = self.standing
        if told is None or index in told.back:
            return False
        return any(low <= index < high for low, high, _ in told.cuts)

    def outcomes(self) -> Iterator[tuple[int, Path, Found]]:
        """(index, file, outcome) of all that stand, roughly in the order in which they ended."""
        best: dict[int, tuple[bytes, SpoolFile, Found]] = {}
        for book, entry in self._books:
            for index, found in entry.outcomes.items():
                known = best.get(index)
                attempt = found.head[1:3]
                if (known is None or attempt >= known[0]) and not self._withdrawn(book, index, found):
                    best[index] = attempt, book, found
        for index, (_, book, found) in best.items():
            yield index, book.path, found

    def _withdrawn(self, book: SpoolFile, index: int, found: Found) -> bool:
        checks = [
            entry.withdrawn[index] for other, entry in self._books if other is not book and index in entry.withdrawn
        ]
        return any(book.check(found) in each for each in checks)

    def keep_arguments(self) -> None:
        """Lets go of all but the places of the arguments."""
        for _, entry in self._books:
            entry.outcomes.clear()

    def argued(self) -> set[int]:
        """The jobs whose arguments are there."""
        return {index for _, entry in self._books for index in entry.arguments}

    def arguments(self, index: int) -> bytes | None:
        """The sealed arguments of a job; None where they are not there, or cannot be read."""
        for book, entry in self._books:
            where = entry.arguments.get(index)
            if where is not None:
                try:
                    return records.read(book.path, *where)
                except OSError:
                    continue  # another session has dropped the file
        return None

    # ------------------------------------------------------------ what else was copied

    def function(self) -> bytes | None:
        """The sealed function, the latest if there were several; None where it is not there, or cannot be read."""
        return self._fact(function=True)

    def spec(self) -> bytes:
        """The sealed description, the latest if there were several."""
        return self._fact(function=False) or self.birth.spec

    def _fact(self, *, function: bool) -> bytes | None:
        told = [(fact, book) for book, entry in self._books for fact in entry.facts]
        for (_, offset, size, more), book in sorted(told, key=lambda each: each[0][0], reverse=True):
            start, length = (offset, size) if function else (offset + size, more)
            if length and (found := self._read(book, start, length)) is not None:
                return found
        return None

    def marks(self) -> bytes:
        """The marks of its jobs, one after the other; zeros for those that are not there."""
        found = bytearray(MARK * self.n)
        for book, entry in self._books:
            for index, offset, size in entry.marks:
                blob = self._read(book, offset, size) or b""
                found[MARK * index : MARK * index + len(blob)] = blob
        return bytes(found)

    def said(self, kind: RecordType, index: int) -> bytes | None:
        """What was copied of one of SAID, the latest; None where that is nothing."""
        for book, entry in reversed(self._books):
            if (where := entry.said.get(kind, {}).get(index)) is not None:
                return self._read(book, *where)
        return None

    @staticmethod
    def _read(book: SpoolFile, offset: int, size: int) -> bytes | None:
        try:
            return records.read(book.path, offset, size)
        except OSError:
            return None  # another session has dropped the file
