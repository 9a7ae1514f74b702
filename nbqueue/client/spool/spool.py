"""The spool: an append-only copy on disk of what this session collects, which outlives the server and the kernel.

There is one file per batch and session, and one per session for all single jobs, so that no two processes write to one
file. Blobs are copied sealed, as stored in Redis; nothing is unsealed here. If the disk fails or hangs, the user is
told once, and new results are kept in memory only.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from nbqueue.checks import size_text
from nbqueue.client.spool import directory, records
from nbqueue.client.spool.io_thread import IoThread, IoTimeout
from nbqueue.client.spool.reader import SpooledBatch, SpoolFile
from nbqueue.client.spool.records import BatchHeader, Checkpoint, RecordType, Withdrawals
from nbqueue.client.spool.writer import SpoolWriter
from nbqueue.errors import BadSignature

T = TypeVar("T")
Extras = Sequence[
    tuple[RecordType, Sequence[tuple[int, bytes]]]
]  # logs, meta and earlier runs by record type: (index, sealed)
SMALL = 4_096  # bytes of an outcome; of a larger one memory holds only the offset
HELD = 256 << 20  # bytes of small outcomes that a session holds; later ones are read from disk, too
STEP = 1.0  # seconds between two checkpoints of a batch
LOOK = 32 << 20  # bytes written between two checks of the folder's size
CHUNK = 4 << 20  # bytes of arguments in a record
FUNCTION = 64 << 20  # bytes; a larger function is not copied


class SpoolCopy:
    """The copy of one batch in the spool, as far as a session knows it."""

    def __init__(self) -> None:
        self.header: BatchHeader | None = None  # None: the batch is not copied
        self.checkpoint: Checkpoint | None = None  # the latest one
        self.recalled = False  # whether outcomes in memory were read from the copy
        self.has_outcome = False  # single job: whether its outcome was copied; it may be in memory before
        self.lacks_arguments: list[int] = []  # jobs of another session's batch whose arguments are not copied
        self.lacks_function = False  # whether the function of such a batch is not copied
        self.withdrawn: list[tuple[int, bytes | int]] = []  # outcomes that a retry withdrew; written with the next ones
        self.read: SpooledBatch | None = None  # the files, once they were read

    def withdraw(self, index: int, found: bytes | int | None) -> None:
        """Takes note that a retry withdrew the outcome of a job."""
        self.has_outcome = False
        if found is not None and self.header is not None:
            self.withdrawn.append((index, found))


class Outcomes(Protocol):
    """The outcomes in a BatchState that the spool reads."""

    weight: int

    def file_number(self, path: Path) -> int:
        """The number by which packed offsets name a file of the spool."""

    def blob(self, found: bytes | int) -> bytes:
        """An outcome as stored in Redis. Raises BadSignature."""


class Cursor(Protocol):
    """The position in a batch's log."""

    uncopied: deque[int]


class Memory(Protocol):
    """The fields of a BatchState that the spool reads and writes; `changed` guards them."""

    changed: threading.Condition
    batch: str
    gone: str
    over: bool
    on_disk: SpoolCopy

    @property
    def single(self) -> bool:
        """Whether it is a single job."""

    @property
    def outcomes(self) -> Outcomes:
        """The outcomes that were collected."""

    @property
    def cursor(self) -> Cursor:
        """The log position, and the ended jobs that were not copied yet."""

    def standing(self, now: float) -> Checkpoint:
        """Its checkpoint."""


M = TypeVar("M", bound=Memory)


class PendingWrite:
    """A buffered write. The batch's state is referenced weakly: a job without a handle is not written."""

    def __init__(self, state: Memory, record_type: RecordType, start: int, blobs: Sequence[bytes]) -> None:
        self.state, self.record_type, self.start, self.blobs = weakref.ref(state), record_type, start, blobs

    def of(self, batch: str) -> bool:
        """Whether it belongs to this batch."""
        state = self.state()
        return state is not None and state.batch == batch

    @property
    def header(self) -> BatchHeader | None:
        """Header of its batch; None if no handle of the batch exists any more."""
        state = self.state()
        return None if state is None else state.on_disk.header

    @property
    def indexes(self) -> list[int]:
        """The indexes of the blobs."""
        count = len(self.blobs)
        return (
            list(range(self.start, self.start + count))
            if self.record_type is RecordType.ARGUMENTS
            else [self.start] * count
        )


