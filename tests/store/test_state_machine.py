"""All verbs in any order on a real server, beside a model in plain Python; after every step both must agree.

Held: exactly one outcome a run, never replaced (but for a retry, which keeps it in `past`); tallies sum to n and agree
with the places; no two live holders of one job; done batches have an expiry, others none; no idle worker beside a
queued job that it can run. The scripts stop after one or two of anything, so that each has more to do than it does.

`NBQUEUE_TEST_PROFILE=long pytest tests/store/test_state_machine.py` runs 500 examples of 40 steps.
"""

import contextlib
import secrets

import msgspec
from helpers import FIT, ended, expire, leaks
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rules import CHOICE, FOREIGN, QUEUES, BatchRules, some
from shadow import KEPT, World

from nbqueue.model import MAX_LOSSES, Rerun, State
from nbqueue.store import scripts
from nbqueue.store.broker import Broker
from nbqueue.store.records import LETTER, Lease, Stored, past

RERUN = Rerun(2, (0.0, 1000.0))
REPEAT = Rerun(1, (1000.0,))
SLOTS = 2
FITS = (FIT, FIT, msgspec.structs.replace(FIT, keys=(FOREIGN,)))
# All keys of one namespace, copied into another one.
COPY = """for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  redis.call('COPY', key, ARGV[2] .. string.sub(key, #ARGV[1] + 1))
end"""
DROP = "for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do redis.call('UNLINK', key) end"


