"""What running jobs say of themselves: meta and progress, on their way to the store.

The latest counts: a job may say much, and is heard twice a second; what it said last is saved before its outcome.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from nbqueue.errors import BadSignature
from nbqueue.model import MAX_META, JobMeta, decode
from nbqueue.store.broker import Broker
from nbqueue.store.records import Lease
from nbqueue.wire import META, Sealer
from nbqueue.worker import frames
from nbqueue.worker.ledger import Task
from nbqueue.worker.score import Score

EVERY = 0.5  # seconds between two saves of one job
SOON = 0.02  # seconds that the first word of a job waits for those that come right behind it
_EMPTY, _NIL = b"\x80", b"\xc0"  # no meta and no progress, as msgpack
_MOST = MAX_META + 8_192  # bytes of a record


class _Raw(msgspec.Struct, frozen=True, array_like=True):
    """model.JobMeta with its parts as they came, since nobody here needs to read them."""

    meta: msgspec.Raw = msgspec.Raw(_EMPTY)
    progress: msgspec.Raw = msgspec.Raw(_NIL)


@dataclass(slots=True)
class _Page:
    """The latest of one job."""

    task: Task
    meta: bytes
    progress: bytes = _NIL
    next_at: float = 0.0


@dataclass(slots=True)
class Notepad:
    """Holds the latest notes of every running job, and saves them. Threads may share it."""

    broker: Broker
    sealer: Sealer
    score: Score
    _pages: dict[Lease, _Page] = field(default_factory=dict)
    _fresh: set[Lease] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def take(self, task: Task, kind: int, payload: bytes) -> None:
        """Takes a NOTE in."""
        with self._lock:
            page = self._pages.get(task.lease)
            if page is None:
                page = self._pages[task.lease] = _Page(task, task.meta or _EMPTY, next_at=time.monotonic() + SOON)
            if kind == frames.META:
                page.meta = payload
            elif kind == frames.PROGRESS:
                page.progress = payload
            else:
                raise frames.FrameError(f"there is no note of kind {kind}")
            self._fresh.add(task.lease)

    @property
    def due(self) -> float | None:
        """Seconds until something is to be saved; None when nothing is."""
        if not self._fresh:
            return None
        with self._lock:
            return max(0.0, min((self._pages[lease].next_at for lease in self._fresh), default=0.0) - time.monotonic())

    def flush(self) -> None:
        """Saves what is due; raises SetupError when the server cannot take it, and keeps it."""
        if not self._fresh:
            return
        now = time.monotonic()
        with self._lock:
            for lease in [lease for lease in self._fresh if self._pages[lease].next_at <= now]:
                self._save(lease)

    def save(self, leases: Iterable[Lease]) -> None:
        """Saves now what these jobs have said."""
        if not self._fresh:
            return
        with self._lock:
            for lease in self._fresh.intersection(leases):
                self._save(lease)

    def _save(self, lease: Lease) -> None:
        page, task = self._pages[lease], self._pages[lease].task
        data = msgspec.msgpack.encode(_Raw(msgspec.Raw(page.meta), msgspec.Raw(page.progress)))
        try:
            _check(data, task)
        except BadSignature as why:
            self.score.line("!!", str(why))
            self.forget([lease])
            return
        blob = self.sealer.seal(META, task.batch, task.index, data)
        # A callback speaks when the claim is settled: then no other run can be in its way.
        stands = self.broker.save(task.batch, task.index, blob, None if task.over else task.token)
        page.next_at = time.monotonic() + EVERY
        self._fresh.discard(lease)
        if not stands:
            self.forget([lease])

    def forget(self, leases: Iterable[Lease]) -> None:
        """Drops what is kept of these jobs: they are over, or no longer ours."""
        if not self._pages:
            return
        with self._lock:
            for lease in leases:
                self._pages.pop(lease, None)
                self._fresh.discard(lease)

    def clear(self) -> None:
        """Drops everything."""
        self._pages.clear()
        self._fresh.clear()


def _check(data: bytes, task: Task) -> None:
    """Raises BadSignature for what is no record of ours: a job may write into what is not its own."""
    what = f"What {task.label} says of itself"
    if len(data) > _MOST:
        raise BadSignature(what=what, why="it is too large")
    decode(JobMeta, data, what)


def meta_of(record: bytes) -> bytes:
    """The meta in a record of the store, as msgpack. Raises BadSignature."""
    return bytes(decode(_Raw, record, "A job's meta").meta)
