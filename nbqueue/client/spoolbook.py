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

from nbqueue.client import spoolfile
from nbqueue.client.spoolfile import Back, Birth, Births, Block, Kind, Record, Scan, Standing
from nbqueue.errors import BadSignature

WHOLE = 8 << 20  # bytes of a record that are read at once
HELD = 64 << 20  # bytes of them that are held while a file is read
MOST = 1 << 32  # jobs that no batch has
SMALL = 4_096  # bytes of an outcome that is worth holding


class Found(NamedTuple):
    """An outcome: where it lies, its state and attempt, and itself where it is small."""

    offset: int
    size: int
    head: bytes
    blob: bytes | None


@dataclass
class Entry:
    """What one file says of one batch."""

    birth: Birth | None = None
    outcomes: dict[int, Found] = field(default_factory=dict)
    withdrawn: dict[int, set[int]] = field(default_factory=dict)  # index -> checksums
    arguments: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> where, how long
    standing: Standing | None = None


class Book:
    """One file, read. `entries` by batch. `damaged` says whether some of it could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.forgotten: set[str] = set()
        self._last = ""
        self._held = 0
        self._scan = Scan(path)
        turns = {
            Kind.BORN: self._born,
            Kind.ARGUMENTS: self._arguments,
            Kind.OUTCOMES: self._outcomes,
            Kind.BACK: self._back,
            Kind.STATE: self._state,
            Kind.FORGOTTEN: self._forgotten,
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

    def _entry(self, block: Block | Back, place: int) -> Entry:
        return self.entries.setdefault(block.names[place] if block.names else self._last, Entry())

    def _born(self, record: Record) -> None:
        for birth in record.read(Births).births:
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
            head = spoolfile.read(self.path, offset, min(size, 3)) if blob is None else blob[:3]
            small = blob if size <= SMALL and not block.names and self._held < HELD else None
            self._held += len(small or b"")
            entry, found = self._entry(block, place), Found(offset, size, head, small)
            entry.outcomes[index] = found
            if index in entry.withdrawn:  # copied again after that: it stands
                entry.withdrawn[index].discard(self.check(found))
            offset += size

    def _back(self, record: Record) -> None:
        back = record.read(Back)
        _agree(back.indexes, back.checks, back.names)
        for place, (index, check) in enumerate(zip(back.indexes, back.checks, strict=True)):
            entry = self._entry(back, place)
            entry.withdrawn.setdefault(index, set()).add(check)
            found = entry.outcomes.get(index)
            if found is not None and self.check(found) == check:
                del entry.outcomes[index]

    def _state(self, record: Record) -> None:
        self.entries.setdefault(self._last, Entry()).standing = record.read(Standing)

    def _forgotten(self, record: Record) -> None:
        for name in record.read(Block).names:
            self.forgotten.add(name)
            entry = self.entries.get(name.partition("~")[0])
            if entry is not None and entry.birth is not None and f"{entry.birth.batch}~{entry.birth.nonce}" == name:
                del self.entries[entry.birth.batch]

    def check(self, found: Found) -> int:
        """The checksum by which a withdrawal names an outcome."""
        blob = found.blob if found.blob is not None else spoolfile.read(self.path, found.offset, found.size)
        return zlib.crc32(blob)


def _block(record: Record) -> Block:
    """Whose blobs a record holds. Raises BadSignature for a table that does not fit its data."""
    block = record.read(Block)
    _agree(block.indexes, block.sizes, block.names)
    if min(block.sizes, default=0) < 0 or sum(block.sizes) > record.size:
        raise BadSignature(what="A record of the spool", why="its table names more than it holds")
    return block


def _agree(indexes: list[int], others: list[int], names: list[str]) -> None:
    fits = len(indexes) == len(others) and len(names) in {0, len(indexes)}
    if not fits or min(indexes, default=0) < 0 or max(indexes, default=0) >= MOST:
        raise BadSignature(what="A record of the spool", why="its table makes no sense")


class Tale:
    """All that the spool tells of one batch, by all of its files."""

    def __init__(self, birth: Birth, books: list[Book], size: int) -> None:
        self.birth, self.size = birth, size  # size: of its files in bytes, when they were read
        self._books = [(book, entry) for book in books if (entry := book.entries.get(birth.batch)) is not None]
        self.damaged = any(book.damaged for book in books)

    @property
    def standing(self) -> Standing | None:
        """How the batch stood last."""
        told = [entry.standing for _, entry in self._books if entry.standing is not None]
        return max(told, key=lambda each: each.told, default=None)

    @property
    def position(self) -> int:
        """Up to where its log has been read and copied."""
        return max((entry.standing.position for _, entry in self._books if entry.standing is not None), default=0)

    @property
    def n(self) -> int:
        """The number of jobs, as far as they are known."""
        standing = self.standing
        numbers = [self.birth.n, standing.n if standing is not None else 0]
        for _, entry in self._books:
            numbers += [max(each, default=-1) + 1 for each in (entry.outcomes, entry.arguments)]
        return max(numbers)

    def outcomes(self) -> Iterator[tuple[int, Path, Found]]:
        """(index, file, outcome) of all that stand, roughly in the order in which they ended."""
        best: dict[int, tuple[bytes, Book, Found]] = {}
        for book, entry in self._books:
            for index, found in entry.outcomes.items():
                known = best.get(index)
                attempt = found.head[1:3]
                if (known is None or attempt >= known[0]) and not self._withdrawn(book, index, found):
                    best[index] = attempt, book, found
        for index, (_, book, found) in best.items():
            yield index, book.path, found

    def _withdrawn(self, book: Book, index: int, found: Found) -> bool:
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
                    return spoolfile.read(book.path, *where)
                except OSError:
                    continue  # another session has dropped the file
        return None