class Machine(BatchRules, RuleBasedStateMachine):
    def __init__(self, connection):
        super().__init__()
        self.broker = Broker(connection, f"m{secrets.token_hex(6)}")
        self.world, self.workers, self.fits = World(self.broker), {}, {}
        self.batches = self.world.batches
        self.old, self.claims, self.count = [], {}, 0
        self.suspended = False

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
        self.join(0)
        plain = {"at_front": False, "named": False, "ttl": None, "late": False, "foreign": False}
        self.submit(n, last=True, queue="default", repeat=False, **plain)
        self.claim(0, n // 2, repeat=False)

    # ---------------------------------------------------------------- workers

    @precondition(lambda self: len(self.workers) < 3)
    @rule(choice=CHOICE)
    def join(self, choice):
        worker = self.fresh("w")
        self.fits[worker] = some(FITS, choice)
        for _ in range(2):
            self.broker.join(worker, b"info", QUEUES, SLOTS)
        self.workers[worker] = set()

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, want=st.integers(1, 6), repeat=st.booleans())
    def claim(self, choice, want, repeat):
        worker = some(list(self.workers), choice)
        token = f"{worker}:{self.count}"
        self.count += 1
        asked = {"free": want, "want": want, "fit": self.fits[worker]}
        claimed = self.broker.claim(worker, token, QUEUES, **asked)
        assert claimed.suspended == self.suspended
        assert not (self.suspended and claimed.grants)
        if repeat:
            assert self.broker.claim(worker, token, QUEUES, **asked).grants == claimed.grants
        for grant in claimed.grants:
            for held in grant.jobs:
                job = self.batches[grant.batch].jobs[held.index]
                assert self.batches[grant.batch].shown(job) is State.QUEUED
                assert self.batches[grant.batch].new.signer in self.fits[worker].keys
                source = self.batches.get(grant.source)
                args = source.jobs[held.index].blob if source else b"arg%d" % held.index
                assert (held.args, held.solo) == (args, job.cap > 0)
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

    def rode(self, job, state, blob):
        """A run has ended, but the job has not."""
        worker = job.lease.token.rpartition(":")[0]
        self.workers[worker].discard(job.lease)
        self.old.append((worker, job.lease))
        job.withdrawn = [*job.withdrawn, LETTER[state] + job.attempt.to_bytes(2, "big") + blob][-KEPT:]
        later = state is State.FINISHED or job.used > 1
        job.lease, job.state = None, State.SCHEDULED if later else State.QUEUED
        job.losses = job.cap = 0

    @precondition(lambda self: any(self.workers.values()))
    @rule(
        choice=CHOICE,
        number=st.integers(1, 4),
        state=st.sampled_from([State.FINISHED, State.FAILED, State.CANCELED]),
        again=st.sampled_from([False, False, True]),
        repeat=st.booleans(),
    )
    def settle(self, choice, number, state, again, repeat):
        worker = some([worker for worker, held in self.workers.items() if held], choice)
        chosen = sorted(self.workers[worker])[:number]
        settled = [
            ended(lease, state, b"of %s" % lease.token.encode())._replace(
                rerun=RERUN if again else None, repeat=REPEAT if again else None
            )
            for lease in chosen
        ]
        answers = []
        for lease in chosen:
            job = self.job(lease)
            left = again and {State.FAILED: job.used < 2, State.FINISHED: job.repeated < 1}.get(state, False)
            answers.append("AGAIN" if left else "OK")
        assert self.broker.settle(worker, settled) == answers
        for lease, one, answer in zip(chosen, settled, answers, strict=True):
            if answer == "AGAIN":
                job = self.job(lease)
                if state is State.FINISHED:
                    job.used, job.repeated = 0, job.repeated + 1
                else:
                    job.used += 1
                self.rode(job, state, one.blob)
            else:
                self.conclude(self.batches[lease.batch], lease.index, state)
        if repeat:
            assert self.broker.settle(worker, settled) == [{"OK": "DUP"}.get(answer, answer) for answer in answers]
        self.world.react()

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
        self.world.react()

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, burst=st.booleans())
    def leave(self, choice, burst):
        worker = some(list(self.workers), choice)
        waits = not self.suspended and bool(self.queued() & set(self.fits[worker].keys))
        left = self.broker.leave(worker, burst=burst)
        if burst and (waits or self.workers[worker]):
            assert not left
        assert left or burst
        if left:
            for lease in self.workers.pop(worker):
                self.give_back(worker, lease)

    @rule(suspend=st.sampled_from([False, False, True]))
    def suspend(self, suspend):
        if suspend:
            self.broker.suspend()
        else:
            self.broker.resume()
        self.suspended = suspend

    # ---------------------------------------------------------------- what always holds

    def queued(self):
        """The keys that workers must know for what is queued."""
        batches = self.batches.values()
        return {batch.new.signer for batch in batches for job in batch.jobs if batch.shown(job) is State.QUEUED}

    @contextlib.contextmanager
    def copy(self):
        """All that the store has, in another namespace, where what is done changes nothing."""
        broker = Broker(self.broker.connection, self.broker.namespace + "copy")
        self.broker.client.eval(COPY, 0, self.broker.keys.prefix, broker.keys.prefix)
        yield broker
        self.broker.client.eval(DROP, 0, broker.keys.prefix)

    @invariant()
    def no_idle_worker_beside_a_queued_job(self):
        queued = self.queued()
        idle = {worker: self.fits[worker] for worker, held in self.workers.items() if not held}
        if self.suspended or not queued:
            return
        with self.copy() as broker:
            for fit in FITS[1:]:
                worker = f"new-{fit.keys[0]}"
                broker.join(worker, b"info", QUEUES, SLOTS)
                idle[worker] = fit
            for worker, fit in idle.items():
                token, claimed = 1000, None
                while claimed is None or claimed.more:
                    token += 1
                    more = claimed.more if claimed else ""
                    facts = {"free": 1, "want": 1, "fit": fit, "more": more}
                    claimed = broker.claim(worker, f"{worker}:{token}", QUEUES, **facts)
                if queued.intersection(fit.keys):
                    assert claimed.grants, worker
                broker.leave(worker)

    @invariant()
    def tallies_agree(self):
        sums = {queue: dict.fromkeys(State, 0) for queue in QUEUES}
        for name, batch in self.batches.items():
            view = self.broker.view(name)
            assert (view.n, view.open, view.done) == (len(batch.jobs), batch.open, batch.done)
            for state in State:
                number = sum(batch.shown(job) is state for job in batch.jobs)
                assert getattr(view.tally, state) == number
                sums[batch.new.queue][state] += number
            assert sum(getattr(view.tally, state) for state in State) == view.n
        for queue, found in self.broker.queues().items():
            assert {state: getattr(found, state) for state in State} == sums[queue]

    @invariant()
    def places_agree(self):
        for name, batch in self.batches.items():
            indexes = range(len(batch.jobs))
            shown = [batch.shown(job) for job in batch.jobs]
            assert self.broker.states(name, indexes) == shown
            assert self.broker.states_of([(name, index) for index in indexes]) == shown
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
    def listings_agree(self):
        for queue in QUEUES:
            listed = {row.view.id: row.indexes for row in self.broker.queued(queue)}
            mine = {name: batch for name, batch in self.batches.items() if batch.new.queue == queue}
            waiting = {
                name: [index for index, job in enumerate(batch.jobs) if batch.shown(job) is State.QUEUED]
                for name, batch in mine.items()
            }
            assert {name: sorted(indexes) for name, indexes in listed.items()} == {
                n: w for n, w in waiting.items() if w
            }
            assert {view.id for view in self.broker.in_queue(queue)} == set(mine)

    @invariant()
    def holders_agree(self):
        for worker, held in self.workers.items():
            found = self.broker.client.smembers(self.broker.keys.at("held", worker))
            assert {name.decode() for name in found} == {f"{lease.batch}:{lease.index}" for lease in held}

    @invariant()
    def only_done_batches_end(self):
        for name, batch in self.batches.items():
            ends = batch.done and not self.world.needed(name)
            assert (self.broker.client.pttl(self.broker.keys.at("b", name)) > 0) == ends
            assert (self.broker.view(name).expires_us is not None) == ends
        assert leaks(self.broker) == []


def test_every_order_of_verbs(connection, monkeypatch):
    for what in scripts.MOST:
        monkeypatch.setitem(scripts.MOST, what, 2 if what == "rows" else 1)
    scripts.load.cache_clear()
    try:
        run_state_machine_as_test(lambda: Machine(connection))
    finally:
        scripts.load.cache_clear()
