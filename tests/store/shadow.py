"""A model of the store in plain Python: what every job's state should be, however it came to that."""

from dataclasses import dataclass, field

from nbqueue.model import Cause, State
from nbqueue.store.records import Lease, NewBatch, Stored

HELD = {"D": State.DEFERRED, "S": State.SCHEDULED}
KEPT = 10  # records of earlier runs


@dataclass
class Job:
    state: State = State.QUEUED  # QUEUED: it waits as its batch does
    lease: Lease | None = None
    losses: int = 0
    cap: int = 0
    attempt: int = 0
    blob: bytes | None = None  # None with an outcome: it was canceled with a whole range
    withdrawn: list[bytes] = field(default_factory=list)
    fell: bool = False  # canceled because of a dependency
    used: int = 0
    repeated: int = 0

    @property
    def waits(self):
        return self.state in (State.QUEUED, State.DEFERRED, State.SCHEDULED)


@dataclass
class Batch:
    new: NewBatch
    open: bool
    canceled: bool = False
    jobs: list[Job] = field(default_factory=list)
    hold: str = ""
    due: bool = False
    fell: bool = False
    stand: dict = field(default_factory=dict)

    @property
    def done(self):
        return not self.open and all(job.state.over for job in self.jobs)

    def shown(self, job):
        """The state of a job as readers see it."""
        return HELD.get(self.hold, State.QUEUED) if job.state is State.QUEUED else job.state


class World:
    """All batches, and what follows from one for the others."""

    def __init__(self, broker):
        self.broker = broker
        self.batches = {}

    def needed(self, name):
        """Whether something that is not done depends on this batch."""
        return any(
            not batch.done and (batch.new.source == name or any(need.batch == name for need in batch.new.needs))
            for batch in self.batches.values()
        )

    # ---------------------------------------------------------------- one batch

    def canceled(self, batch, index, *, cause=None):
        """The store has written that a job was canceled."""
        job = batch.jobs[index]
        job.state, job.lease, job.fell = State.CANCELED, None, cause is Cause.DEPENDENCY
        job.blob = self.broker.outcomes(batch.new.id, [index])[0]
        if job.blob:
            found = Stored.parse(job.blob)
            assert found.state is State.CANCELED
            assert cause is None or found.note().cause is cause
            job.attempt = found.attempt

    def back(self, batch, index, state=State.QUEUED, *, retried=False):
        """An outcome was withdrawn."""
        job = batch.jobs[index]
        if job.blob or retried:
            job.withdrawn.append(job.blob or b"")
        batch.jobs[index] = Job(state, attempt=job.attempt, withdrawn=job.withdrawn)
        if state is State.QUEUED:
            self.handed_back(batch, index)

    def handed_back(self, batch, index):
        """A job whose entry stayed in `again` keeps what that knows."""
        entries = self.broker.client.lrange(self.broker.keys.part(batch.new.id, "again"), 0, -1)
        job = batch.jobs[index]
        for entry in entries:
            place, attempt, losses, cap = map(int, entry.split())
            if place == index:
                job.attempt, job.losses, job.cap = attempt, losses, cap

    def reheld(self, batch):
        """What a batch waits for that had ended and runs again."""
        stands = [self.stands(batch, need) for need in batch.new.needs]
        if "x" in stands:
            return
        if "o" in stands:
            batch.hold = "D"
        elif batch.due:
            batch.hold = "S"

    # ---------------------------------------------------------------- what follows

    def stands(self, batch, need):
        parent = self.batches.get(need.batch)
        if parent is None:
            return batch.stand[need]
        jobs = parent.jobs if need.index is None else [parent.jobs[need.index]]
        over = parent.done if need.index is None else jobs[0].state.over
        good = need.allow_failure or all(job.state is State.FINISHED for job in jobs)
        batch.stand[need] = "o" if not over else "m" if good else "x"
        return batch.stand[need]

    def react(self):
        self.broker.promote()  # what was too much for one script goes on
        moving = True
        while moving:
            steps = (self.follow, self.needs, self.pairs)
            moving = False
            for step in steps:
                for batch in self.batches.values():
                    moving = step(batch) or moving
            for batch in self.batches.values():
                if batch.done:
                    batch.hold = ""

    def needs(self, batch):
        stands = [self.stands(batch, need) for need in batch.new.needs]
        if batch.fell and "x" not in stands:
            batch.fell, batch.hold = False, "D"
            for index, job in enumerate(batch.jobs):
                if job.fell:
                    self.back(batch, index)
        if batch.hold and "x" in stands:
            batch.fell, batch.hold = True, ""
            for index, job in enumerate(batch.jobs):
                if job.waits:
                    self.canceled(batch, index, cause=Cause.DEPENDENCY)
            return True
        if batch.hold == "S" and "o" in stands:
            batch.hold = "D"
        if batch.hold == "D" and "o" not in stands:
            batch.hold = "S" if batch.due else ""
            return True
        return False

    def follow(self, batch):
        source = self.batches.get(batch.new.source)
        if source is None or batch.canceled:
            return False
        more = len(source.jobs) - len(batch.jobs)
        batch.jobs += [Job(State.DEFERRED) for _ in range(more)]
        changed = more > 0 or batch.open != source.open
        batch.open = source.open
        return changed

    def pairs(self, batch):
        source, moved = self.batches.get(batch.new.source), False
        if source is None:
            return False
        for index, (job, other) in enumerate(zip(batch.jobs, source.jobs, strict=False)):
            was = job.state
            self.pair(batch, index, job, other)
            moved = moved or batch.jobs[index].state is not was
        return moved

    def pair(self, batch, index, job, other):
        if other.state is State.FINISHED:
            if job.state is State.DEFERRED:
                job.state, job.losses, job.cap = State.QUEUED, 0, 0
                self.handed_back(batch, index)
            elif job.fell:
                self.back(batch, index)
        elif other.state.over:
            if job.state in (State.DEFERRED, State.QUEUED):
                self.canceled(batch, index, cause=Cause.DEPENDENCY)
        elif job.fell:
            self.back(batch, index, State.DEFERRED)
        elif job.state is State.QUEUED:
            job.state = State.DEFERRED
