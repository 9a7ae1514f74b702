"""The files that a session writes: which are open, and what each begins with. Raises OSError where the disk fails."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from nbqueue.client.spool import directory
from nbqueue.client.spool.records import Appender, BatchHeader, Block, Headers, RecordType

OPEN = 32  # files that are kept open for writing


class SpoolWriter:
    """Writes records: one file a batch, and one for all single jobs. `mark` tells this session's files from others'."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.since = 0  # bytes written since the folder's size was looked at
        self._books: dict[str, Appender] = {}  # batch -> its file
        self._open: OrderedDict[Appender, None] = OrderedDict()
        self._born: set[tuple[str, str]] = set()  # single jobs of which the file says what they are

    @property
    def being_written(self) -> set[Path]:
        """The files that are open."""
        return {book.path for book in list(self._open)}

    def book(self, birth: BatchHeader) -> Appender:
        """The file of a batch, begun with what the batch is."""
        book = self._books.get(birth.batch)
        if book is None:
            book = Appender(directory.path(self.folder, birth.batch, birth.nonce, self.mark))
            book.append(RecordType.BORN, Headers([birth]))
            self._books[birth.batch] = book
        return self._used(book)

    def _singles(self) -> Appender:
        book = self._books.get("")
        if book is None:
            book = self._books[""] = Appender(directory.path(self.folder, "", "", self.mark))
        return self._used(book)

    def _used(self, book: Appender) -> Appender:
        self._open[book] = None
        self._open.move_to_end(book)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[0].close()
        return book

    @property
    def has_singles(self) -> bool:
        """Whether anything was written of single jobs."""
        return "" in self._books

    # ------------------------------------------------------------ writing

    def blobs(
        self, birth: BatchHeader, kind: RecordType, indexes: Sequence[int], blobs: Sequence[bytes]
    ) -> tuple[Path, list[int]]:
        """Writes blobs of a batch, or of a single job; answers the file and where in it each lies."""
        if birth.single:
            return self.singles(kind, [birth] * len(blobs), blobs, indexes)
        return self._blobs(self.book(birth), kind, Block(list(indexes), list(map(len, blobs))), blobs)

    def singles(
        self,
        kind: RecordType,
        births: Sequence[BatchHeader],
        blobs: Sequence[bytes],
        indexes: Sequence[int] | None = None,
    ) -> tuple[Path, list[int]]:
        """Writes a blob each of single jobs; answers the file and where in it each lies."""
        try:
            return self._write_singles(kind, births, blobs, indexes)
        except FileNotFoundError:  # it was removed as old, and the session goes on
            self._books.pop("").close()
            self._born.clear()
            return self._write_singles(kind, births, blobs, indexes)

    def _write_singles(
        self, kind: RecordType, births: Sequence[BatchHeader], blobs: Sequence[bytes], indexes: Sequence[int] | None
    ) -> tuple[Path, list[int]]:
        book = self._singles()
        born = {(birth.batch, birth.nonce): birth for birth in births}
        if fresh := [birth for key, birth in born.items() if key not in self._born]:
            book.append(RecordType.BORN, Headers(fresh))
            self._born |= born.keys()
        names = [birth.batch for birth in births]
        return self._blobs(book, kind, Block(list(indexes or [0] * len(blobs)), list(map(len, blobs)), names), blobs)

    def _blobs(self, book: Appender, kind: RecordType, block: Block, blobs: Sequence[bytes]) -> tuple[Path, list[int]]:
        before = book.size
        start = book.append(kind, block, blobs)
        self.since += book.size - before
        return book.path, list(accumulate(block.sizes[:-1], initial=start))

    def note(self, birth: BatchHeader, kind: RecordType, table: msgspec.Struct) -> None:
        """Writes a record without data."""
        (self._singles() if birth.single else self.book(birth)).append(kind, table)

    # ------------------------------------------------------------ the end of a file

    def rest(self, batch: str) -> None:
        """Closes a batch's file; the next record opens it again."""
        if (book := self._books.get(batch)) is not None:
            book.close()
            self._open.pop(book, None)

    def drop(self, birth: BatchHeader) -> None:
        """Closes a batch's file for good: it is to be removed. Of a single job, notes that it is gone."""
        if birth.single:
            self._born.discard((birth.batch, birth.nonce))
            if directory.single_files(self.folder):
                self.note(birth, RecordType.FORGOTTEN, Block([0], [0], [f"{birth.batch}~{birth.nonce}"]))
            return
        self.rest(birth.batch)
        self._books.pop(birth.batch, None)
        directory.remove(directory.copies_of(self.folder, birth))

    def close(self) -> None:
        """Closes all files."""
        for book in self._books.values():
            book.close()
        self._open.clear()
