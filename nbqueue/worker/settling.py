"""From a ride to a settled outcome.

Failures wait a moment before they settle: where a scheduler ends a job it sends SIGTERM to every process at once, and
what fails then did not fail by itself.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from nbqueue.checks import size_text
from nbqueue.errors import NoServer
from nbqueue.model import CallResult, Cause, Failure, Outcome, Rerun, State, encode
from nbqueue.store.broker import Broker
from nbqueue.store.records import Lease, Settled
from nbqueue.wire import OUTCOME, TAIL, Sealer
from nbqueue.worker.ledger import Task
from nbqueue.worker.notes import Notepad
from nbqueue.worker.score import Score

HELD_BACK = 0.2  # seconds that a failure waits
LINGER = 0.02  # seconds that a success may wait for others to settle with, while short calls go on
BIG = 1 << 20  # bytes of an outcome that settles by itself
TRIES = 3  # at a large outcome, between which the server answers otherwise
ENOUGH = 200  # successes that wait for no more
AT_ONCE = 1_000  # outcomes settled in one turn
RERUN = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.CRASHED, Cause.OOM})  # causes that another run may not meet
MOST_PENDING = 20_000  # outcomes in memory while the server is away; then the worker claims and starts no more
MOST_BYTES = 256 << 20  # of them
HEAVY = 1 << 16  # bytes of a value that is not kept beside its outcome, unless a callback will want it


AGAIN, STALE, DAMAGED = "AGAIN", "STALE", "DAMAGED"  # answers of settle
BACK = "BACK"  # not settled: the job was given back


@dataclass(slots=True)
class Settler:
    """Collects rides and settles them in batches."""

    broker: Broker
    sealer: Sealer
    score: Score
    notes: Notepad
    host: str
    worker: str
    told: Callable[[Task, CallResult, str], None] = lambda _task, _ride, _answer: None  # who hears what became of each
    offset: float = 0.0  # Redis's clock minus this machine's monotonic clock, in microseconds
    draining: bool = False
    brisk: bool = False  # short calls go on: outcomes come soon that can settle together
    weight: int = 0  # bytes that are pending
    finished: int = 0  # runs,
    failed: int = 0  # and those that failed,
    seconds: float = 0.0  # and how long both took
    _since: float = 0.0  # when the first of `_ready` came
    _ready: list[Settled] = field(default_factory=list)
    _held: list[tuple[float, Task, Settled]] = field(default_factory=list)
    _heard: int = 0  # how often the server has told the time
    _tries: dict[tuple[str, int, str], tuple[int, int]] = field(default_factory=dict)  # of large results; see _heard
    _told: dict[tuple[str, int, str], tuple[Task, CallResult]] = field(default_factory=dict)

    def add(self, task: Task, ride: CallResult, tail: bytes) -> None:
        """Takes an outcome in."""
        record = self._record(task, ride, tail)
        self.weight += _weight(record)
        if ride.state is not State.FAILED:
            if not self._ready:
                self._since = time.monotonic()
            self._ready.append(record)
        else:
            self._held.append((time.monotonic(), task, record))
        if ride.value is not None and len(ride.value) > HEAVY and "success" not in task.spec.hooks:
            ride = msgspec.structs.replace(ride, value=None)
        self._told[record.batch, record.index, record.token] = (task, ride)

    def _record(self, task: Task, ride: CallResult, tail: bytes) -> Settled:
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
            ride.spilled,
            task.spec.version,
        )
        blob = seal(OUTCOME, task.batch, task.index, encode(outcome), attempt)
        if tail:
            tail = seal(TAIL, task.batch, task.index, tail, attempt)
        again = _rerun(task, ride)
        repeat = task.spec.repeat if ride.state is State.FINISHED else None
        return Settled(task.batch, task.index, task.token, ride.state, blob, tail, again, repeat)

    def clock(self, now_us: int, asked: float) -> None:
        """Takes Redis's time, asked for at a monotonic time: outcomes are dated by it, not by this machine's clock.

        The answer was some time on its way. What is known stays as it is where it agrees with that, or the jobs of one
        worker would seem to have begun in another order than they did.
        """
        least, most = now_us - time.monotonic() * 1e6, now_us - asked * 1e6
        self.offset = min(max(self.offset, least), most)
        self._heard += 1

    @property
    def work(self) -> str:
        """What has been done, as a heartbeat tells it."""
        return f"{self.finished} {self.failed} {self.seconds:.3f}"

    @property
    def now_us(self) -> float:
        """The time on Redis's clock."""
        return time.monotonic() * 1e6 + self.offset

    @property
    def pending(self) -> int:
        """Outcomes not settled yet."""
        return len(self._ready) + len(self._held)

    @property
    def leases(self) -> set[Lease]:
        """The jobs of the outcomes not settled yet."""
        return {Lease(*place) for place in self._told}

    @property
    def full(self) -> bool:
        """Whether so much waits for the server that nothing should be added."""
        return self.pending > MOST_PENDING or self.weight > MOST_BYTES

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

    def flush(self, *, patient: bool = True) -> bool:
        """Settles what is ready, so many at once; raises SetupError when the server cannot take it, and keeps it.

        Failures wait a moment, unless it is not `patient`. Answers whether more is ready.
        """
        if not self.draining:
            ripe = time.monotonic() - (HELD_BACK if patient else 0.0)
            while self._held and self._held[0][0] <= ripe:
                self._ready.append(self._held.pop(0)[2])
        if not self._ready or self._lingers():
            return False
        some = self._ready[:AT_ONCE]
        self._settle([record for record in some if len(record.blob) <= BIG])
        for record in [record for record in some if len(record.blob) > BIG]:
            try:
                self._settle([record])
            except NoServer:
                self._give_up(record)
                raise
        return bool(self._ready)

    def _settle(self, records: list[Settled]) -> None:
        if not records:
            return
        # First what they said of themselves: whoever sees the outcome sees that too.
        self.notes.save(Lease(record.batch, record.index, record.token) for record in records)
        answers = self.broker.settle(self.worker, records)
        done = set(map(id, records))
        self._ready = [record for record in self._ready if id(record) not in done]
        self.weight -= sum(map(_weight, records))
        self._report(records, answers)

    def _give_up(self, record: Settled) -> None:
        """A large result that cannot be sent in time, again and again, would keep its worker from everything else."""
        place = (record.batch, record.index, record.token)
        tries, heard = self._tries.get(place, (0, -1))
        if heard == self._heard:
            return  # it is away, or loads its data: that is no fault of this result
        self._tries[place] = tries + 1, self._heard
        if tries + 1 < TRIES:
            return
        del self._tries[place]
        task, ride = self._told[place]
        size = size_text(len(record.blob))
        text = f"the result of {size} could not be sent in {TRIES} tries: write it to a file, and return its path"
        failure = Failure("nbqueue.errors.TooLarge", text)
        ride = CallResult(
            State.FAILED, Cause.TOO_LARGE, ride.started, ride.ended, ride.cpu_s, ride.max_rss_kb, failure=failure
        )
        self._told[place] = task, ride
        small = self._record(task, ride, b"")
        self.weight += _weight(small) - _weight(record)
        self._ready = [small if each is record else each for each in self._ready]

    def withdraw(self) -> list[Lease]:
        """The failures not settled, taken out: a worker that drains gives these jobs back."""
        tasks = [task for _, task, _ in self._held]
        self.weight -= sum(_weight(record) for _, _, record in self._held)
        self._held.clear()
        for task in tasks:
            _, ride = self._told.pop((task.batch, task.index, task.token))
            self.told(task, ride, BACK)
        return [task.lease for task in tasks]

    def forget(self) -> int:
        """Drops all that is pending, because its leases have ended; returns how many that were."""
        count, self.weight = self.pending, 0
        self._ready.clear()
        self._held.clear()
        self._told.clear()
        self._tries.clear()
        return count

    def _report(self, done: list[Settled], answers: list[str]) -> None:
        fine: dict[str, list[int]] = defaultdict(list)
        singles: dict[str, bool] = {}
        odd: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for record, answer in zip(done, answers, strict=True):
            place = (record.batch, record.index, record.token)
            task, ride = self._told.pop(place)
            self._tries.pop(place, None)
            task.over = answer not in (STALE, AGAIN)
            if answer == STALE:
                odd[record.batch] += 1
            elif answer == DAMAGED:
                lost[record.batch] += 1
            elif ride.state is State.FINISHED and answer != AGAIN:
                fine[record.batch].append(record.index)
                singles[record.batch] = task.spec.single
            else:
                self.score.line("<-", _words(task, ride, answer))
            if answer not in (STALE, DAMAGED) and ride.state is not State.CANCELED:
                self.finished += ride.state is State.FINISHED
                self.failed += ride.state is State.FAILED
                self.seconds += ride.ended - ride.started
            self.told(task, ride, answer)
        for batch, indexes in fine.items():
            self.score.group("<-", batch, indexes, singles[batch], "ok")
        for batch, count in odd.items():
            self.score.line("--", f"{batch}: {count} outcomes came too late and were dropped")
        for batch, count in lost.items():
            self.score.line("!!", f"{batch}: its keys are damaged, and did not take {count} outcomes")


def _weight(record: Settled) -> int:
    return len(record.blob) + len(record.tail)


def _rerun(task: Task, ride: CallResult) -> Rerun | None:
    """What is asked of the store for a job that failed: a Retry that it returned, or that of its submit."""
    if ride.state is not State.FAILED:
        return None
    return ride.rerun or (task.spec.retry if ride.cause in RERUN else None)


def _words(task: Task, ride: CallResult, answer: str) -> str:
    """The log's words for what became of a job, but for an ordinary success."""
    kind = ride.failure.type if ride.failure else ""  # the message may hold what the user keeps secret
    what = "ok" if ride.state is State.FINISHED else f"{ride.state} {ride.cause} {kind}".rstrip()
    return f"{task.label} {what}" + (", runs again" if answer == AGAIN else "")
