"""A worker's standing in the store: joining, the heartbeat, and what happens when the lease ends.

Each renewed lease is told to the stables as a fence, a margin before its end: they freeze what runs there, since the
parent may be the one that is stuck.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from importlib import metadata

from nbqueue.errors import LeaseEnded
from nbqueue.model import DEFAULT_QUEUE, WorkerInfo, encode, new_id
from nbqueue.settings import host, python_version
from nbqueue.store.broker import Broker
from nbqueue.wire import Keyring
from nbqueue.worker import limits
from nbqueue.worker.aftermath import Aftermath
from nbqueue.worker.ears import Ears
from nbqueue.worker.ledger import Ledger
from nbqueue.worker.plan import ALL_QUEUES, Plan
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.stables import Stables

MOMENT = 0.02  # seconds at a time for what anyone may do: what is left goes on in the next turn, after our own work
LATE = 0.002  # seconds after its time that a due thing is done: not before, by any clock


@dataclass(slots=True)
class Tenure:
    """Joins, renews, reaps and promotes for one worker."""

    broker: Broker
    keyring: Keyring
    plan: Plan
    slots: int
    id: str
    ledger: Ledger
    settler: Settler
    stables: Stables
    ears: Ears
    aftermath: Aftermath
    score: Score
    next_beat: float = 0.0
    next_due: float = math.inf  # when something scheduled is due, as far as we know
    estranged: bool = False  # whether the store holds jobs in our name that we do not know
    queues: tuple[str, ...] = field(init=False)
    _work: str = ""  # what was told of it last
    _reaps: bool = False  # whether the jobs of lost workers are to be looked for

    def __post_init__(self) -> None:
        self.queues = self.plan.queues

    @property
    def name(self) -> str:
        """The worker's name for people; its id is that and a random part."""
        return self.plan.name or host()

    def join(self) -> None:
        """Joins under the present id; again, to serve other queues."""
        self.queues = queues_of(self.plan, self.broker)
        info = describe(self.plan, self.id, self.slots, self.queues, self.keyring)
        before, asked = limits.fence_clock(), time.monotonic()
        plan = self.plan
        now = self.broker.join(
            self.id, encode(info), self.queues, self.slots, lease=plan.lease, beat=plan.beat, host=info.host
        )
        self.settler.clock(now, asked)
        self._work = ""
        self._leased(before)
        self.ears.attend(self.id)

    def _leased(self, before: float) -> None:
        lease = self.plan.lease
        self.stables.set_fence(before + lease - min(3.0, lease * 0.15))
        self.next_beat = time.monotonic() + self.plan.beat

    def beat(self) -> None:
        """Renews the lease, stops what is no longer ours, and does what anyone may do: reap, promote."""
        before, asked = limits.fence_clock(), time.monotonic()
        tasks = list(self.ledger.tasks.values())
        work = self.settler.work
        news = work if work != self._work else ""
        renewed = self.broker.renew(self.id, [task.lease for task in tasks], lease=self.plan.lease, work=news)
        self._work = work
        fallen = set(renewed.fallen)
        self.aftermath.fallen(task for task in tasks if task.lease in fallen)
        # Always: a stable may have reached its fence while the renewal was on its way.
        self.stables.thaw()
        self.settler.clock(renewed.now_us, asked)
        self._leased(before)
        self.estranged = renewed.held > len(tasks) + self.settler.pending + len(self.ledger.parting)
        if ALL_QUEUES in self.plan.queues and set(self.broker.queues()) - set(self.queues):
            self.join()
        self._reaps = True
        self.promote()

    def promote(self) -> None:
        """Does what is due, for a moment, and notes when the next thing will be."""
        if self._reaps:
            self._reaps = self.broker.reap(seconds=MOMENT).more
        due = self.broker.promote(seconds=MOMENT)
        self.next_due = math.inf
        self.due_in(0.0 if self._reaps else due)

    def due_in(self, seconds: float | None) -> None:
        """Something is due in so many seconds; None: nothing that is known of."""
        if seconds is not None:
            self.next_due = min(self.next_due, time.monotonic() + max(0.0, seconds) + LATE)

    def rejoin(self, why: LeaseEnded) -> None:
        """Too late: our jobs belong to others. What runs is killed before anything new begins."""
        jobs, outcomes = len(self.ledger.tasks), self.settler.forget()
        self.score.line("!!", f"{why} {jobs} jobs were stopped, {outcomes} outcomes dropped")
        self.stables.close()
        self.stables.refusals.take()
        self.aftermath.clear()
        self.settler.notes.clear()
        for task in list(self.ledger.tasks.values()):
            self.ledger.drop(task)
        self.ledger.parting.clear()
        self.id = self.settler.worker = new_id(self.name)
        self.estranged = False
        self.join()


def queues_of(plan: Plan, broker: Broker) -> tuple[str, ...]:
    """The queues to serve: those named, or all that there are by now."""
    if ALL_QUEUES not in plan.queues:
        return plan.queues
    return tuple(sorted({DEFAULT_QUEUE, *broker.queues()}))


def describe(plan: Plan, worker: str, slots: int, queues: tuple[str, ...], keyring: Keyring) -> WorkerInfo:
    """What a worker says of itself."""
    return WorkerInfo(
        id=worker,
        name=plan.name or host(),
        host=host(),
        pid=os.getpid(),
        slots=slots,
        queues=queues,
        python=python_version(),
        keys=keyring.ids,
        version=metadata.version("nbqueue"),
        local=plan.local,
        born=time.time(),
        lease=plan.lease,
    )
