"""How a worker ends: a burst that is over, its last job, too long without one, or because it was asked to."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from nbqueue.store import pending
from nbqueue.worker.aftermath import Aftermath
from nbqueue.worker.claims import Claims
from nbqueue.worker.plan import Plan
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.stables import Stables
from nbqueue.worker.tenure import Tenure


@dataclass(slots=True)
class Leaving:
    """Judges whether there is anything left to do; `over` once the worker has left."""

    plan: Plan
    tenure: Tenure
    claims: Claims
    settler: Settler
    stables: Stables
    aftermath: Aftermath
    score: Score
    over: bool = False
    next_try: float = 0.0
    idle_since: float = field(default_factory=time.monotonic)
    _drains_until: float | None = None
    _began: float = field(default_factory=time.monotonic)

    def idle(self) -> bool:
        """Whether there is nothing to do, and nothing of a job is left to be told."""
        return not self.stables.ledger.tasks and not self.settler.pending and not self.aftermath.pending

    def times(self, now: float) -> list[float]:
        """Seconds until an idle worker has something to judge."""
        found = []
        if self.plan.burst:
            found.append(self.next_try - now)
        if self.plan.max_idle is not None:
            found.append(self.idle_since + self.plan.max_idle - now)
        return found

    def rest(self) -> None:
        """Nothing to do: leaves where that was asked for."""
        claims, plan = self.claims, self.plan
        if plan.max_jobs is not None and claims.served >= plan.max_jobs:
            self._leave("it has done its jobs")
        elif claims.thirsty:
            return
        elif plan.burst and self._may_leave():
            self._leave("all workers are suspended" if claims.suspended else "nothing is left to do")
        elif plan.max_idle is not None and self._idled() >= plan.max_idle and not self._wanted():
            self._leave(f"idle for {self._idled():.0f} s")

    def _idled(self) -> float:
        return time.monotonic() - self.idle_since

    def _may_leave(self) -> bool:
        """Whether a burst is over: the store refuses while anything may still come back."""
        now = time.monotonic()
        if now < self.next_try:
            return False
        self.next_try = now + 0.25
        if not self.claims.served and now - self._began < self.plan.patience:
            return False
        if self.tenure.broker.leave(self.tenure.id, burst=True):
            return True
        self.claims.thirsty = True
        return False

    def _wanted(self) -> bool:
        """Whether a private server's worker must stay, because a notebook is still connected."""
        if not self.plan.local or self.tenure.broker.client_count() <= self.tenure.ears.connections:
            return False
        self.idle_since = time.monotonic()
        return True

    def _leave(self, why: str) -> None:
        self.tenure.broker.leave(self.tenure.id)
        served = self.claims.served
        if served:
            self.score.line("--", f"leaves: {why}; jobs served: {served}")
        else:
            where = f"on {self.plan.server}, queues {' '.join(self.tenure.queues)}"
            self.score.line("--", f"leaves: {why}; no job was found {where}")
        for text in self.claims.lacks:
            self.score.line("!!", f"left for others: {text}")
        if self.plan.burst and (text := pending.elsewhere(self.tenure.broker, self.tenure.queues)):
            self.score.line("!!", f"left for others: {text}")
        self.over = True
        if self.plan.local and not self._wanted():
            self.tenure.broker.shutdown()

    # ------------------------------------------------------------ because it was asked to

    def drain(self, stop_at: float) -> None:
        """Nothing new begins; what runs, and callbacks, may finish until then; the rest is given back."""
        now, ledger = time.monotonic(), self.stables.ledger
        if self._drains_until != stop_at:
            self._drains_until = stop_at
            # Told from afar, by a message: then no scheduler is at work, and a failure is one.
            self.settler.draining = stop_at != math.inf
            left = f" for {max(0.0, stop_at - now):.0f} s" if self.settler.draining else ", until they are over"
            self.score.line("--", f"asked to stop; jobs that may run on{left}: {len(ledger.begun())}")
            self.stables.drain()
        self.stables.end_slow_loads()  # of those that callbacks wait for
        self._give_back_unsettled()
        if not self.idle() and now < stop_at:
            return
        self.stables.close()
        begun = [task.lease for task in ledger.tasks.values()]
        if begun:
            self.settler.notes.save(begun)
            self.tenure.broker.release(self.tenure.id, begun, begun=frozenset(begun))
        while self.settler.flush():
            pass
        self.aftermath.cut()
        self.tenure.broker.leave(self.tenure.id)
        self.score.line("--", f"stopped; {len(begun)} running jobs were given back")
        self.over = True

    def _give_back_unsettled(self) -> None:
        """Releases failures that may be the scheduler's doing, and all that has not begun."""
        failed = self.settler.withdraw() if self.settler.draining else []
        waiting = [*self.stables.ledger.all_waiting(), *self.stables.refusals.take()]
        if failed or waiting:
            leases = [*failed, *(task.lease for task in waiting)]
            self.tenure.broker.release(self.tenure.id, leases, begun=frozenset(failed))
            for task in waiting:
                self.stables.ledger.drop(task)
