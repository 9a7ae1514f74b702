"""What a panel asks the store for, seldom: how far running jobs say they are (`nbqueue.progress`), and who serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from nbqueue.client.lookup import job_meta
from nbqueue.client.lookup.waiting import Advice
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import BadSignature, NbqueueError
from nbqueue.store import pending

LOOK = 1.0  # seconds between two looks
SHOWN = 5  # jobs
BATCHES = 3  # of one panel that are asked about
LOOK_SERVING = 2.0  # seconds between two looks
LONELY = 2.0  # seconds without a worker, after which one is asked for


class JobProgress(NamedTuple):
    """A running job, and how far it says it is."""

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
        """From 0 to 1; None where the job does not know."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


class ProgressPoller:
    """Asks the store what running jobs say; for the painter's thread.

    A job keeps its place in the list, and a place is kept when its job has ended: what is seen beneath does not move.
    """

    def __init__(self) -> None:
        self._next = 0.0
        self._places: list[_Said | None] = []

    @property
    def going(self) -> tuple[JobProgress | None, ...]:
        """What was said last, place by place; None where no job is, or its end has been heard."""
        return tuple(None if each is None or each.ended else each.going for each in self._places)

    def look(self, batches: Sequence[BatchRef]) -> None:
        """Looks, if it is time. Never raises for a server that is away."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK
        moving = [batch for batch in batches if batch.state.tally.started and not batch.inline and not batch.state.gone]
        found: dict[tuple[str, int], _Said] = {}
        for batch in moving[:BATCHES]:
            try:
                told = [] if batch.session.asleep else batch.session.broker.noted(batch.id)
            except NbqueueError:
                return  # the collector's outage is told; what was known last stays
            for index, blob in sorted(told):
                if (one := _read(batch, index, blob)) is not None:
                    found[batch.id, index] = one
        self._arrange(found, sum(batch.state.tally.started for batch in moving))

    def _arrange(self, found: dict[tuple[str, int], _Said], started: int) -> None:
        places = [None if each is None else found.pop((each.batch.id, each.row), None) for each in self._places]
        if found or any(places):  # as many as run at a time: all of them may come to say something
            size = min(SHOWN, max(len(places), started))
            places += [None] * (size - len(places))
        others = iter(found.values())
        self._places = [next(others, None) if each is None else each for each in places]


class _Said(NamedTuple):
    """What a job said."""

    batch: BatchRef
    row: int
    going: JobProgress

    @property
    def ended(self) -> bool:
        return self.row in self.batch.state.outcomes


def _read(batch: BatchRef, index: int, blob: bytes) -> _Said | None:
    try:
        said = job_meta.opened(batch.session.sealer, batch.spec, batch.id, index, blob).progress
    except BadSignature:
        return None  # of someone else's making: not shown
    if said is None or not batch.state.holds(index):
        return None
    return _Said(batch, index, JobProgress(batch.job(index).id, *said))


# ---------------------------------------------------------------- who serves


class QueueWorkers(NamedTuple):
    """The live workers of a queue. `advice` says what is missing, `command` is the part of it that is to be run."""

    queue: str
    workers: int
    slots: int
    hosts: tuple[str, ...]
    advice: str = ""
    command: str = ""


class WorkersPoller:
    """Looks now and then who serves the batches of a queue; for the painter's thread, since it asks the store."""

    def __init__(self) -> None:
        self._next = 0.0
        self._lonely: float | None = None
        self.found: QueueWorkers | None = None

    def look(self, batches: Sequence[BatchRef]) -> None:
        """Brings `found` up to date, as long as one of these has not ended. Never raises for a server that is away."""
        running = [batch for batch in batches if not (batch.inline or batch.state.over or batch.state.gone)]
        now = time.monotonic()
        if not running or now < self._next or running[0].session.asleep:
            return
        self._next = now + LOOK_SERVING
        batch = next((each for each in running if each.state.tally.queued), running[0])
        session, state = batch.session, batch.state
        advice = Advice(session, state)
        try:
            mine = pending.Workers(session.broker).of(state.queue)
            why = advice.pending() if state.tally.queued else None
        except NbqueueError:
            return  # the collector's outage is told; what was known last stays
        hosts = tuple(dict.fromkeys(info.host for info in mine))
        found = QueueWorkers(state.queue, len(mine), sum(info.slots for info in mine), hosts)
        self._lonely = (self._lonely or now) if why is not None and why.reason != pending.BUSY else None
        if self._lonely is not None and now - self._lonely >= LONELY:
            found = found._replace(advice=advice.message(), command=advice.command())
        self.found = found
