"""The spool: what this session collects, copied to disk as it lands, so that it outlives results, server and kernel.

One file a batch and session, and one a session for all single jobs, so that no two processes ever write to the same.
Blobs are copied as they lay in the store, sealed; nothing is opened here. A disk that fails, or does not answer, is
told of once; what comes then is kept in memory.
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
Said = Sequence[
    tuple[RecordType, Sequence[tuple[int, bytes]]]
]  # what jobs wrote and said, by its kind: (index, sealed)
SMALL = 4_096  # bytes of an outcome, over which memory holds only its place
HELD = 256 << 20  # bytes of smaller ones that a session holds; those that come then are read from disk, too
STEP = 1.0  # seconds between two notes of how a batch stands
LOOK = 32 << 20  # bytes between two looks at the size of the folder
PART = 4 << 20  # bytes of arguments in a record
FUNCTION = 64 << 20  # bytes of a function that is worth copying


class SpoolCopy:
    """What a session knows of the copy of one batch in the spool."""

    def __init__(self) -> None:
        self.header: BatchHeader | None = None  # None: it is not copied
        self.checkpoint: Checkpoint | None = None  # how the batch stood there
        self.recalled = False  # whether some of what is in memory came from it
        self.has_outcome = False  # of a batch of one: whether its outcome was copied, which may have been read before
        self.lacks_arguments: list[int] = []  # of a batch that another session submitted
        self.lacks_function = False  # of such a batch, too
        self.withdrawn: list[tuple[int, bytes | int]] = []  # outcomes that a retry withdrew; it is noted with the next
        self.read: SpooledBatch | None = None  # what its files say, once they were read

    def withdraw(self, index: int, found: bytes | int | None) -> None:
        """A retry has withdrawn the outcome of a job."""
        self.has_outcome = False
        if found is not None and self.header is not None:
            self.withdrawn.append((index, found))


class Outcomes(Protocol):
    """The outcomes of a batch, as far as the spool reads them."""

    weight: int

    def file_number(self, path: Path) -> int:
        """The number of a file of the spool, as offsets tell it."""

    def blob(self, found: bytes | int) -> bytes:
        """An outcome as it lay in the store. Raises BadSignature."""


class Cursor(Protocol):
    """How far the log of a batch was read."""

    uncopied: deque[int]


class Memory(Protocol):
    """What a session knows of one batch, as far as the spool reads it and writes to it; `changed` guards it."""

    changed: threading.Condition
    batch: str
    gone: str
    over: bool
    on_disk: SpoolCopy

    @property
    def single(self) -> bool:
        """Whether it is a batch of one made by `submit`."""

    @property
    def outcomes(self) -> Outcomes:
        """What has landed."""

    @property
    def cursor(self) -> Cursor:
        """What has ended, but was not copied yet."""

    def standing(self, now: float) -> Checkpoint:
        """How it stands."""


M = TypeVar("M", bound=Memory)


class PendingWrite:
    """What waits to be written, of a batch whose state is held weakly: of a job that nobody holds, nobody will ask."""

    def __init__(self, state: Memory, kind: RecordType, start: int, blobs: Sequence[bytes]) -> None:
        self.state, self.kind, self.start, self.blobs = weakref.ref(state), kind, start, blobs

    def of(self, batch: str) -> bool:
        """Whether it is of this batch."""
        state = self.state()
        return state is not None and state.batch == batch

    @property
    def birth(self) -> BatchHeader | None:
        """Of which batch it is; None: it is held no more."""
        state = self.state()
        return None if state is None else state.on_disk.header

    @property
    def indexes(self) -> list[int]:
        """Those of the blobs."""
        count = len(self.blobs)
        return (
            list(range(self.start, self.start + count)) if self.kind is RecordType.ARGUMENTS else [self.start] * count
        )


class Spool:
    """The spool of one session. `folder` None: it is off. Nothing here raises for a disk that fails."""

    def __init__(self, folder: Path | None, cap: int, tell: Callable[[str], None]) -> None:
        self.folder, self.cap, self._tell = folder, cap, tell
        self.why = "" if folder else "the spool is switched off"  # why nothing is written
        self._followed = weakref.WeakSet[Memory]()
        self._held = 0  # bytes of outcomes that memory holds, at most
        self._warned = False
        self._mark = secrets.token_hex(6)
        self._lock = threading.RLock()
        self._waiting: deque[PendingWrite] = deque()
        self._loose: list[PendingWrite] = []  # of single jobs
        self._loose_bytes = 0
        self._pen = SpoolWriter(folder or Path(), self._mark)
        self.desk = IoThread()
        self._stood: dict[str, Checkpoint] = {}
        self._ready = False
        self.read: dict[
            Path, tuple[int, SpoolFile]
        ] = {}  # the files of single jobs as they were read last, by their size

    @property
    def on(self) -> bool:
        """Whether it writes."""
        return not self.why

    # ------------------------------------------------------------ what comes in

    def arguments(self, state: Memory, start: int, sealed: Sequence[bytes]) -> None:
        """Arguments from `start` on, as they are sent. Only remembers them: `drain` writes."""
        if self.on and state.on_disk.header is not None and sealed:
            self._waiting.append(PendingWrite(state, RecordType.ARGUMENTS, start, sealed))

    def function(self, state: Memory, function: bytes, spec: bytes = b"") -> None:
        """The sealed function (empty: the same), and the description where it is another now. Only remembers them."""
        if self.on and state.on_disk.header is not None and len(function) <= FUNCTION:
            self._waiting.append(PendingWrite(state, RecordType.FUNCTION, time.time_ns() // 1000, [function, spec]))

    def marks(self, state: Memory, start: int, marks: bytes) -> None:
        """The marks of a named batch, from a job on. Only remembers them."""
        if self.on and state.on_disk.header is not None and marks:
            self._waiting.append(PendingWrite(state, RecordType.MARKS, start, [marks]))

    def drain(self) -> None:
        """Writes what waits."""
        with self._lock:
            while self._waiting:
                sheet = self._waiting.popleft()
                if (birth := sheet.birth) is None:
                    continue
                if birth.single:
                    self._loose.append(sheet)
                    self._loose_bytes += sum(map(len, sheet.blobs))
                else:
                    self._write(birth, sheet.kind, sheet.indexes, sheet.blobs)
            if self._loose_bytes > PART:
                self._drain_loose()

    def _drain_loose(self) -> None:
        """Writes what is of single jobs; not before one has ended: a script that only enqueues leaves no file."""
        loose = [(birth, sheet) for sheet in self._loose if (birth := sheet.birth) is not None]
        self._loose, self._loose_bytes = [], 0
        given = [(birth, blob) for birth, sheet in loose if sheet.kind is RecordType.ARGUMENTS for blob in sheet.blobs]
        if given:
            size = sum(len(blob) for _, blob in given)
            births, blobs = zip(*given, strict=True)
            self._guarded(lambda: self._pen.singles(RecordType.ARGUMENTS, births, blobs), size)
        for birth, sheet in loose:
            if sheet.kind is not RecordType.ARGUMENTS:
                self._write(birth, sheet.kind, sheet.indexes, sheet.blobs)

    def keep(self, state: Memory, pairs: Sequence[tuple[int, bytes]], said: Said = ()) -> dict[int, int]:
        """Writes outcomes of a batch that have landed, and what was withdrawn; answers the places of those on disk.

        Called before memory takes them: what anyone has seen is on disk.
        """
        with self._lock:
            self._followed.add(state)
            birth = state.on_disk.header
            if not self.on or birth is None or state.gone:
                self._weigh(pairs)
                return {}
            with state.changed:
                withdrawn, state.on_disk.withdrawn = state.on_disk.withdrawn, []
            if withdrawn:
                self._guarded(lambda: self._write_back(state, birth, withdrawn))
            if not pairs:
                return {}
            state.on_disk.has_outcome = state.single
            if state.single:
                self._drain_loose()
            self._write_said(birth, said)
            found = self._write(birth, RecordType.OUTCOMES, [index for index, _ in pairs], [blob for _, blob in pairs])
            if found is None:
                self._weigh(pairs)
                return {}
            return self._places(state, found[0], pairs, found[1])

    def keep_singles(self, found: Sequence[tuple[M, bytes, Said]]) -> dict[M, int]:
        """As keep, for batches of one."""
        places: dict[M, int] = {}
        with self._lock:
            # One that was forgotten while its outcome was on its way must not come back.
            fresh = [
                each
                for each in found
                if each[0].on_disk.header and not each[0].on_disk.has_outcome and not each[0].gone
            ]
            for state, _, _ in fresh:
                self.keep(state, ())
                state.on_disk.has_outcome = True
            if fresh and self.on:
                self._drain_loose()
                births = [state.on_disk.header for state, _, _ in fresh if state.on_disk.header is not None]
                for birth, (_, _, said) in zip(births, fresh, strict=True):
                    self._write_said(birth, said)
                blobs = [blob for _, blob, _ in fresh]
                there = self._guarded(
                    lambda: self._pen.singles(RecordType.OUTCOMES, births, blobs), sum(map(len, blobs))
                )
                if there is None:
                    self._weigh([(0, blob) for blob in blobs])
                    return places
                for (state, blob, _), offset in zip(fresh, there[1], strict=True):
                    if place := self._places(state, there[0], [(0, blob)], [offset]):
                        places[state] = place[0]
        return places

    def keep_arguments(self, state: Memory, pairs: Sequence[tuple[int, bytes]]) -> None:
        """Writes arguments that were read from the store."""
        with self._lock:
            if pairs and self.on and state.on_disk.header is not None:
                indexes, blobs = zip(*pairs, strict=True)
                self._write(state.on_disk.header, RecordType.ARGUMENTS, indexes, blobs)

    def keep_said(self, state: Memory, said: Said) -> None:
        """Writes what jobs wrote or said, apart from their outcomes."""
        with self._lock:
            if self.on and state.on_disk.header is not None:
                self._write_said(state.on_disk.header, said)

    def restored(self, state: Memory, made: Sequence[tuple[int, bytes]], standing: Checkpoint) -> None:
        """Notes that a batch is on a server again, and outcomes that were made for it."""
        with self._lock:
            if self.on and (birth := state.on_disk.header) is not None:
                if made:
                    self._write(birth, RecordType.OUTCOMES, [index for index, _ in made], [blob for _, blob in made])
                self._guarded(lambda: self._pen.note(birth, RecordType.STATE, standing))

    def stands(self, state: Memory) -> None:
        """Notes how a batch stands, now and then, and at its end. Nothing of it may wait to be copied."""
        with self._lock:
            birth = state.on_disk.header
            if not self.on or birth is None or state.single or state.cursor.uncopied:
                return
            last, now = self._stood.get(state.batch, state.on_disk.checkpoint), time.time()
            if last is not None and last.over == state.over and now - last.told < STEP:
                return
            with state.changed:
                standing = state.standing(now)
            if last is None or standing != msgspec.structs.replace(last, told=now):
                self._guarded(lambda: self._write_standing(birth, standing))
                self._stood[state.batch] = standing

    def close(self) -> None:
        """Writes what waits, and closes the files."""
        self.drain()
        with self._lock:
            if self._pen.has_singles:
                self._drain_loose()
            if self.folder is not None and self.on:
                self._guarded(self._pen.close)
            self.desk.leave()

    # ------------------------------------------------------------ what memory holds

    def light(self, blob: bytes) -> bool:
        """Whether memory may hold this outcome; others are read from disk on demand."""
        if len(blob) > SMALL or self._over():
            return False
        self._held += len(blob)
        return True

    def _over(self) -> bool:
        if self._held > HELD:  # by what came; some of it has gone since
            self._held = sum(state.outcomes.weight for state in self._followed)
        return self._held > HELD

    def _weigh(self, pairs: Sequence[tuple[int, bytes]]) -> None:
        """Says once that memory holds more than it should, where there is no disk to put it on."""
        self._held += sum(len(blob) for _, blob in pairs)
        if not self._warned and self._over():
            self._warned = True
            self._tell(f"nbqueue: over {size_text(HELD)} of results are held in memory, since {self.why}.")

    def read_only(self, why: str) -> None:
        """From now on nothing is written; what is there may be read."""
        self.why = self.why or why

    def knows(self, batch: str) -> bool:
        """Whether there is a batch of this id, from whenever."""
        return bool(self._asked(lambda folder: directory.files_of(folder, batch)))

    def answers(self) -> bool:
        """Whether there is a spool whose disk answers."""
        return bool(self._asked(lambda folder: [folder.exists()]))

    def _asked(self, look: Callable[[Path], T]) -> T | None:
        """What the folder says; None where there is none, or its disk does not answer."""
        if (folder := self.folder) is None:
            return None
        try:
            return self.desk.ask(lambda: look(folder))
        except IoTimeout as why:
            self._hung(why)
            return None

    # ------------------------------------------------------------ what goes out

    def forget(self, birth: BatchHeader) -> None:
        """Removes the files of a batch; of a single job, notes that it is gone."""
        with self._lock:
            self._waiting = deque(each for each in self._waiting if not each.of(birth.batch))
            self._loose = [each for each in self._loose if not each.of(birth.batch)]
            self._stood.pop(birth.batch, None)
            if birth.single:
                self._guarded(lambda: self._pen.drop(birth))
            else:
                self._asked(lambda _: self._pen.drop(birth))

    # ------------------------------------------------------------ writing

    def _guarded(self, write: Callable[[], T], size: int = 0) -> T | None:
        """What `write` answers; None where it failed, or took too long, which is told once."""
        if not self.on:
            return None

        def prepared() -> T | None:
            self._prepare()
            return write() if self.on else None

        try:
            return self.desk.ask(prepared, size)
        except IoTimeout as why:
            self._hung(why)
        except OSError as why:
            assert self.folder is not None
            if isinstance(why, FileNotFoundError) and self.folder.is_dir():
                return None  # someone has removed the file, and wants no copy of this batch
            self._fail(f"{why.strerror or why} ({self.folder})")
        return None

    def _hung(self, why: IoTimeout) -> None:
        """The disk is left alone from now on, also by those who would read."""
        folder, self.folder = self.folder, None
        if self.on:
            self._fail(f"{why.strerror} ({folder})")
        self.desk.leave()

    def _fail(self, why: str) -> None:
        self.why = why
        self._waiting.clear()
        self._loose = []
        self._tell(
            f"nbqueue: what ends from now on is kept in this process's memory only, and not in the spool: {why}. "
            "It is safe on the server for as long as its result_ttl says."
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
        if not self._ready or self._pen.since > min(LOOK, self.cap // 8):
            self._ready, self._pen.since = True, 0
            dropped, left = directory.shrink(self.folder, self.cap, self._pen.being_written)
            if dropped:
                self._tell(
                    f"nbqueue: the spool is over its cap of {size_text(self.cap)}; the copies of "
                    f"{', '.join(dropped[:5])}{f' and {len(dropped) - 5} more' if len(dropped) > 5 else ''} were "
                    "dropped, the oldest first. `nbqueue prune` makes room, `spool_cap` in config.toml moves the cap."
                )
            if left > self.cap:
                self._fail(f"it is over its cap of {size_text(self.cap)}, and nothing in it is done")

    def _write(
        self, birth: BatchHeader, kind: RecordType, indexes: Sequence[int], blobs: Sequence[bytes]
    ) -> tuple[Path, list[int]] | None:
        return self._guarded(lambda: self._pen.blobs(birth, kind, indexes, blobs), sum(map(len, blobs)))

    def _write_said(self, birth: BatchHeader, said: Said) -> None:
        for kind, pairs in said:
            if pairs:
                self._write(birth, kind, [index for index, _ in pairs], [blob for _, blob in pairs])

    def _write_standing(self, birth: BatchHeader, standing: Checkpoint) -> None:
        self._pen.note(birth, RecordType.STATE, standing)
        if standing.over:
            self._pen.rest(birth.batch)

    def _places(
        self, state: Memory, path: Path, pairs: Sequence[tuple[int, bytes]], offsets: Iterable[int]
    ) -> dict[int, int]:
        """The places of those that memory need not hold."""
        if max(len(blob) for _, blob in pairs) <= SMALL and not self._over():
            self._held += sum(len(blob) for _, blob in pairs)
            return {}
        return {
            index: records.place(state.outcomes.file_number(path), offset, len(blob), blob)
            for (index, blob), offset in zip(pairs, offsets, strict=True)
            if not self.light(blob)
        }

    def _write_back(self, state: Memory, birth: BatchHeader, taken: Sequence[tuple[int, bytes | int]]) -> None:
        checks = []
        for _, found in taken:
            try:
                checks.append(zlib.crc32(state.outcomes.blob(found)))
            except BadSignature:
                checks.append(0)  # it cannot be read, so that no reader will take it either
        names = [birth.batch] * len(taken) if birth.single else []
        self._pen.note(birth, RecordType.BACK, Withdrawals([index for index, _ in taken], checks, names))
