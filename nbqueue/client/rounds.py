"""What running jobs say of how far they are (`nbqueue.progress`), read seldom, for a panel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nbqueue.client import notes
from nbqueue.client.job import Job
from nbqueue.errors import BadSignature, NbqueueError

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch

LOOK = 1.0  # seconds between two looks
SHOWN = 5  # jobs
BATCHES = 3  # of one panel that are asked about


class Going(NamedTuple):
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


class Rounds:
    """Asks the store what running jobs say; for the painter's thread."""

    def __init__(self) -> None:
        self._next = 0.0
        self._found: list[tuple[Batch[Any], int, Going]] = []

    @property
    def going(self) -> tuple[Going, ...]:
        """What was said last, of jobs of which no end has been heard since."""
        return tuple(going for batch, index, going in self._found if not batch.watch.has(index))

    def look(self, batches: Sequence[Batch[Any]]) -> None:
        """Looks, if it is time. Never raises for a server that is away."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK
        moving = [batch for batch in batches if batch.watch.tally.started and not batch.inline and not batch.watch.gone]
        found: list[tuple[Batch[Any], int, Going]] = []
        for batch in moving[:BATCHES]:
            try:
                told = [] if batch.session.asleep else batch.session.broker.noted(batch.id)
            except NbqueueError:
                return  # the collector's outage is told; what was known last stays
            found += [one for index, blob in sorted(told) if (one := _read(batch, index, blob)) is not None]
        self._found = found[:SHOWN]


def _read(batch: Batch[Any], index: int, blob: bytes) -> tuple[Batch[Any], int, Going] | None:
    try:
        said = notes.opened(batch.session.sealer, batch.spec, batch.id, index, blob).progress
    except BadSignature:
        return None  # of someone else's making: not shown
    job = Job(batch, index)
    return (batch, index, Going(job.id, *said)) if said is not None and job in batch else None