class Spool:
    """The spool of one session; `folder` None switches it off. A failing disk never raises here."""

    def __init__(self, folder: Path | None, cap: int, notify: Callable[[str], None]) -> None:
        self.folder, self.cap, self._notify = folder, cap, notify
        self.why = "" if folder else "the spool is switched off"  # reason for not writing
        self._followed = weakref.WeakSet[Memory]()
        self._held = 0  # upper bound of the bytes of outcomes in memory
        self._warned = False
        self._session = secrets.token_hex(6)
        self._lock = threading.RLock()
        self._waiting: deque[PendingWrite] = deque()
        self._singles: list[PendingWrite] = []  # those of single jobs
        self._single_bytes = 0
        self._writer = SpoolWriter(folder or Path(), self._session)
        self.io = IoThread()
        self._checkpoints: dict[str, Checkpoint] = {}
        self._ready = False
        self.read: dict[
            Path, tuple[int, SpoolFile]
        ] = {}  # single-job files by path, with their size when they were read

    @property
    def on(self) -> bool:
        """Whether results are written to disk."""
        return not self.why

    # ------------------------------------------------------------ buffered writes

    def add_arguments(self, state: Memory, start: int, sealed: Sequence[bytes]) -> None:
        """Buffers arguments from index `start` on; `flush` writes them."""
        if self.on and state.on_disk.header is not None and sealed:
            self._waiting.append(PendingWrite(state, RecordType.ARGUMENTS, start, sealed))

    def add_function(self, state: Memory, function: bytes, spec: bytes = b"") -> None:
        """Buffers the sealed function (empty: unchanged), and the sealed spec if it has changed."""
        if self.on and state.on_disk.header is not None and len(function) <= FUNCTION:
            self._waiting.append(PendingWrite(state, RecordType.FUNCTION, time.time_ns() // 1000, [function, spec]))

    def add_hashes(self, state: Memory, start: int, hashes: bytes) -> None:
        """Buffers argument hashes of a named batch, from index `start` on."""
        if self.on and state.on_disk.header is not None and hashes:
            self._waiting.append(PendingWrite(state, RecordType.HASHES, start, [hashes]))

    def flush(self) -> None:
        """Writes what is buffered."""
        with self._lock:
            while self._waiting:
                pending = self._waiting.popleft()
                if (header := pending.header) is None:
                    continue
                if header.single:
                    self._singles.append(pending)
                    self._single_bytes += sum(map(len, pending.blobs))
                else:
                    self._write(header, pending.record_type, pending.indexes, pending.blobs)
            if self._single_bytes > CHUNK:
                self._flush_singles()

    def _flush_singles(self) -> None:
        """Writes what is buffered of single jobs. Waits until one ends: a script that only enqueues leaves no file."""
        singles = [(header, pending) for pending in self._singles if (header := pending.header) is not None]
        self._singles, self._single_bytes = [], 0
        given = [
            (header, blob)
            for header, pending in singles
            if pending.record_type is RecordType.ARGUMENTS
            for blob in pending.blobs
        ]
        if given:
            size = sum(len(blob) for _, blob in given)
            headers, blobs = zip(*given, strict=True)
            self._attempt(lambda: self._writer.singles(RecordType.ARGUMENTS, headers, blobs), size)
        for header, pending in singles:
            if pending.record_type is not RecordType.ARGUMENTS:
                self._write(header, pending.record_type, pending.indexes, pending.blobs)

    def write_outcomes(self, state: Memory, pairs: Sequence[tuple[int, bytes]], extras: Extras = ()) -> dict[int, int]:
        """Writes outcomes and withdrawals of a batch; returns the packed offsets of outcomes that are on disk only.

        Called before the outcomes are visible in memory, so that a visible outcome is on disk.
        """
        with self._lock:
            self._followed.add(state)
            header = state.on_disk.header
            if not self.on or header is None or state.gone:
                self._count_held(pairs)
                return {}
            with state.changed:
                withdrawn, state.on_disk.withdrawn = state.on_disk.withdrawn, []
            if withdrawn:
                self._attempt(lambda: self._write_withdrawals(state, header, withdrawn))
            if not pairs:
                return {}
            state.on_disk.has_outcome = state.single
            if state.single:
                self._flush_singles()
            self._write_extras(header, extras)
            found = self._write(header, RecordType.OUTCOMES, [index for index, _ in pairs], [blob for _, blob in pairs])
            if found is None:
                self._count_held(pairs)
                return {}
            return self._packed_offsets(state, found[0], pairs, found[1])

    def write_single_outcomes(self, found: Sequence[tuple[M, bytes, Extras]]) -> dict[M, int]:
        """As write_outcomes, for single jobs."""
        packed: dict[M, int] = {}
        with self._lock:
            # A job that was forgotten while its outcome was fetched must not come back.
            fresh = [
                each
                for each in found
                if each[0].on_disk.header and not each[0].on_disk.has_outcome and not each[0].gone
            ]
            for state, _, _ in fresh:
                self.write_outcomes(state, ())
                state.on_disk.has_outcome = True
            if fresh and self.on:
                self._flush_singles()
                headers = [state.on_disk.header for state, _, _ in fresh if state.on_disk.header is not None]
                for header, (_, _, extras) in zip(headers, fresh, strict=True):
                    self._write_extras(header, extras)
                blobs = [blob for _, blob, _ in fresh]
                there = self._attempt(
                    lambda: self._writer.singles(RecordType.OUTCOMES, headers, blobs), sum(map(len, blobs))
                )
                if there is None:
                    self._count_held([(0, blob) for blob in blobs])
                    return packed
                for (state, blob, _), offset in zip(fresh, there[1], strict=True):
                    if offsets := self._packed_offsets(state, there[0], [(0, blob)], [offset]):
                        packed[state] = offsets[0]
        return packed

    def write_arguments(self, state: Memory, pairs: Sequence[tuple[int, bytes]]) -> None:
        """Writes arguments that were read from Redis."""
        with self._lock:
            if pairs and self.on and state.on_disk.header is not None:
                indexes, blobs = zip(*pairs, strict=True)
                self._write(state.on_disk.header, RecordType.ARGUMENTS, indexes, blobs)

    def write_extras(self, state: Memory, extras: Extras) -> None:
        """Writes logs, meta or earlier runs, apart from outcomes."""
        with self._lock:
            if self.on and state.on_disk.header is not None:
                self._write_extras(state.on_disk.header, extras)

    def write_restored(self, state: Memory, made: Sequence[tuple[int, bytes]], checkpoint: Checkpoint) -> None:
        """Writes a checkpoint for a batch that was restored to a server, and the outcomes made for it."""
        with self._lock:
            if self.on and (header := state.on_disk.header) is not None:
                if made:
                    self._write(header, RecordType.OUTCOMES, [index for index, _ in made], [blob for _, blob in made])
                self._attempt(lambda: self._writer.note(header, RecordType.CHECKPOINT, checkpoint))

    def checkpoint(self, state: Memory) -> None:
        """Writes a checkpoint at most every STEP seconds, and at the end; none while outcomes wait to be copied."""
        with self._lock:
            header = state.on_disk.header
            if not self.on or header is None or state.single or state.cursor.uncopied:
                return
            last, now = self._checkpoints.get(state.batch, state.on_disk.checkpoint), time.time()
            if last is not None and last.over == state.over and now - last.written_at < STEP:
                return
            with state.changed:
                checkpoint = state.standing(now)
            if last is None or checkpoint != msgspec.structs.replace(last, written_at=now):
                self._attempt(lambda: self._write_checkpoint(header, checkpoint))
                self._checkpoints[state.batch] = checkpoint

    def close(self) -> None:
        """Writes what is buffered, and closes the files."""
        self.flush()
        with self._lock:
            if self._writer.has_singles:
                self._flush_singles()
            if self.folder is not None and self.on:
                self._attempt(self._writer.close)
            self.io.stop()

    # ------------------------------------------------------------ memory

    def fits_in_memory(self, blob: bytes) -> bool:
        """Whether this outcome may stay in memory; others are read from disk on demand."""
        if len(blob) > SMALL or self._over():
            return False
        self._held += len(blob)
        return True

    def _over(self) -> bool:
        if self._held > HELD:  # counts every arrival; some were freed since
            self._held = sum(state.outcomes.weight for state in self._followed)
        return self._held > HELD

    def _count_held(self, pairs: Sequence[tuple[int, bytes]]) -> None:
        """Counts outcomes that cannot be written to disk; warns once if they are over HELD."""
        self._held += sum(len(blob) for _, blob in pairs)
        if not self._warned and self._over():
            self._warned = True
            self._notify(f"nbqueue: over {size_text(HELD)} of results are in memory only, because {self.why}.")

    def read_only(self, why: str) -> None:
        """Stops writing; reading goes on."""
        self.why = self.why or why

    def has(self, batch: str) -> bool:
        """Whether the spool has a batch of this id."""
        return bool(self._try_read(lambda folder: directory.files_of(folder, batch)))

    def is_readable(self) -> bool:
        """Whether the spool can be read: it is on, and its disk responds."""
        return bool(self._try_read(lambda folder: [folder.exists()]))

    def _try_read(self, look: Callable[[Path], T]) -> T | None:
        """The result of `look`; None if the spool is off, or its disk does not respond."""
        if (folder := self.folder) is None:
            return None
        try:
            return self.io.run(lambda: look(folder))
        except IoTimeout as why:
            self._hung(why)
            return None

    # ------------------------------------------------------------ deleting

    def forget(self, header: BatchHeader) -> None:
        """Removes the files of a batch; a single job is recorded as forgotten."""
        with self._lock:
            self._waiting = deque(each for each in self._waiting if not each.of(header.batch))
            self._singles = [each for each in self._singles if not each.of(header.batch)]
            self._checkpoints.pop(header.batch, None)
            if header.single:
                self._attempt(lambda: self._writer.delete(header))
            else:
                self._try_read(lambda _: self._writer.delete(header))

    # ------------------------------------------------------------ writing

    def _attempt(self, write: Callable[[], T], size: int = 0) -> T | None:
        """The result of `write`; None if it failed or timed out, which the user is told once."""
        if not self.on:
            return None

        def prepared() -> T | None:
            self._prepare()
            return write() if self.on else None

        try:
            return self.io.run(prepared, size)
        except IoTimeout as why:
            self._hung(why)
        except OSError as why:
            assert self.folder is not None
            if isinstance(why, FileNotFoundError) and self.folder.is_dir():
                return None  # the file was removed on purpose: no new copy of this batch
            self._fail(f"{why.strerror or why} ({self.folder})")
        return None

    def _hung(self, why: IoTimeout) -> None:
        """Stops all use of a disk that hangs, reads included."""
        folder, self.folder = self.folder, None
        if self.on:
            self._fail(f"{why.strerror} ({folder})")
        self.io.stop()

    def _fail(self, why: str) -> None:
        self.why = why
        self._waiting.clear()
        self._singles = []
        self._notify(
            f"nbqueue: stopped writing results to the spool: {why}. New results are kept in this process's memory "
            "only; the server keeps them until their result_ttl is over."
        )

    def _prepare(self) -> None:
        assert self.folder is not None
        if not self._ready:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = self.folder.stat()
            if facts.st_uid != os.getuid():
                raise OSError(f"the folder belongs to user {facts.st_uid}, not to you")
            if stat.S_IMODE(facts.st_mode) & 0o077:
                self.folder.chmod(0o700)
        if not self._ready or self._writer.since > min(LOOK, self.cap // 8):
            self._ready, self._writer.since = True, 0
            dropped, left = directory.evict(self.folder, self.cap, self._writer.open_paths)
            if dropped:
                self._notify(
                    f"nbqueue: the spool was over its cap of {size_text(self.cap)}; the oldest copies were removed: "
                    f"{', '.join(dropped[:5])}{f' and {len(dropped) - 5} more' if len(dropped) > 5 else ''}. "
                    "`nbqueue prune` makes room; `spool_cap` in config.toml sets the cap."
                )
            if left > self.cap:
                self._fail(f"it is over its cap of {size_text(self.cap)}, and all of its batches are still running")

    def _write(
        self, header: BatchHeader, record_type: RecordType, indexes: Sequence[int], blobs: Sequence[bytes]
    ) -> tuple[Path, list[int]] | None:
        return self._attempt(lambda: self._writer.blobs(header, record_type, indexes, blobs), sum(map(len, blobs)))

    def _write_extras(self, header: BatchHeader, extras: Extras) -> None:
        for record_type, pairs in extras:
            if pairs:
                self._write(header, record_type, [index for index, _ in pairs], [blob for _, blob in pairs])

    def _write_checkpoint(self, header: BatchHeader, checkpoint: Checkpoint) -> None:
        self._writer.note(header, RecordType.CHECKPOINT, checkpoint)
        if checkpoint.over:
            self._writer.close_file(header.batch)

    def _packed_offsets(
        self, state: Memory, path: Path, pairs: Sequence[tuple[int, bytes]], offsets: Iterable[int]
    ) -> dict[int, int]:
        """The packed offsets of outcomes that do not stay in memory."""
        if max(len(blob) for _, blob in pairs) <= SMALL and not self._over():
            self._held += sum(len(blob) for _, blob in pairs)
            return {}
        return {
            index: records.pack_offset(state.outcomes.file_number(path), offset, len(blob), blob)
            for (index, blob), offset in zip(pairs, offsets, strict=True)
            if not self.fits_in_memory(blob)
        }

    def _write_withdrawals(self, state: Memory, header: BatchHeader, taken: Sequence[tuple[int, bytes | int]]) -> None:
        checks = []
        for _, found in taken:
            try:
                checks.append(zlib.crc32(state.outcomes.blob(found)))
            except BadSignature:
                checks.append(0)  # cannot be read, by no other reader either
        names = [header.batch] * len(taken) if header.single else []
        self._writer.note(header, RecordType.WITHDRAWALS, Withdrawals([index for index, _ in taken], checks, names))
