"""What a panel polls from the server: the progress of running jobs (`nbqueue.progress`), and the workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from nbqueue.client.lookup import job_meta
from nbqueue.client.lookup.waiting import Advice
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import BadSignature, NbqueueError
from nbqueue.store import pending

PERIOD = 1.0  # seconds between two polls of progress
SHOWN = 5  # jobs that are shown
BATCHES = 3  # batches of one panel that are polled
WORKERS_PERIOD = 2.0  # seconds between two polls of the workers
PATIENCE = 2.0  # seconds without a worker, after which the panel gives advice


class JobProgress(NamedTuple):
    """The progress that a running job reported."""

    job: str
    done: float
    total: float | None
    text: str

    @property
    def words(self) -> str:
        """`40 of 100, reading`."""
        count = f"{self.done:,.6g}" + (f" of {self.total:,.6g}" if self.total is not None else "")
        return f"{count}, {self.text}" if self.text else count

    @property
    def share(self) -> float | None:
        """From 0 to 1; None without a total."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


class ProgressPoller:
    """Polls the progress of running jobs; used by the render thread.

    A job keeps its line, and the line stays empty when the job has ended, so that the layout below does not move.
    """

    def __init__(self) -> None:
        self._next = 0.0
        self._lines: list[_Found | None] = []

    @property
    def running(self) -> tuple[JobProgress | None, ...]:
        """The latest progress, line by line; None for a line without a running job."""
        return tuple(None if each is None or each.ended else each.running for each in self._lines)

    def poll(self, batches: Sequence[BatchRef]) -> None:
        """Polls if PERIOD is over. Never raises if the server is away."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PERIOD
        moving = [batch for batch in batches if batch.state.tally.started and not batch.inline and not batch.state.gone]
        found: dict[tuple[str, int], _Found] = {}
        for batch in moving[:BATCHES]:
            try:
                metas = [] if batch.session.asleep else batch.session.broker.noted(batch.id)
            except NbqueueError:
                return  # the panel shows the collector's outage; the last progress stays
            for index, blob in sorted(metas):
                if (one := _read(batch, index, blob)) is not None:
                    found[batch.id, index] = one
        self._arrange(found, sum(batch.state.tally.started for batch in moving))

    def _arrange(self, found: dict[tuple[str, int], _Found], started: int) -> None:
        lines = [None if each is None else found.pop((each.batch.id, each.row), None) for each in self._lines]
        if found or any(lines):  # a line for each running job: all may report progress
            size = min(SHOWN, max(len(lines), started))
            lines += [None] * (size - len(lines))
        others = iter(found.values())
        self._lines = [next(others, None) if each is None else each for each in lines]


class _Found(NamedTuple):
    """The progress of a job, as read."""

    batch: BatchRef
    row: int
    running: JobProgress

    @property
    def ended(self) -> bool:
        return self.row in self.batch.state.outcomes


def _read(batch: BatchRef, index: int, blob: bytes) -> _Found | None:
    try:
        progress = job_meta.opened(batch.session.sealer, batch.spec, batch.id, index, blob).progress
    except BadSignature:
        return None  # not signed by us: not shown
    if progress is None or not batch.state.holds(index):
        return None
    return _Found(batch, index, JobProgress(batch.job(index).id, *progress))


# ---------------------------------------------------------------- workers


class QueueWorkers(NamedTuple):
    """The live workers of a queue. `advice` says what is missing; `command` is the command in it."""

    queue: str
    workers: int
    slots: int
    hosts: tuple[str, ...]
    advice: str = ""
    command: str = ""


class WorkersPoller:
    """Polls the workers of one queue; used by the render thread."""

    def __init__(self) -> None:
        self._next = 0.0
        self._without_workers: float | None = None
        self.found: QueueWorkers | None = None

    def poll(self, batches: Sequence[BatchRef]) -> None:
        """Updates `found` while one of the batches runs. Never raises if the server is away."""
        running = [batch for batch in batches if not (batch.inline or batch.state.over or batch.state.gone)]
        now = time.monotonic()
        if not running or now < self._next or running[0].session.asleep:
            return
        self._next = now + WORKERS_PERIOD
        batch = next((each for each in running if each.state.tally.queued), running[0])
        session, state = batch.session, batch.state
        advice = Advice(session, state)
        try:
            mine = pending.Workers(session.broker).of(state.queue)
            why = advice.pending() if state.tally.queued else None
        except NbqueueError:
            return  # the panel shows the collector's outage; the last workers stay
        hosts = tuple(dict.fromkeys(info.host for info in mine))
        found = QueueWorkers(state.queue, len(mine), sum(info.slots for info in mine), hosts)
        self._without_workers = (
            (self._without_workers or now) if why is not None and why.reason != pending.BUSY else None
        )
        if self._without_workers is not None and now - self._without_workers >= PATIENCE:
            found = found._replace(advice=advice.message(), command=advice.command())
        self.found = found
