"""What depends on what: needs of whole batches and of jobs, cascades, and how long parents are kept."""

import pytest
from helpers import claim, ended, finish_all, join, leases, new_batch, submit, wait_until

from nbqueue.errors import BadInput, NoSuchBatch, NoSuchDependency
from nbqueue.model import Cause, State
from nbqueue.store.records import Need, Stored


def settle(broker, state=State.FINISHED, want=1):
    held = leases(claim(broker, want=want))
    assert set(broker.settle("w1", [ended(lease, state) for lease in held])) == {"OK"}


B1 = Need("b1", None)


def child(broker, batch="c", n=2, *, on=(B1,), **changes):
    return broker.submit(new_batch(batch, needs=tuple(on), **changes), [b"arg%d" % i for i in range(n)], last=True)


def states(broker, *batches):
    return [broker.states(batch, [0])[0] for batch in batches]


def test_a_child_waits_for_all_of_its_parents(broker):
    join(broker)
    submit(broker, "b1", n=2)
    submit(broker, "b2", n=3)
    made = child(broker, on=[Need("b1", None), Need("b2", 1)], queue="other")
    assert (made.state, made.n) == (State.DEFERRED, 2)
    view = broker.view("c")
    assert (view.hold, view.tally.deferred, view.tally.queued, view.queued_us) == ("deferred", 2, 0, None)
    assert broker.queues()["other"].deferred == 2
    settle(broker, want=3)
    assert states(broker, "c") == [State.DEFERRED]
    settle(broker)
    view = broker.view("c")
    assert (view.hold, view.tally.queued) == ("", 2)
    assert view.queued_us >= view.created_us
    assert finish_all(broker) == 1
    assert len(leases(claim(broker, queues=["other"]))) == 2


def test_one_job_of_a_batch_is_enough(broker):
    join(broker)
    submit(broker, n=3)
    child(broker, on=[Need("b1", 1)])
    settle(broker)
    assert states(broker, "c") == [State.DEFERRED]
    settle(broker)
    assert states(broker, "c") == [State.QUEUED]


def test_a_failure_cancels_all_the_way_down(broker):
    join(broker)
    submit(broker, n=1)
    child(broker, "c")
    child(broker, "cc", on=[Need("c", 0)])
    child(broker, "any", on=[Need("b1", None, allow_failure=True), Need("cc", None, allow_failure=True)])
    settle(broker, State.FAILED)
    assert states(broker, "c", "cc", "any") == [State.CANCELED, State.CANCELED, State.QUEUED]
    assert broker.view("c").cuts == ((0, 2, Cause.DEPENDENCY),)
    assert broker.view("cc").done


@pytest.mark.parametrize("state", [State.FINISHED, State.FAILED])
def test_what_is_over_already_counts(broker, state):
    join(broker)
    submit(broker, n=1)
    finish_all(broker, state=state)
    made = child(broker)
    assert made.state is (State.QUEUED if state is State.FINISHED else State.CANCELED)
    assert broker.view("c").done == (state is State.FAILED)
    assert child(broker, "any", on=[Need("b1", 0, allow_failure=True)]).state is State.QUEUED


def test_cancel_of_a_parent_cancels_its_children(broker):
    submit(broker, n=3)
    child(broker, "c", on=[Need("b1", 2)])
    child(broker, "d", on=[Need("b1", None)])
    broker.cancel("b1", [0])
    assert states(broker, "c", "d") == [State.DEFERRED, State.DEFERRED]
    broker.cancel("b1")
    assert states(broker, "c", "d") == [State.CANCELED, State.CANCELED]


