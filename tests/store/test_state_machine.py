"""All verbs in any order on a real server, beside a model in plain Python; after every step both must agree.

Held: exactly one outcome a run, never replaced (but for a retry, which keeps it in `past`); tallies sum to n and agree
with the places; no two live holders of one job; done batches have an expiry, others none.

`NBQUEUE_TEST_PROFILE=long pytest tests/store/test_state_machine.py` runs 500 examples of 40 steps.
"""

import secrets
from dataclasses import dataclass, field

from helpers import FIT, ended, expire, leaks, new_batch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nbqueue.model import MAX_LOSSES, State
from nbqueue.store.broker import Broker
from nbqueue.store.records import Lease, NewBatch, Stored, past

QUEUES = ("high", "default")
SLOTS = 2
CHOICE = st.integers(0, 1_000_000)
FEW = st.lists(st.integers(0, 12), max_size=5)


@dataclass
class Job:
    state: State = State.QUEUED
    lease: Lease | None = None
    losses: int = 0
    cap: int = 0
    attempt: int = 0
    blob: bytes | None = None  # None with an outcome: it was canceled with a whole range
    withdrawn: list[bytes] = field(default_factory=list)


@dataclass
class Batch:
    new: NewBatch
    open: bool
    canceled: bool = False
    jobs: list[Job] = field(default_factory=list)

    @property
    def done(self):
        return not self.open and all(job.state.over for job in self.jobs)


def some(things, choice):
    return things[choice % len(things)]


