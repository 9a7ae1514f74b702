"""Who serves a batch: the workers of its queue, and what to run where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from nbqueue.client.lookup.waiting import Advice
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import NbqueueError
from nbqueue.store import pending

LOOK = 2.0  # seconds between two looks
LONELY = 2.0  # seconds without a worker, after which one is asked for


class Serving(NamedTuple):
    """The live workers of a queue. `advice` says what is missing, `command` is the part of it that is to be run."""

    queue: str
    workers: int
    slots: int
    hosts: tuple[str, ...]
    advice: str = ""
    command: str = ""


class Lookout:
    """Looks now and then who serves the batches of a queue; for the painter's thread, since it asks the store."""

    def __init__(self) -> None:
        self._next = 0.0
        self._lonely: float | None = None
        self.found: Serving | None = None

    def look(self, batches: Sequence[BatchRef]) -> None:
        """Brings `found` up to date, as long as one of these has not ended. Never raises for a server that is away."""
        running = [batch for batch in batches if not (batch.inline or batch.watch.over or batch.watch.gone)]
        now = time.monotonic()
        if not running or now < self._next or running[0].session.asleep:
            return
        self._next = now + LOOK
        batch = next((each for each in running if each.watch.tally.queued), running[0])
        session, watch = batch.session, batch.watch
        advice = Advice(session, watch)
        try:
            mine = pending.Workers(session.broker).of(watch.queue)
            why = advice.pending() if watch.tally.queued else None
        except NbqueueError:
            return  # the collector's outage is told; what was known last stays
        hosts = tuple(dict.fromkeys(info.host for info in mine))
        found = Serving(watch.queue, len(mine), sum(info.slots for info in mine), hosts)
        self._lonely = (self._lonely or now) if why is not None and why.reason != pending.BUSY else None
        if self._lonely is not None and now - self._lonely >= LONELY:
            found = found._replace(advice=advice.message(), command=advice.command())
        self.found = found
