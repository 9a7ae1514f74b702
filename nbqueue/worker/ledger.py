"""What a worker holds: every claimed job, from its claim to its settling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbqueue.model import Spec, runs_left
from nbqueue.store.records import Lease

if TYPE_CHECKING:
    from nbqueue.worker.stall import Stall

TARGET = 0.25  # seconds of work a slot that are held ahead, as jobs prove short
SHORT = 0.1  # seconds: calls under this are sent ahead, so that no slot waits for us
MOST_HELD = 4_000  # jobs held ahead, however short
MOST_PACES = 1_000  # functions of which a worker remembers how long their calls take
MOST_CLAIMED = 1_000  # jobs a claim: no script touches more


@dataclass(slots=True, eq=False)
class Task:
    """One claimed job."""

    seq: int
    batch: str
    index: int
    attempt: int
    token: str
    payload: bytes
    spec: Spec
    since: float  # monotonic; when it was claimed, came back from a stable, or went to one
    queue: str = ""
    meta: bytes = b""  # a msgpack map: what is kept with the job
    retried: int = 0  # runs that failures have cost,
    repeated: int = 0  # and successes
    alone: bool = False  # its stable died under it: it gets a stable of its own
    deaths: int = 0  # how many stables died under it
    begun: bool = False  # known to be running
    stopped: bool = False  # someone ended it while it ran
    over: bool = False  # its outcome is settled
    stall: Stall | None = None
    slot: int = -1

    @property
    def apart(self) -> bool:
        """Whether it has a process for itself, and a RUN: it has a stable too, or callbacks follow it."""
        return self.alone or bool(self.spec.hooks)

    @property
    def lease(self) -> Lease:
        """What names this claim in the store."""
        return Lease(self.batch, self.index, self.token)

    @property
    def left(self) -> tuple[int | None, int | None]:
        """How many more runs there are after failures, and after successes."""
        return runs_left(self.spec.retry, self.retried), runs_left(self.spec.repeat, self.repeated)

    @property
    def worker(self) -> str:
        """The id of the worker that claimed it."""
        return self.token.rpartition(":")[0]

    @property
    def label(self) -> str:
        """The job's id."""
        return self.batch if self.spec.single else f"{self.batch}:{self.index}"


@dataclass(slots=True)
class Pace:
    """How long the calls of one function take: a moving average, in seconds; None before the first."""

    mean: float | None = None

    def saw(self, seconds: float) -> None:
        """Takes one more call in. Rising is believed faster than falling: a chunk too large hurts more.

        But a far shorter call is believed, too: the one before it may have paid for what all have since.
        """
        if self.mean is None:
            self.mean = seconds
        else:
            slowly = self.mean / 4 < seconds <= self.mean
            self.mean += (seconds - self.mean) * (0.05 if slowly else 0.3)

    def chunk(self) -> int:
        """How many calls make up TARGET seconds of work."""
        if self.mean is None:
            return 1
        return max(1, min(MOST_HELD, int(TARGET / max(self.mean, 1e-6))))