def test_retry_of_a_parent_defers_its_children_again(broker):
    join(broker)
    submit(broker, n=1)
    child(broker, "c", n=5)
    child(broker, "cc", on=[Need("c", None)])
    broker.cancel("c", [1])
    settle(broker, State.FAILED)
    assert broker.retry("b1", [(0, 1)], nonce="n1") == 1
    assert broker.states("c", range(5)) == [State.DEFERRED, State.CANCELED, *[State.DEFERRED] * 3]
    assert states(broker, "cc") == [State.DEFERRED]
    assert broker.log("c", 0) == [b"1", b"c0-5", b"r0-5"]
    assert broker.view("c").cuts == ()
    finish_all(broker)
    assert broker.states("c", range(2)) == [State.FINISHED, State.CANCELED]
    assert states(broker, "cc") == [State.CANCELED]  # one job of what it needed was canceled
    assert broker.queues()["default"].deferred == 0


def test_a_user_may_run_what_fell(broker):
    join(broker)
    submit(broker, n=1)
    child(broker)
    settle(broker, State.FAILED)
    assert broker.retry("c", [(0, 0)], nonce="n1") == 1
    assert broker.states("c", [0, 1]) == [State.QUEUED, State.CANCELED]
    settle(broker)
    broker.retry("b1", [(0, 1)], nonce="n2")
    assert broker.states("c", [0, 1]) == [State.FINISHED, State.DEFERRED]


def test_nothing_is_written_without_the_parent(broker):
    for need in (Need("b1", None), Need("b1", 0)):
        with pytest.raises(NoSuchDependency, match="b1"):
            child(broker, on=[need])
    submit(broker, n=1, result_ttl=0.02)
    with pytest.raises(NoSuchDependency, match="b1:1"):
        child(broker, on=[Need("b1", 0), Need("b1", 1)])
    join(broker)
    finish_all(broker)
    wait_until(lambda: broker.view("b1").expired)
    with pytest.raises(NoSuchDependency, match="b1"):
        child(broker)
    assert broker.view("c") is None
    with pytest.raises(BadInput):
        child(broker, on=[Need("b1", -1)])


def test_a_parent_is_kept_while_a_child_is_not_done(broker):
    join(broker)
    submit(broker, n=1, result_ttl=0.02)
    child(broker, delay=1000)
    finish_all(broker)
    view = broker.view("b1")
    assert (view.done, view.expires_us) == (True, None)
    assert {each.id for each in broker.in_queue("default")} == {"b1", "c"}
    broker.cancel("c")
    assert broker.view("b1").expires_us is not None
    assert wait_until(lambda: broker.promote() and broker.view("b1") is None)


def test_needs_come_before_the_time(broker):
    join(broker)
    submit(broker, n=1)
    assert child(broker, delay=1000).state is State.DEFERRED
    settle(broker)
    assert broker.view("c").hold == "scheduled"
    assert 999 < broker.promote() <= 1000


def test_more_children_than_one_script_may_touch(broker):
    join(broker)
    submit(broker, n=1)
    names = [f"c{number}" for number in range(250)]
    for name in names:
        child(broker, name, n=1, single=True)
    child(broker, "last", on=[Need(names[-1], None)])
    settle(broker, State.FAILED)
    assert not broker.forget("b1")
    assert b"look" in broker.client.lrange(broker.keys.mail("w1"), 0, -1)
    assert claim(broker).due == 0
    broker.promote()
    assert set(states(broker, *names, "last")) == {State.CANCELED}
    broker.retry("b1", [(0, 1)], nonce="n1")
    broker.promote()
    assert set(states(broker, *names, "last")) == {State.DEFERRED}
    settle(broker)
    broker.promote()
    assert broker.queues()["default"].queued == 250


def test_large_children_fall_and_rise(broker):
    join(broker, slots=5000)
    submit(broker, n=1)
    child(broker, n=12_000, on=[Need("b1", None)])
    settle(broker, State.FAILED)
    assert broker.view("c").tally.canceled == 12_000
    broker.retry("b1", [(0, 1)], nonce="n1")
    assert broker.view("c").tally.deferred == 12_000
    settle(broker)
    assert broker.length("default") == 12_000


