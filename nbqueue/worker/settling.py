"""From a ride to a settled outcome.

Failures wait a moment before they settle: where a scheduler ends a job it sends SIGTERM to every process at once, and
what fails then did not fail by itself.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from nbqueue.model import Outcome, Ride, State, encode
from nbqueue.store.broker import Broker
from nbqueue.store.records import Lease, Settled
from nbqueue.wire import OUTCOME, TAIL, Sealer
from nbqueue.worker.ledger import Task
from nbqueue.worker.score import Score

HELD_BACK = 0.2  # seconds that a failure waits
LINGER = 0.005  # seconds that a success may wait for others to settle with, while short calls go on
ENOUGH = 200  # successes that wait for no more
MOST_PENDING = 20_000  # outcomes in memory while the server is away; then the worker claims no more


@dataclass(slots=True)
class Settler:
    """Collects rides and settles them in batches."""

    broker: Broker
    sealer: Sealer
    score: Score
    host: str
    worker: str
    offset: float = 0.0  # Redis's clock minus this machine's monotonic clock, in microseconds
    draining: bool = False
    brisk: bool = False  # short calls go on: outcomes come soon that can settle together
    settled: int = 0
    _since: float = 0.0  # when the first of `_ready` came
    _ready: list[Settled] = field(default_factory=list)
    _held: list[tuple[float, Task, Settled]] = field(default_factory=list)
    _told: dict[tuple[str, int, str], tuple[Task, Ride]] = field(default_factory=dict)

    def add(self, task: Task, ride: Ride, tail: bytes) -> None:
        """Takes an outcome in."""
        record = self._record(task, ride, tail)
        if ride.state is State.FINISHED:
            if not self._ready:
                self._since = time.monotonic()
            self._ready.append(record)
        else:
            self._held.append((time.monotonic(), task, record))
        self._told[record.batch, record.index, record.token] = (task, ride)

    def _record(self, task: Task, ride: Ride, tail: bytes) -> Settled:
        seal, attempt = self.sealer.seal, task.attempt
        outcome = Outcome(
            ride.state,
            ride.cause,
            attempt,
            int(ride.started * 1e6 + self.offset),
            max(0, int((ride.ended - ride.started) * 1e6)),
            int(ride.cpu_s * 1e6),
            ride.max_rss_kb,
            ride.code,
            self.host,
            self.worker,
            ride.failure,
            ride.value,
        )
        blob = seal(OUTCOME, task.batch, task.index, encode(outcome), attempt)
        if tail:
            tail = seal(TAIL, task.batch, task.index, tail, attempt)
        return Settled(task.batch, task.index, task.token, ride.state, blob, tail)

    @property
    def pending(self) -> int:
        """Outcomes not settled yet."""
        return len(self._ready) + len(self._held)

    @property
    def due(self) -> float | None:
        """Seconds until something is to be settled; None when nothing is pending."""
        if self._ready:
            return self._lingers()
        if self._held:
            return max(0.0, self._held[0][0] + HELD_BACK - time.monotonic())
        return None

    def _lingers(self) -> float:
        if not self.brisk or len(self._ready) >= ENOUGH:
            return 0.0
        return max(0.0, self._since + LINGER - time.monotonic())

    def flush(self) -> None:
        """Settles what is ready; raises SetupError when the server cannot take it, and keeps it."""
        if not self.draining:
            ripe = time.monotonic() - HELD_BACK
            while self._held and self._held[0][0] <= ripe:
                self._ready.append(self._held.pop(0)[2])
        if not self._ready or self._lingers():
            return
        answers = self.broker.settle(self.worker, self._ready)
        done, self._ready = self._ready, []
        self.settled += len(done)
        self._report(done, answers)

    def withdraw(self) -> list[Lease]:
        """The failures not settled, taken out: a worker that drains gives these jobs back."""
        leases = [task.lease for _, task, _ in self._held]
        for _, task, _ in self._held:
            self._told.pop((task.batch, task.index, task.token), None)
        self._held.clear()
        return leases

    def forget(self) -> int:
        """Drops all that is pending, because its leases have ended; returns how many that were."""
        count = self.pending
        self._ready.clear()
        self._held.clear()
        self._told.clear()
        return count

    def _report(self, done: list[Settled], answers: list[str]) -> None:
        fine: dict[str, list[int]] = defaultdict(list)
        singles: dict[str, bool] = {}
        odd: Counter[str] = Counter()
        for record, answer in zip(done, answers, strict=True):
            task, ride = self._told.pop((record.batch, record.index, record.token))
            if answer == "STALE":
                odd[record.batch] += 1
            elif ride.state is State.FINISHED:
                fine[record.batch].append(record.index)
                singles[record.batch] = task.spec.single
            else:
                kind = ride.failure.type if ride.failure else ""  # the message may hold what the user keeps secret
                self.score.line("<-", f"{task.label} failed {ride.cause} {kind}".rstrip())
        for batch, indexes in fine.items():
            self.score.group("<-", batch, indexes, singles[batch], "ok")
        for batch, count in odd.items():
            self.score.line("--", f"{batch}: {count} outcomes came too late and were dropped")
