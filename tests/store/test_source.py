"""Element-wise batches: job i runs with the outcome of job i of another batch."""

import pytest
from helpers import claim, ended, finish_all, join, leases, new_batch, submit

from nbqueue.errors import BadInput, InUse, NoSuchDependency
from nbqueue.model import Cause, State
from nbqueue.store.records import Need, Stored

D, Q, C = State.DEFERRED, State.QUEUED, State.CANCELED


def pair(broker, batch="c", source="b1", **changes):
    return broker.submit(new_batch(batch, source=source, queue="then", **changes), [], last=True)


def settle(broker, *states):
    held = leases(claim(broker, want=len(states)))
    rows = [ended(lease, state, b"of %d" % lease.index) for lease, state in zip(held, states, strict=True)]
    assert set(broker.settle("w1", rows)) == {"OK"}


def test_each_job_runs_as_soon_as_its_source_has_finished(broker):
    join(broker)
    submit(broker, n=4)
    assert pair(broker) == (broker.epoch(), D, 4)
    settle(broker, State.FAILED, State.FINISHED)
    assert broker.states("c", range(4)) == [C, Q, D, D]
    assert (broker.view("c").tally.deferred, broker.queues()["then"].deferred) == (2, 2)
    assert broker.view("c").source == "b1"
    note = Stored.parse(broker.outcomes("c", [0])[0]).note()
    assert note.cause is Cause.DEPENDENCY
    (grant,) = claim(broker, queues=["then"]).grants
    assert (grant.source, [job.index for job in grant.jobs]) == ("b1", [1])
    assert Stored.parse(grant.jobs[0].args) == Stored(State.FINISHED, 1, True, b"of 1")


def test_it_follows_an_upload(broker):
    join(broker)
    new = submit(broker, n=1, last=False)
    pair(broker)
    pair(broker, "cc", "c")
    broker.extend("b1", 1, [b"x", b"y"], nonce=new.nonce, last=False)
    assert [(view.n, view.open) for view in broker.views(["c", "cc"])] == [(3, True), (3, True)]
    finish_all(broker)
    assert not broker.view("b1").done
    broker.extend("b1", 3, [], nonce=new.nonce, last=True)
    view = broker.view("c")
    assert (view.open, view.tally.queued, broker.view("cc").open) == (False, 3, False)
    with pytest.raises(InUse):
        broker.extend("c", 3, [b"z"], nonce="other", last=True)


def test_what_is_over_already_counts_in_parts_if_it_is_much(broker):
    join(broker, slots=5000)
    submit(broker, n=3300)
    for _ in range(3):
        held = leases(claim(broker))
        broker.settle("w1", [ended(one, State.FAILED if one.index % 10 == 0 else State.FINISHED) for one in held])
    assert pair(broker).n == 3300
    assert claim(broker, queues=["nothing"]).due == 0
    finish_all(broker)
    broker.promote()
    tally = broker.view("c").tally
    assert (tally.deferred, tally.queued, tally.canceled) == (0, 3000, 300)


def test_a_source_canceled_at_once(broker):
    submit(broker, n=2500)
    pair(broker)
    pair(broker, "cc", "c")
    broker.cancel("b1")
    broker.promote()
    assert [view.tally.canceled for view in broker.views(["c", "cc"])] == [2500, 2500]
    assert all(view.done for view in broker.views(["c", "cc"]))


def test_retry_of_the_source(broker):
    join(broker)
    submit(broker, n=3)
    pair(broker)
    settle(broker, State.FAILED, State.FINISHED, State.FINISHED)
    (held,) = leases(claim(broker, queues=["then"], want=1))
    assert broker.retry("b1", [(0, 1), (1, 1), (2, 1)], nonce="n1") == 3
    # The first fell and the last waits: both wait anew. What runs has its arguments already.
    assert broker.states("c", range(3)) == [D, State.STARTED, D]
    broker.settle("w1", [ended(held)])
    settle(broker, *[State.FINISHED] * 3)
    assert broker.states("c", range(3)) == [Q, State.FINISHED, Q]
    assert finish_all(broker) == 0
    assert len(leases(claim(broker, queues=["then"]))) == 2


def test_retry_of_a_job_needs_its_source(broker):
    join(broker)
    submit(broker, n=3)
    pair(broker)
    settle(broker, State.FAILED, State.FINISHED)
    broker.cancel("c")
    assert broker.states("c", range(3)) == [C, C, C]
    assert broker.retry("c", [(0, 0), (1, 0), (2, 0)], nonce="n1") == 2
    assert broker.states("c", range(3)) == [C, Q, D]
    assert broker.cancel("c", [1, 2]) == 2


def test_the_source_is_kept(broker):
    join(broker)
    submit(broker, n=1)
    pair(broker)
    finish_all(broker)
    assert not broker.forget("b1")
    broker.cancel("c")
    assert broker.forget("b1")
    with pytest.raises(NoSuchDependency):
        pair(broker, "d")
    assert broker.retry("c", [(0, 0)], nonce="n1") == 0


def test_with_needs_too(broker):
    join(broker)
    submit(broker, "b1", n=2)
    submit(broker, "b2", n=1)
    pair(broker, needs=(Need("b2", None),))
    settle(broker, State.FINISHED, State.FINISHED)
    assert broker.states("c", range(2)) == [D, D]
    settle(broker, State.FAILED)
    assert broker.states("c", range(2)) == [C, C]
    broker.retry("b2", [(0, 1)], nonce="n1")
    assert broker.states("c", range(2)) == [D, D]
    settle(broker, State.FINISHED)
    assert broker.states("c", range(2)) == [Q, Q]


def test_large_outcomes_stay_under_the_limit_of_a_claim(broker):
    join(broker, slots=10)
    submit(broker, n=5)
    pair(broker)
    held = leases(claim(broker))
    broker.settle("w1", [ended(lease, blob=b"x" * 1_500_000) for lease in held])
    assert [len(leases(claim(broker, queues=["then"]))) for _ in range(4)] == [2, 2, 1, 0]


def test_bad_input(broker):
    submit(broker, n=1)
    with pytest.raises(BadInput):
        broker.submit(new_batch("c", source="b1"), [b"x"], last=True)
    single = broker.submit(new_batch("d", source="b1", single=True), [], last=True)
    assert single.n == 1