class Machine(RuleBasedStateMachine):
    def __init__(self, connection):
        super().__init__()
        self.broker = Broker(connection, f"m{secrets.token_hex(6)}")
        self.batches, self.workers = {}, {}
        self.old, self.claims, self.count = [], {}, 0

    def teardown(self):
        assert leaks(self.broker) == []
        if keys := list(self.broker.client.scan_iter(match=self.broker.keys.prefix + "*", count=1000)):
            self.broker.client.unlink(*keys)

    def fresh(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def job(self, lease):
        return self.batches[lease.batch].jobs[lease.index] if lease.batch in self.batches else None

    def stands(self, lease):
        job = self.job(lease)
        return job is not None and job.lease == lease

    @initialize(n=st.integers(2, 9))
    def begin(self, n):
        """Most of what is worth a look needs a worker and work."""
        self.join()
        self.submit(n, last=True, at_front=False, queue="default", named=False, ttl=None, repeat=False)
        self.claim(0, n // 2, repeat=False)

    # ---------------------------------------------------------------- workers

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def join(self):
        worker = self.fresh("w")
        for _ in range(2):
            self.broker.join(worker, b"info", QUEUES, SLOTS)
        self.workers[worker] = set()

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, want=st.integers(1, 6), repeat=st.booleans())
    def claim(self, choice, want, repeat):
        worker = some(list(self.workers), choice)
        token = f"{worker}:{self.count}"
        self.count += 1
        claimed = self.broker.claim(worker, token, QUEUES, free=want, want=want, fit=FIT)
        if repeat:
            assert self.broker.claim(worker, token, QUEUES, free=want, want=want, fit=FIT).grants == claimed.grants
        for grant in claimed.grants:
            for held in grant.jobs:
                job = self.batches[grant.batch].jobs[held.index]
                assert job.state is State.QUEUED
                assert (held.args, held.solo) == (b"arg%d" % held.index, job.cap > 0)
                assert held.attempt == job.attempt + 1
                job.state, job.attempt = State.STARTED, held.attempt
                job.lease = Lease(grant.batch, held.index, token)
                self.workers[worker].add(job.lease)
        caps = [self.job(lease).cap for lease in self.workers[worker]]
        assert len(caps) <= min([cap for cap in caps if cap] or [len(caps)])

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE)
    def claim_much(self, choice):
        self.claim(choice, 8, repeat=False)

    def give_back(self, worker, lease, *, cap=0):
        job = self.job(lease)
        job.state, job.lease, job.cap = State.QUEUED, None, cap or job.cap
        self.workers.get(worker, set()).discard(lease)
        self.old.append((worker, lease))

    def conclude(self, batch, index, state):
        """What the store wrote must be a new outcome of this state; it is remembered."""
        job = batch.jobs[index]
        worker = job.lease.token.rpartition(":")[0] if job.lease else None
        if job.lease:
            self.workers.get(worker, set()).discard(job.lease)
            self.old.append((worker, job.lease))
        job.state, job.lease = state, None
        job.blob = self.broker.outcomes(batch.new.id, [index])[0]
        if job.blob:
            found = Stored.parse(job.blob)
            assert found.state is state
            job.attempt = found.attempt

    @precondition(lambda self: any(self.workers.values()))
    @rule(
        choice=CHOICE,
        number=st.integers(1, 4),
        state=st.sampled_from([State.FINISHED, State.FAILED, State.CANCELED]),
        repeat=st.booleans(),
    )
    def settle(self, choice, number, state, repeat):
        worker = some([worker for worker, held in self.workers.items() if held], choice)
        chosen = sorted(self.workers[worker])[:number]
        settled = [ended(lease, state, b"of %s" % lease.token.encode()) for lease in chosen]
        assert self.broker.settle(worker, settled) == ["OK"] * len(chosen)
        for lease in chosen:
            self.conclude(self.batches[lease.batch], lease.index, state)
        if repeat:
            assert self.broker.settle(worker, settled) == ["DUP"] * len(chosen)

    @precondition(lambda self: self.old)
    @rule(choice=CHOICE)
    def settle_late(self, choice):
        worker, lease = some(self.old, choice)
        assert self.broker.settle(worker, [ended(lease, blob=b"late")]) == ["STALE"]
        self.broker.release(worker, [lease])
        assert not self.broker.save(lease.batch, lease.index, b"late", lease.token)

    @precondition(lambda self: any(self.workers.values()))
    @rule(choice=CHOICE, number=st.integers(1, 4), begun=st.booleans(), repeat=st.booleans())
    def release(self, choice, number, begun, repeat):
        worker = some([worker for worker, held in self.workers.items() if held], choice)
        chosen = sorted(self.workers[worker])[:number]
        for _ in range(1 + repeat):
            self.broker.release(worker, chosen, begun=frozenset(chosen if begun else ()))
        for lease in chosen:
            self.job(lease).attempt -= 0 if begun else 1
            self.give_back(worker, lease)

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE)
    def renew(self, choice):
        worker = some(list(self.workers), choice)
        asked = [*sorted(self.workers[worker]), *[lease for other, lease in self.old if other == worker]]
        fallen = self.broker.renew(worker, asked).fallen
        assert fallen == [lease for lease in asked if not self.stands(lease)]

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, repeat=st.booleans())
    def die(self, choice, repeat):
        worker = some(list(self.workers), choice)
        held = self.workers.pop(worker)
        expire(self.broker, worker)
        reaped = self.broker.reap()
        assert (reaped.workers, reaped.jobs) == ([worker], len(held))
        if repeat:
            assert self.broker.reap().workers == []
        for lease in held:
            job = self.job(lease)
            job.losses += len(held) == 1
            if job.losses >= MAX_LOSSES:
                self.conclude(self.batches[lease.batch], lease.index, State.FAILED)
            else:
                self.give_back(worker, lease, cap=max(1, min(len(held), SLOTS) // 2))

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, burst=st.booleans())
    def leave(self, choice, burst):
        worker = some(list(self.workers), choice)
        waits = any(job.state is State.QUEUED for batch in self.batches.values() for job in batch.jobs)
        left = self.broker.leave(worker, burst=burst)
        if burst and (waits or self.workers[worker]):
            assert not left
        assert left or burst
        if left:
            for lease in self.workers.pop(worker):
                self.give_back(worker, lease)

    # ---------------------------------------------------------------- batches

    @precondition(lambda self: len(self.batches) < 4)
    @rule(
        n=st.integers(0, 7),
        last=st.booleans(),
        at_front=st.booleans(),
        queue=st.sampled_from(QUEUES),
        named=st.booleans(),
        ttl=st.sampled_from([None, 500.0]),
        repeat=st.booleans(),
    )
    def submit(self, n, last, at_front, queue, named, ttl, repeat):
        batch = self.fresh("b")
        single = n == 1 and last
        name = f"name-{batch}" if named else None
        new = new_batch(batch, queue=queue, at_front=at_front, name=name, ttl=ttl, single=single)
        for _ in range(1 + repeat):
            self.broker.submit(new, [b"arg%d" % index for index in range(n)], last=last)
        self.batches[batch] = Batch(new, not last, jobs=[Job() for _ in range(n)])

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, number=st.integers(0, 4), last=st.booleans(), repeat=st.booleans())
    def extend(self, choice, number, last, repeat):
        batch = some(list(self.batches.values()), choice)
        start = len(batch.jobs)
        nonce = batch.new.nonce if batch.open else self.fresh("nonce")
        if batch.new.single:
            return
        args = [b"arg%d" % index for index in range(start, start + number)]
        for _ in range(1 + repeat):
            assert self.broker.extend(batch.new.id, start, args, nonce=nonce, last=last)
        batch.new = new_batch(
            **{name: getattr(batch.new, name) for name in batch.new.__struct_fields__} | {"nonce": nonce}
        )
        batch.open, batch.canceled = not last, False
        batch.jobs += [Job() for _ in range(number)]

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, rows=FEW, wrong=st.sampled_from([False, False, True]), repeat=st.booleans())
    def retry(self, choice, rows, wrong, repeat):
        batch = some(list(self.batches.values()), choice)
        rows = [index for index in rows if index < len(batch.jobs)]
        named = [(index, batch.jobs[index].attempt + wrong) for index in rows]
        over = {index for index in rows if batch.jobs[index].state.over} if not wrong else set()
        nonce = self.fresh("n")
        for _ in range(1 + repeat):
            assert self.broker.retry(batch.new.id, named, nonce=nonce) == len(over)
        for index in over:
            job = batch.jobs[index]
            job.withdrawn.append(job.blob or b"")
            batch.jobs[index] = Job(attempt=job.attempt, withdrawn=job.withdrawn)
            if job.losses or job.cap:
                # An outcome written while its entry waits in `again` leaves the entry: it keeps what it knows.
                batch.jobs[index].losses, batch.jobs[index].cap = self.kept(batch, index)

    def kept(self, batch, index):
        entries = self.broker.client.lrange(self.broker.keys.part(batch.new.id, "again"), 0, -1)
        found = [entry.split() for entry in entries if int(entry.split()[0]) == index]
        return (int(found[0][2]), int(found[0][3])) if found else (0, 0)

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, rows=FEW | FEW | FEW | st.none(), running=st.booleans(), repeat=st.booleans())
    def cancel(self, choice, rows, running, repeat):
        batch = some(list(self.batches.values()), choice)
        chosen = range(len(batch.jobs)) if rows is None else {index for index in rows if index < len(batch.jobs)}
        states = [State.QUEUED, State.STARTED] if running else [State.QUEUED]
        hit = [index for index in chosen if batch.jobs[index].state in states]
        assert self.broker.cancel(batch.new.id, rows, running=running) == len(hit)
        if repeat:
            assert self.broker.cancel(batch.new.id, rows, running=running) == 0
        for index in hit:
            self.conclude(batch, index, State.CANCELED)
        if rows is None and batch.open:
            batch.open, batch.canceled = False, True
            new = batch.new
            assert not self.broker.extend(new.id, len(batch.jobs), [b"x"], nonce=new.nonce, last=True)

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, what=st.sampled_from(["upload", "ttl"]))
    def promote(self, choice, what):
        batch = some(list(self.batches.values()), choice)
        item = f"{what}:{batch.new.id}"
        if self.broker.client.zadd(self.broker.keys.at("later"), {item: 1}, xx=True, ch=True):
            self.broker.promote()
            if what == "upload":
                batch.open = False
            elif not batch.open:
                for index, job in enumerate(batch.jobs):
                    if job.state is State.QUEUED:
                        self.conclude(batch, index, State.CANCELED)
        self.broker.promote()

    @precondition(lambda self: self.batches)
    @rule(choice=CHOICE, sweep=st.booleans())
    def forget(self, choice, sweep):
        batch = some(list(self.batches.values()), choice)
        name = batch.new.id
        assert self.broker.save(name, 0, b"meta") == bool(batch.jobs)
        if sweep and batch.done:
            self.broker.client.hset(self.broker.keys.at("b", name), "exp", 1)
            self.broker.client.zadd(self.broker.keys.at("later"), {f"sweep:{name}": 1})
            self.broker.promote()
        else:
            assert self.broker.forget(name) == batch.done
        if batch.done:
            del self.batches[name]
            assert self.broker.view(name) is None

    # ---------------------------------------------------------------- what always holds

    @invariant()
    def tallies_agree(self):
        sums = {queue: dict.fromkeys(State, 0) for queue in QUEUES}
        for name, batch in self.batches.items():
            view = self.broker.view(name)
            assert (view.n, view.open, view.done) == (len(batch.jobs), batch.open, batch.done)
            for state in State:
                number = sum(job.state is state for job in batch.jobs)
                assert getattr(view.tally, state) == number
                sums[batch.new.queue][state] += number
            assert sum(getattr(view.tally, state) for state in State) == view.n
        for queue, found in self.broker.queues().items():
            assert {state: getattr(found, state) for state in State} == sums[queue]

    @invariant()
    def places_agree(self):
        for name, batch in self.batches.items():
            indexes = range(len(batch.jobs))
            assert self.broker.states(name, indexes) == [job.state for job in batch.jobs]
            at = {part: self.broker.keys.part(name, part) for part in ("run", "out", "again", "void", "skip", "bad")}
            client = self.broker.client
            run = {int(index): value.split()[0].decode() for index, value in client.hgetall(at["run"]).items()}
            assert run == {index: job.lease.token for index, job in enumerate(batch.jobs) if job.lease}
            cursor = int(client.hget(self.broker.keys.at("b", name), "cur"))
            waiting = len(batch.jobs) - cursor - client.scard(at["skip"]) + client.llen(at["again"])
            assert waiting - client.scard(at["void"]) == sum(job.state is State.QUEUED for job in batch.jobs)
            assert self.broker.failed(name) == [i for i, job in enumerate(batch.jobs) if job.state is State.FAILED]

    @invariant()
    def outcomes_are_never_replaced(self):
        for name, batch in self.batches.items():
            indexes = range(len(batch.jobs))
            assert self.broker.outcomes(name, indexes) == [job.blob for job in batch.jobs]
            kept = self.broker.pasts(name, indexes)
            assert [past(blob or b"") for blob in kept] == [job.withdrawn for job in batch.jobs]

    @invariant()
    def holders_agree(self):
        for worker, held in self.workers.items():
            found = self.broker.client.smembers(self.broker.keys.at("held", worker))
            assert {name.decode() for name in found} == {f"{lease.batch}:{lease.index}" for lease in held}

    @invariant()
    def only_done_batches_end(self):
        for name, batch in self.batches.items():
            assert (self.broker.client.pttl(self.broker.keys.at("b", name)) > 0) == batch.done
            assert (self.broker.view(name).expires_us is not None) == batch.done
        assert leaks(self.broker) == []


def test_every_order_of_verbs(connection):
    run_state_machine_as_test(lambda: Machine(connection))
