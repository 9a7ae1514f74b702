"""The rules of the state machine that are about batches."""

import msgspec
from helpers import new_batch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from shadow import Batch, Job

from nbqueue.model import State
from nbqueue.store.records import Need

QUEUES = ("high", "default")
CHOICE = st.integers(0, 1_000_000)
FEW = st.lists(st.integers(0, 12), max_size=5)
LONG = 1000.0
FOREIGN = "99887766"  # a key that not every worker knows


def some(things, choice):
    return things[choice % len(things)]


class BatchRules:
    """What may be done to batches, beside the same in the model."""

    @precondition(lambda self: len(self.batches) < 5)
    @rule(
        n=st.integers(0, 7),
        last=st.booleans(),
        at_front=st.booleans(),
        queue=st.sampled_from(QUEUES),
        named=st.booleans(),
        ttl=st.sampled_from([None, 500.0]),
        late=st.sampled_from([False, False, True]),
        foreign=st.sampled_from([False, False, True]),
        repeat=st.booleans(),
    )
    def submit(self, n, last, at_front, queue, named, ttl, late, foreign, repeat):
        batch = self.fresh("b")
        facts = {"queue": queue, "at_front": at_front, "ttl": ttl, "single": n == 1 and last}
        facts |= {"name": f"name-{batch}" if named else None, "delay": LONG if late else None}
        facts |= {"signer": FOREIGN} if foreign else {}
        new = new_batch(batch, **facts)
        for _ in range(1 + repeat):
            submitted = self.broker.submit(new, [b"arg%d" % index for index in range(n)], last=last)
        made = self.batches[batch] = Batch(new, not last, jobs=[Job() for _ in range(n)], due=late)
        made.hold = "S" if late and not made.done else ""
        assert (submitted.state, submitted.n) == (State.SCHEDULED if made.hold else State.QUEUED, n)

    @precondition(lambda self: self.batches and len(self.batches) < 6)
    @rule(
        choice=CHOICE,
        picks=st.lists(st.tuples(CHOICE, st.integers(-3, 6), st.booleans()), min_size=1, max_size=3),
        n=st.integers(0, 4),
        last=st.booleans(),
        late=st.sampled_from([False, False, True]),
        repeat=st.booleans(),
    )
    def depend(self, choice, picks, n, last, late, repeat):
        needs = {}
        for pick, index, allow in picks:
            parent = some(list(self.batches), pick)
            known = 0 <= index < len(self.batches[parent].jobs)
            needs[Need(parent, index if known else None, allow)] = None
        batch = self.fresh("b")
        new = new_batch(batch, queue=some(QUEUES, choice), needs=tuple(needs), delay=LONG if late else None)
        for _ in range(1 + repeat):
            self.broker.submit(new, [b"arg%d" % index for index in range(n)], last=last)
        made = self.batches[batch] = Batch(new, not last, jobs=[Job() for _ in range(n)], due=late)
        stands = [self.world.stands(made, need) for need in needs]
        made.hold = "D" if set(stands) != {"m"} else "S" if late else ""
        self.world.react()

    @precondition(lambda self: self.batches and len(self.batches) < 6)
    @rule(choice=CHOICE, repeat=st.booleans())
    def pair(self, choice, repeat):
        source = some(list(self.batches), choice)
        batch = self.fresh("b")
        new = new_batch(batch, queue=some(QUEUES, choice), source=source)
        for _ in range(1 + repeat):
            self.broker.submit(new, [], last=True)
        self.batches[batch] = Batch(new, self.batches[source].open)
        self.world.react()

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, number=st.integers(0, 4), last=st.booleans(), repeat=st.booleans())
    def extend(self, choice, number, last, repeat):
        batch = some(list(self.batches.values()), choice)
        start = len(batch.jobs)
        nonce = batch.new.nonce if batch.open else self.fresh("nonce")
        if batch.new.single or batch.new.source:
            return
        args = [b"arg%d" % index for index in range(start, start + number)]
        for _ in range(1 + repeat):
            assert self.broker.extend(batch.new.id, start, args, nonce=nonce, last=last)
        batch.new = new_batch(
            **{name: getattr(batch.new, name) for name in batch.new.__struct_fields__} | {"nonce": nonce}
        )
        ended = batch.done
        batch.open, batch.canceled = not last, False
        batch.jobs += [Job() for _ in range(number)]
        if ended and not batch.fell:
            self.world.reheld(batch)
        if batch.fell and not batch.hold:
            for index in range(start, start + number):
                self.world.canceled(batch, index)
                batch.jobs[index].fell = True
        self.world.react()

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, rows=FEW, wrong=st.sampled_from([False, False, True]), repeat=st.booleans())
    def retry(self, choice, rows, wrong, repeat):
        batch = some(list(self.batches.values()), choice)
        rows = [index for index in rows if index < len(batch.jobs)]
        named = [(index, batch.jobs[index].attempt + wrong) for index in rows]
        over = {index for index in rows if batch.jobs[index].state.over and self.may_run(batch, index)}
        over = set() if wrong else over
        ended, nonce = batch.done, self.fresh("n")
        for _ in range(1 + repeat):
            assert self.broker.retry(batch.new.id, named, nonce=nonce) == len(over)
        for index in over:
            source = self.batches.get(batch.new.source)
            ready = source is None or source.jobs[index].state is State.FINISHED
            self.world.back(batch, index, State.QUEUED if ready else State.DEFERRED, retried=True)
        if ended and over:
            self.world.reheld(batch)
        self.world.react()

    def may_run(self, batch, index):
        """A job with a source cannot run again while there is nothing that it could run with."""
        if not batch.new.source:
            return True
        source = self.batches.get(batch.new.source)
        return source is not None and source.jobs[index].state not in (State.FAILED, State.CANCELED)

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, rows=FEW | FEW | FEW | st.none(), running=st.booleans(), repeat=st.booleans())
    def cancel(self, choice, rows, running, repeat):
        batch = some(list(self.batches.values()), choice)
        chosen = range(len(batch.jobs)) if rows is None else {index for index in rows if index < len(batch.jobs)}
        jobs = batch.jobs
        hit = [i for i in chosen if jobs[i].waits or (running and jobs[i].state is State.STARTED)]
        assert self.broker.cancel(batch.new.id, rows, running=running) == len(hit)
        if repeat:
            assert self.broker.cancel(batch.new.id, rows, running=running) == 0
        for index in hit:
            self.conclude(batch, index, State.CANCELED)
        if rows is None:
            batch.hold = ""
        if rows is None and batch.open:
            batch.open, batch.canceled = False, True
            new = batch.new
            if not new.source:
                assert not self.broker.extend(new.id, len(batch.jobs), [b"x"], nonce=new.nonce, last=True)
        self.world.react()

    @precondition(lambda self: any(batch.jobs for batch in self.batches.values()))
    @rule(choice=CHOICE, pick=CHOICE)
    def cancel_alone(self, choice, pick):
        batch = some([batch for batch in self.batches.values() if batch.jobs], choice)
        index = pick % len(batch.jobs)
        job = batch.jobs[index]
        hit = job.waits or job.state is State.STARTED
        assert self.broker.cancel_alone(batch.new.id, index) == hit
        named = {index, None} if len(batch.jobs) == 1 and not batch.open else {index}
        for child in self.batches.values():
            needs = {}
            for need in child.new.needs:
                mine = need.batch == batch.new.id and need.index in named
                now = need._replace(allow_failure=True) if mine else need
                needs[now] = child.stand[now] = child.stand.get(need, "o")
            child.new = msgspec.structs.replace(child.new, needs=tuple(needs))
        if hit:
            self.conclude(batch, index, State.CANCELED)
        self.world.react()

    def bring_forward(self, item):
        return self.broker.client.zadd(self.broker.keys.at("later"), {item: 1}, xx=True, ch=True)

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, what=st.sampled_from(["upload", "ttl", "run"]))
    def promote(self, choice, what):
        batch = some(list(self.batches.values()), choice)
        if self.bring_forward(f"{what}:{batch.new.id}"):
            if what == "run":
                self.broker.client.hset(self.broker.keys.at("b", batch.new.id), "due", 1)
            self.broker.promote()
            if what == "upload":
                batch.open = False
            elif what == "run":
                batch.due, batch.hold = False, ""
            elif not batch.open or batch.new.source:
                for index, job in enumerate(batch.jobs):
                    if job.state is State.QUEUED:
                        self.conclude(batch, index, State.CANCELED)
        self.broker.promote()
        self.world.react()

    @precondition(lambda self: any(job.state is State.SCHEDULED for b in self.batches.values() for job in b.jobs))
    @rule(choice=CHOICE)
    def come_back(self, choice):
        parked = [
            (batch, index)
            for batch in self.batches.values()
            for index, job in enumerate(batch.jobs)
            if job.state is State.SCHEDULED
        ]
        batch, index = some(parked, choice)
        assert self.bring_forward(f"run:{batch.new.id}:{index}")
        self.broker.promote()
        batch.jobs[index].state = State.QUEUED

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, sweep=st.booleans())
    def forget(self, choice, sweep):
        batch = some(list(self.batches.values()), choice)
        name = batch.new.id
        used = any(other.new.source == name and not other.done for other in self.batches.values())
        assert self.broker.save(name, 0, b"meta") == bool(batch.jobs)
        gone = batch.done and not used
        if sweep and batch.done and not self.world.needed(name):
            self.broker.client.hset(self.broker.keys.at("b", name), "exp", 1)
            self.broker.client.zadd(self.broker.keys.at("later"), {f"sweep:{name}": 1})
            self.broker.promote()
        else:
            assert self.broker.forget(name) == gone
        if gone:
            del self.batches[name]
            assert self.broker.view(name) is None
