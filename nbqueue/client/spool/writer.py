"""Writing the spool's files. Raises OSError if the disk fails."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from nbqueue.client.spool import directory
from nbqueue.client.spool.records import CHECK, HEAD, MAGIC, BatchHeader, Block, Headers, RecordType
from nbqueue.model import encode

OPEN = 32  # files that are kept open for writing


class Appender:
    """Appends records to one file of this process. A failed write is undone."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._fd = -1

    def append(self, record_type: RecordType, table: msgspec.Struct, parts: Sequence[bytes] = ()) -> int:
        """Writes one record; returns the offset of its data. Raises OSError, and leaves the file as it was."""
        packed, data = encode(table), b"".join(parts)
        head = HEAD.pack(MAGIC, record_type, len(packed), len(data), zlib.crc32(packed), zlib.crc32(data))
        text = memoryview(b"".join((head, CHECK.pack(zlib.crc32(head)), packed, data)))
        try:
            self._open()
            written = 0
            while written < len(text):
                written += os.write(self._fd, text[written:])
        except OSError:
            self.undo()
            raise
        self.size += len(text)
        return self.size - len(data)

    def _open(self) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink:
            return
        self.close()  # an open file was removed: writes to it would be lost
        # Created once: a file that was removed since is not started again in the middle.
        made = os.O_CREAT if not self.size else 0
        self._fd = os.open(self.path, os.O_WRONLY | made | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._fd).st_size != self.size:
            os.ftruncate(self._fd, self.size)  # a failed write that could not be undone then

    def undo(self) -> None:
        """Truncates the file to its end before a failed write, and closes it."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # readers skip the half record, and the next append tries again
                os.ftruncate(self._fd, self.size)
            self.close()

    def close(self) -> None:
        """Closes the file; the next append reopens it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class SpoolWriter:
    """Writes records: one file per batch, and one for all single jobs. `session` is part of the file names."""

    def __init__(self, folder: Path, session: str) -> None:
        self.folder, self.session = folder, session
        self.since = 0  # bytes written since the folder's size was checked
        self._files: dict[str, Appender] = {}  # batch -> its file
        self._open: OrderedDict[Appender, None] = OrderedDict()
        self._born: set[tuple[str, str]] = set()  # single jobs whose headers are in the file

    @property
    def open_paths(self) -> set[Path]:
        """The open files."""
        return {file.path for file in list(self._open)}

    def _file(self, header: BatchHeader) -> Appender:
        """The file of a batch, which begins with the batch's header."""
        file = self._files.get(header.batch)
        if file is None:
            file = Appender(directory.path(self.folder, header.batch, header.nonce, self.session))
            file.append(RecordType.HEADERS, Headers([header]))
            self._files[header.batch] = file
        return self._used(file)

    def _singles(self) -> Appender:
        file = self._files.get("")
        if file is None:
            file = self._files[""] = Appender(directory.path(self.folder, "", "", self.session))
        return self._used(file)

    def _used(self, file: Appender) -> Appender:
        self._open[file] = None
        self._open.move_to_end(file)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[0].close()
        return file

    @property
    def has_singles(self) -> bool:
        """Whether single jobs were written."""
        return "" in self._files

    # ------------------------------------------------------------ writing

    def blobs(
        self, header: BatchHeader, record_type: RecordType, indexes: Sequence[int], blobs: Sequence[bytes]
    ) -> tuple[Path, list[int]]:
        """Writes blobs of a batch, or of a single job; returns the file and the offset of each blob."""
        if header.single:
            return self.singles(record_type, [header] * len(blobs), blobs, indexes)
        return self._blobs(self._file(header), record_type, Block(list(indexes), list(map(len, blobs))), blobs)

    def singles(
        self,
        record_type: RecordType,
        headers: Sequence[BatchHeader],
        blobs: Sequence[bytes],
        indexes: Sequence[int] | None = None,
    ) -> tuple[Path, list[int]]:
        """Writes one blob for each single job; returns the file and the offset of each blob."""
        try:
            return self._write_singles(record_type, headers, blobs, indexes)
        except FileNotFoundError:  # evicted as old while the session goes on
            self._files.pop("").close()
            self._born.clear()
            return self._write_singles(record_type, headers, blobs, indexes)

    def _write_singles(
        self,
        record_type: RecordType,
        headers: Sequence[BatchHeader],
        blobs: Sequence[bytes],
        indexes: Sequence[int] | None,
    ) -> tuple[Path, list[int]]:
        file = self._singles()
        born = {(header.batch, header.nonce): header for header in headers}
        if fresh := [header for key, header in born.items() if key not in self._born]:
            file.append(RecordType.HEADERS, Headers(fresh))
            self._born |= born.keys()
        names = [header.batch for header in headers]
        return self._blobs(
            file, record_type, Block(list(indexes or [0] * len(blobs)), list(map(len, blobs)), names), blobs
        )

    def _blobs(
        self, file: Appender, record_type: RecordType, block: Block, blobs: Sequence[bytes]
    ) -> tuple[Path, list[int]]:
        before = file.size
        start = file.append(record_type, block, blobs)
        self.since += file.size - before
        return file.path, list(accumulate(block.sizes[:-1], initial=start))

    def note(self, header: BatchHeader, record_type: RecordType, table: msgspec.Struct) -> None:
        """Writes a record without data."""
        (self._singles() if header.single else self._file(header)).append(record_type, table)

    # ------------------------------------------------------------ the end of a file

    def close_file(self, batch: str) -> None:
        """Closes a batch's file; the next record reopens it."""
        if (file := self._files.get(batch)) is not None:
            file.close()
            self._open.pop(file, None)

    def delete(self, header: BatchHeader) -> None:
        """Removes the files of a batch. A single job gets a record that it was forgotten."""
        if header.single:
            self._born.discard((header.batch, header.nonce))
            if directory.single_files(self.folder):
                self.note(header, RecordType.FORGOTTEN, Block([0], [0], [f"{header.batch}~{header.nonce}"]))
            return
        self.close_file(header.batch)
        self._files.pop(header.batch, None)
        directory.remove(directory.copies_of(self.folder, header))

    def close(self) -> None:
        """Closes all files."""
        for file in self._files.values():
            file.close()
        self._open.clear()