@dataclass(slots=True)
class Ledger:
    """The tasks of a worker: `waiting` in its own hands by batch, the others with a stable."""

    slots: int
    tasks: dict[int, Task] = field(default_factory=dict)
    waiting: dict[str, deque[Task]] = field(default_factory=dict)
    riding: list[dict[int, Task]] = field(default_factory=list)  # by slot: with a stable, in order
    trailing: dict[int, Task] = field(default_factory=dict)  # over, but callbacks are to come: their slots are taken
    paces: dict[str, Pace] = field(default_factory=dict)
    parting: list[Lease] = field(default_factory=list)  # to be given back, until the store has said that they are
    _seq: int = 0

    def __post_init__(self) -> None:
        self.riding = [{} for _ in range(self.slots)]

    def add(self, tasks: Iterable[Task]) -> None:
        """Takes claimed tasks in, to wait."""
        for task in tasks:
            self.tasks[task.seq] = task
            self.waiting.setdefault(task.batch, deque()).append(task)

    def next_seq(self) -> int:
        """A number for a new task, unique in this worker."""
        self._seq += 1
        return self._seq

    def mount(self, task: Task, slot: int, stall: Stall) -> None:
        """Notes that a waiting task has gone to a stable."""
        task.slot, task.stall, task.since = slot, stall, time.monotonic()
        self.riding[slot][task.seq] = task

    def dismount(self, task: Task) -> None:
        """Notes that a task is no longer with a stable."""
        if task.slot >= 0:
            self.riding[task.slot].pop(task.seq, None)
        task.slot, task.stall, task.begun = -1, None, False

    def put_back(self, task: Task) -> None:
        """A task that its stable has not begun waits again, before the others of its batch."""
        self.dismount(task)
        task.since = time.monotonic()
        self.waiting.setdefault(task.batch, deque()).appendleft(task)

    def drop(self, task: Task) -> None:
        """Forgets a task that is settled, released, or no longer ours."""
        self.dismount(task)
        self.tasks.pop(task.seq, None)
        queue = self.waiting.get(task.batch)
        if queue is not None and task in queue:
            queue.remove(task)
            if not queue:
                del self.waiting[task.batch]

    def done(self, task: Task) -> None:
        """Forgets a task that has just come from its stable with an outcome: the short way, for the hot path."""
        self.riding[task.slot].pop(task.seq, None)
        del self.tasks[task.seq]

    def trail(self, task: Task) -> None:
        """Notes that a task is over, and that something is to be done about its end."""
        self.tasks.pop(task.seq, None)
        if task.slot >= 0:
            self.riding[task.slot].pop(task.seq, None)
        self.trailing[task.seq] = task

    def take(self, batch: str, count: int) -> list[Task]:
        """The first waiting tasks of a batch, out of the waiting; a task that must run alone ends the row."""
        queue = self.waiting[batch]
        taken = [queue.popleft()]
        while len(taken) < count and queue and not queue[0].alone:
            taken.append(queue.popleft())
        if not queue:
            del self.waiting[batch]
        return taken

    def take_all(self, batch: str) -> list[Task]:
        """All waiting tasks of a batch, out of the waiting."""
        return list(self.waiting.pop(batch, ()))

    def in_order(self) -> list[str]:
        """The batches with waiting tasks, that with the first claimed task first."""
        return sorted(self.waiting, key=lambda batch: self.waiting[batch][0].seq)

    def all_waiting(self) -> Iterator[Task]:
        """Every task in the worker's own hands."""
        for queue in self.waiting.values():
            yield from queue

    @property
    def count_waiting(self) -> int:
        """How many tasks wait in the worker's own hands."""
        return sum(map(len, self.waiting.values()))

    def free_slots(self) -> list[int]:
        """Slots with nothing to do."""
        taken = {task.slot for task in self.trailing.values()} if self.trailing else ()
        return [slot for slot, riding in enumerate(self.riding) if not riding and slot not in taken]

    def begun(self) -> list[Task]:
        """The tasks that are running, as far as can be known from here: the first of every slot."""
        return [next(iter(riding.values())) for riding in self.riding if riding]

    def pace(self, key: str) -> Pace:
        """The pace of a function."""
        found = self.paces.get(key)
        if found is None:
            if len(self.paces) >= MOST_PACES:
                del self.paces[next(iter(self.paces))]
            found = self.paces[key] = Pace()
        return found

    def chunk(self, task: Task, waiting: int, takers: int) -> int:
        """How many of a batch's `waiting` tasks go to one slot at once, when so many slots could take some."""
        return max(1, min(self.pace(task.spec.key).chunk(), -(-waiting // takers)))

    def slots_ahead(self) -> dict[int, str]:
        """Slots that run short calls and will be free soon -> the function that they run."""
        found = {}
        for slot, riding in enumerate(self.riding):
            if not riding:
                continue
            task = next(iter(riding.values()))
            pace = self.pace(task.spec.key)
            short = pace.mean is not None and pace.mean < SHORT and not task.begun and not task.apart
            short = short and task.stall is not None and not task.stall.retired
            if short and len(riding) <= pace.chunk() // 4:
                found[slot] = task.spec.key
        return found

    def wish(self, recent: Pace) -> tuple[int, int]:
        """`(free, want)` for a claim: idle slots that nothing waits for, and how many jobs to ask for at most."""
        waiting = self.count_waiting
        free = max(0, len(self.free_slots()) - waiting)
        backlog = len(self.tasks) - sum(1 for riding in self.riding if riding)
        if recent.mean is None:
            return free, free
        # A slot with a long call takes nothing soon: what is held ahead for it would be given back, and claimed again.
        quick = sum(1 for riding in self.riding if not riding or not next(iter(riding.values())).begun)
        target = max(free, min(MOST_HELD, int(quick * TARGET / max(recent.mean, 1e-6))))
        if backlog * 2 >= target:
            return free, free
        return free, max(free, min(MOST_CLAIMED, target - backlog))
