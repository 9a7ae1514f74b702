"""Who serves a batch: the workers of its queue, and what to run where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from nbqueue.errors import NbqueueError
from nbqueue.model import WorkerInfo, decode

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch

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
    """Looks now and then who serves a batch; for the painter's thread, since it asks the store."""

    def __init__(self, batch: Batch[Any]) -> None:
        self._batch = batch
        self._next = 0.0
        self._lonely: float | None = None
        self.found: Serving | None = None

    def look(self) -> None:
        """Brings `found` up to date. Never raises for a server that is away."""
        session, watch, now = self._batch.session, self._batch.watch, time.monotonic()
        if now < self._next or session.asleep or self._batch.inline or watch.over or watch.gone:
            return
        self._next = now + LOOK
        try:
            infos = [decode(WorkerInfo, view.info, "A worker") for view in session.broker.workers() if view.left > 0]
        except NbqueueError:
            return  # the collector's outage is told; what was known last stays
        mine = [info for info in infos if watch.queue in info.queues]
        fit = [info for info in mine if session.sealer.keyring.ids[0] in info.keys]
        hosts = tuple(dict.fromkeys(info.host for info in mine))
        found = Serving(watch.queue, len(mine), sum(info.slots for info in mine), hosts)
        self._lonely = None if fit or not watch.tally.queued else self._lonely or now
        if self._lonely is not None and now - self._lonely >= LONELY:
            found = self._advised(found)
        self.found = found

    def _advised(self, found: Serving) -> Serving:
        from nbqueue.client.waiting import Advice

        advice = Advice(self._batch.session, self._batch.watch)
        return found._replace(advice=advice.message(), command=advice.command())
