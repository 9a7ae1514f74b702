"""The spool: what this session collects, copied to disk as it lands, so that it outlives results, server and kernel.

One file a batch and session, and one a session for all single jobs, so that no two processes ever write to the same.
Blobs are copied as they lay in the store, sealed; nothing is opened here. A disk that fails is told of once; what comes
then is kept in memory.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nbqueue.checks import size_text
from nbqueue.client import spoolfile, spoolhouse
from nbqueue.client.spoolbook import Book
from nbqueue.client.spoolfile import Appender, Back, Birth, Births, Block, Kind, Standing
from nbqueue.errors import BadSignature

if TYPE_CHECKING:
    from nbqueue.client.watch import Watch

T = TypeVar("T")
SMALL = 4_096  # bytes of an outcome, over which memory holds only its place
HELD = 256 << 20  # bytes of smaller ones that a session holds; those that come then are read from disk, too
STEP = 1.0  # seconds between two notes of how a batch stands
LOOK = 32 << 20  # bytes between two looks at the size of the folder
OPEN = 32  # files that are kept open for writing
PART = 4 << 20  # bytes of arguments in a record


class Spool:
    """The spool of one session. `folder` None: it is off. Nothing here raises for a disk that fails."""

    def __init__(self, folder: Path | None, cap: int, tell: Callable[[str], None]) -> None:
        self.folder, self.cap, self._tell = folder, cap, tell
        self.why = "" if folder else "the spool is switched off"  # why nothing is written
        self._watches = weakref.WeakSet["Watch"]()
        self._held = 0  # bytes of outcomes that memory holds, at most
        self._warned = False
        self._mark = secrets.token_hex(6)
        self._lock = threading.RLock()
        # Weakly: of a job that nobody holds, nobody will ask for the arguments.
        self._waiting: deque[tuple[weakref.ref[Watch], int, Sequence[bytes]]] = deque()
        self._loose: list[tuple[weakref.ref[Watch], bytes]] = []  # arguments of single jobs
        self._loose_bytes = 0
        self._books: dict[str, Appender] = {}  # batch -> its file
        self._open: OrderedDict[Appender, None] = OrderedDict()
        self._stood: dict[str, Standing] = {}
        self._born: set[tuple[str, str]] = set()  # single jobs of which the file says what they are
        self._since = 0  # bytes written since the folder's size was looked at
        self._ready = False
        self.read: dict[Path, tuple[int, Book]] = {}  # the files of single jobs as they were read last, by their size

    @property
    def on(self) -> bool:
        """Whether it writes."""
        return not self.why

    # ------------------------------------------------------------ what comes in

    def arguments(self, watch: Watch, start: int, sealed: Sequence[bytes]) -> None:
        """Arguments from `start` on, as they are sent. Only remembers them: `drain` writes."""
        if self.on and watch.birth is not None:
            self._waiting.append((weakref.ref(watch), start, sealed))

    def drain(self) -> None:
        """Writes the arguments that wait."""
        with self._lock:
            while self._waiting:
                held, start, sealed = self._waiting.popleft()
                if (watch := held()) is None:
                    continue
                if watch.single:
                    self._loose += [(held, blob) for blob in sealed]
                    self._loose_bytes += sum(map(len, sealed))
                else:
                    self._guarded(lambda: self._write_arguments(watch, start, sealed))  # noqa: B023 - called at once
            if self._loose_bytes > PART:
                self._drain_loose()

    def _drain_loose(self) -> None:
        """Writes the arguments of single jobs; not before one has ended: a script that only enqueues leaves no file."""
        loose = [(watch, blob) for held, blob in self._loose if (watch := held()) is not None]
        self._loose, self._loose_bytes = [], 0
        if loose:
            self._guarded(lambda: self._write_singles(Kind.ARGUMENTS, loose))

    def keep(self, watch: Watch, pairs: Sequence[tuple[int, bytes]]) -> dict[int, int]:
        """Writes outcomes of a batch that have landed, and what was withdrawn; answers the places of those on disk.

        Called before memory takes them: what anyone has seen is on disk.
        """
        with self._lock:
            self._watches.add(watch)
            if not self.on or watch.birth is None or watch.gone:
                self._weigh(pairs)
                return {}
            with watch.changed:
                taken_back, watch.taken_back = watch.taken_back, []
            if taken_back:
                self._guarded(lambda: self._write_back(watch, taken_back))
            if not pairs:
                return {}
            if watch.single:
                self._drain_loose()
                return self._guarded(lambda: self._write_singles(Kind.OUTCOMES, [(watch, b) for _, b in pairs])) or {}
            return self._guarded(lambda: self._write_outcomes(watch, pairs)) or {}

    def keep_singles(self, found: Sequence[tuple[Watch, bytes]]) -> None:
        """As keep, for batches of one."""
        with self._lock:
            fresh = [(watch, blob) for watch, blob in found if watch.birth is not None and not watch.has(0)]
            for watch, _ in fresh:
                self.keep(watch, ())
            if fresh and self.on:
                self._drain_loose()
                self._guarded(lambda: self._write_singles(Kind.OUTCOMES, fresh))

    def keep_arguments(self, watch: Watch, pairs: Sequence[tuple[int, bytes]]) -> None:
        """Writes arguments that were read from the store."""
        block = Block([index for index, _ in pairs], [len(blob) for _, blob in pairs])
        with self._lock:
            if pairs and self.on and watch.birth is not None:
                self._guarded(lambda: self._add(self._book(watch), Kind.ARGUMENTS, block, (b for _, b in pairs)))

    def stands(self, watch: Watch) -> None:
        """Notes how a batch stands, now and then, and at its end. Nothing of it may wait to be copied."""
        with self._lock:
            if not self.on or watch.birth is None or watch.single or watch.behind:
                return
            last, now = self._stood.get(watch.batch, watch.stood), time.time()
            if last is not None and last.over == watch.over and now - last.told < STEP:
                return
            with watch.changed:
                standing = watch.standing(now)
            if last is None or standing != _again(last, now):
                self._guarded(lambda: self._book(watch).append(Kind.STATE, standing))
                self._stood[watch.batch] = standing
                if watch.over and (book := self._books.get(watch.batch)) is not None:
                    book.close()
                    self._open.pop(book, None)

    def close(self) -> None:
        """Writes what waits, and closes the files."""
        self.drain()
        with self._lock:
            if "" in self._books:
                self._drain_loose()
            for book in self._books.values():
                book.close()

    # ------------------------------------------------------------ what memory holds

    def light(self, blob: bytes) -> bool:
        """Whether memory may hold this outcome; others are read from disk on demand."""
        if len(blob) > SMALL or self._over():
            return False
        self._held += len(blob)
        return True

    def _over(self) -> bool:
        if self._held > HELD:  # by what came; some of it has gone since
            self._held = sum(watch.weight for watch in self._watches)
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
        return self.folder is not None and bool(spoolhouse.files_of(self.folder, batch))

    # ------------------------------------------------------------ what goes out

    def forget(self, birth: Birth) -> None:
        """Removes the files of a batch; of a single job, notes that it is gone."""
        with self._lock:
            self._waiting = deque(each for each in self._waiting if _is_of(each[0], birth.batch) is False)
            self._loose = [each for each in self._loose if _is_of(each[0], birth.batch) is False]
            if birth.single:
                if self.folder is not None and spoolhouse.single_files(self.folder):
                    gone = Block([0], [0], [f"{birth.batch}~{birth.nonce}"])
                    self._guarded(lambda: self._singles().append(Kind.FORGOTTEN, gone))
                self._born.discard((birth.batch, birth.nonce))
                return
            book = self._books.pop(birth.batch, None)
            if book is not None:
                book.close()
                self._open.pop(book, None)
            self._stood.pop(birth.batch, None)
            if self.folder is not None:
                spoolhouse.remove(spoolhouse.copies_of(self.folder, birth))

    # ------------------------------------------------------------ writing

    def _guarded(self, write: Callable[[], T]) -> T | None:
        """What `write` answers; None where it failed, which is told once."""
        if not self.on:
            return None
        try:
            self._prepare()
            return write() if self.on else None
        except OSError as why:
            assert self.folder is not None
            if isinstance(why, FileNotFoundError) and self.folder.is_dir():
                return None  # someone has removed the file, and wants no copy of this batch
            self._fail(f"{why.strerror or why} ({self.folder})")
            return None

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
        if not self._ready or self._since > min(LOOK, self.cap // 8):
            self._ready, self._since = True, 0
            keep = {book.path for book in self._open}
            dropped, left = spoolhouse.shrink(self.folder, self.cap, keep)
            if dropped:
                self._tell(
                    f"nbqueue: the spool is over its cap of {size_text(self.cap)}; the copies of "
                    f"{', '.join(dropped[:5])}{f' and {len(dropped) - 5} more' if len(dropped) > 5 else ''} were "
                    "dropped, the oldest first. `nbqueue prune` makes room, `spool_cap` in config.toml moves the cap."
                )
            if left > self.cap:
                self._fail(f"it is over its cap of {size_text(self.cap)}, and nothing in it is done")

    def _book(self, watch: Watch) -> Appender:
        """The file of a batch, begun with what the batch is."""
        assert self.folder is not None
        assert watch.birth is not None
        book = self._books.get(watch.batch)
        if book is None:
            book = Appender(spoolhouse.path(self.folder, watch.batch, watch.birth.nonce, self._mark))
            book.append(Kind.BORN, Births([watch.birth]))
            self._books[watch.batch] = book
        return self._used(book)

    def _singles(self) -> Appender:
        assert self.folder is not None
        book = self._books.get("")
        if book is None:
            book = self._books[""] = Appender(spoolhouse.path(self.folder, "", "", self._mark))
        return self._used(book)

    def _used(self, book: Appender) -> Appender:
        self._open[book] = None
        self._open.move_to_end(book)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[0].close()
        return book

    def _add(self, book: Appender, kind: Kind, block: Block, blobs: Iterable[bytes]) -> list[int]:
        """Writes blobs; answers where each lies."""
        before = book.size
        start = book.append(kind, block, list(blobs))
        self._since += book.size - before
        return list(accumulate(block.sizes[:-1], initial=start))

    def _write_arguments(self, watch: Watch, start: int, sealed: Sequence[bytes]) -> None:
        block = Block(list(range(start, start + len(sealed))), list(map(len, sealed)))
        if sealed:
            self._add(self._book(watch), Kind.ARGUMENTS, block, sealed)

    def _write_outcomes(self, watch: Watch, pairs: Sequence[tuple[int, bytes]]) -> dict[int, int]:
        book = self._book(watch)
        offsets = self._add(
            book, Kind.OUTCOMES, Block([i for i, _ in pairs], [len(blob) for _, blob in pairs]), (b for _, b in pairs)
        )
        return self._places(watch, book.path, pairs, offsets)

    def _places(
        self, watch: Watch, path: Path, pairs: Sequence[tuple[int, bytes]], offsets: list[int]
    ) -> dict[int, int]:
        """The places of those that memory need not hold."""
        if max(len(blob) for _, blob in pairs) <= SMALL and not self._over():
            self._held += sum(len(blob) for _, blob in pairs)
            return {}
        return {
            index: spoolfile.place(watch.shelf(path), offset, len(blob), blob)
            for (index, blob), offset in zip(pairs, offsets, strict=True)
            if not self.light(blob)
        }

    def _write_singles(self, kind: Kind, found: Sequence[tuple[Watch, bytes]]) -> dict[int, int]:
        book = self._singles()
        births = [watch.birth for watch, _ in found if watch.birth is not None]
        if born := [birth for birth in births if (birth.batch, birth.nonce) not in self._born]:
            book.append(Kind.BORN, Births(born))
            self._born |= {(birth.batch, birth.nonce) for birth in born}
        block = Block([0] * len(found), [len(blob) for _, blob in found], [watch.batch for watch, _ in found])
        offsets = self._add(book, kind, block, (blob for _, blob in found))
        if kind is Kind.ARGUMENTS or len(found) > 1:
            return {}
        return self._places(found[0][0], book.path, [(0, found[0][1])], offsets)

    def _write_back(self, watch: Watch, taken: Sequence[tuple[int, bytes | int]]) -> None:
        checks = []
        for _, found in taken:
            try:
                checks.append(zlib.crc32(watch.blob(found)))
            except BadSignature:
                checks.append(0)  # it cannot be read, so that no reader will take it either
        names = [watch.batch] * len(taken) if watch.single else []
        book = self._singles() if watch.single else self._book(watch)
        book.append(Kind.BACK, Back([index for index, _ in taken], checks, names))


def _is_of(held: weakref.ref[Watch], batch: str) -> bool | None:
    """Whether what was held is of this batch; None: it is held no more."""
    watch = held()
    return None if watch is None else watch.batch == batch


def _again(last: Standing, now: float) -> Standing:
    return msgspec.structs.replace(last, told=now)