def test_an_upload_that_fell_stays_so(broker):
    join(broker)
    submit(broker, n=1)
    new = new_batch("c", needs=(Need("b1", None),))
    broker.submit(new, [b"x"], last=False)
    settle(broker, State.FAILED)
    assert broker.extend("c", 1, [b"y"], nonce=new.nonce, last=True)
    view = broker.view("c")
    assert (view.done, view.tally.canceled) == (True, 2)
    broker.retry("b1", [(0, 1)], nonce="n1")
    assert broker.view("c").tally.deferred == 2


def test_of_a_record_that_a_script_wrote_the_cause_is_told(broker):
    join(broker)
    submit(broker, n=1)
    submit(broker, "c", n=2)
    broker.release("w1", leases(claim(broker, want=3)))
    broker.cancel("c")
    child(broker, "d", on=[Need("c", 0)])
    assert broker.view("d").cuts[0][2] is Cause.DEPENDENCY
    assert Stored.parse(broker.outcomes("c", [0])[0]).note().cause is Cause.USER


# ---------------------------------------------------------------- canceled alone


def test_what_depends_on_a_job_that_is_canceled_alone_runs(broker):
    join(broker)
    submit(broker, "b1", n=1, single=True)
    child(broker, "whole", n=1)
    child(broker, "index", n=1, on=[Need("b1", 0)])
    child(broker, "twice", n=1, on=[Need("b1", None), Need("b1", None, True), Need("b1", 0)])
    child(broker, "more", n=1, on=[B1, Need("index", None)])
    child(broker, "grand", n=1, on=[Need("whole", None)])
    assert broker.cancel_alone("b1", 0) == 1
    assert states(broker, "b1", "whole", "index", "twice", "more", "grand") == [
        *(State.CANCELED, State.QUEUED, State.QUEUED, State.QUEUED, State.DEFERRED, State.DEFERRED),
    ]
    assert broker.cancel_alone("b1", 0) == 0
    settle(broker, want=3)
    settle(broker, want=2)
    assert states(broker, "more", "grand") == [State.FINISHED] * 2
    submit(broker, "b2", n=1)
    child(broker, "late", n=1, on=[Need("b2", None)])
    assert broker.cancel("b2", [0]) == 1  # with all that depends on it
    assert states(broker, "late") == [State.CANCELED]
    assert broker.cancel_alone("b2", 0) == 0
    assert states(broker, "late") == [State.QUEUED]


def test_what_had_fallen_with_a_failure_rises_when_that_is_canceled_alone(broker):
    join(broker)
    submit(broker, "b1", n=3)
    child(broker, "c", n=2, on=[Need("b1", 1)])
    child(broker, "all", n=1)
    settle(broker)
    settle(broker, State.FAILED)
    assert states(broker, "c") == [State.CANCELED]
    assert broker.cancel_alone("b1", 1) == 0  # it has ended, and stays so
    assert broker.states("c", range(2)) == [State.QUEUED] * 2
    assert states(broker, "all") == [State.DEFERRED]  # which waits for the whole batch
    with pytest.raises(NoSuchBatch):
        broker.cancel_alone("nothing", 0)


def test_a_need_that_was_there_in_both_ways_counts_as_the_one_that_allows_a_failure(broker):
    join(broker)
    submit(broker, "b1", n=2)
    both = [Need("b1", 0), Need("b1", 0, True)]
    child(broker, "fallen", n=1, on=both)
    child(broker, "bound", n=1, on=[*both, Need("b1", 1)])
    settle(broker, State.FAILED)
    assert states(broker, "fallen", "bound") == [State.CANCELED] * 2
    assert broker.cancel_alone("b1", 0) == 0
    assert states(broker, "fallen", "bound") == [State.QUEUED, State.DEFERRED]
    settle(broker)
    assert states(broker, "bound") == [State.QUEUED]


def test_a_running_job_is_canceled_alone_however_many_depend_on_it(broker):
    join(broker)
    submit(broker, "b1", n=1)
    claim(broker, want=1)
    names = [f"c{place}" for place in range(450)]
    for name in names:
        child(broker, name, n=1)
    assert broker.cancel_alone("b1", 0) == 1
    broker.promote()
    assert states(broker, *names) == [State.QUEUED] * len(names)
