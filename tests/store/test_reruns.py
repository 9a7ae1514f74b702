"""Runs that the store grants by itself: retries after a failure, repeats after a success."""

import pytest
from helpers import claim, ended, expire, finish_all, join, leases, submit

from nbqueue.model import Rerun, State
from nbqueue.store.records import Stored, past

LATER = Rerun(1, (1000.0,))


def settle(broker, state, blob=b"sealed", **reruns):
    (held,) = leases(claim(broker, want=1))
    return broker.settle("w1", [ended(held, state, blob, b"tail")._replace(**reruns)])[0]


def counts(broker):
    tally = broker.view("b1").tally
    return tally.queued, tally.scheduled, tally.started, tally.over


def bring_forward(broker, item):
    assert broker.client.zadd(broker.keys.at("later"), {item: 1}, xx=True, ch=True)
    broker.promote()


def test_a_failure_is_retried_until_the_runs_are_used_up(broker):
    join(broker)
    submit(broker, n=1)
    rerun = Rerun(2)
    answers = [settle(broker, State.FAILED, b"run %d" % run, rerun=rerun) for run in range(3)]
    assert answers == ["AGAIN", "AGAIN", "OK"]
    assert broker.view("b1").done
    kept = [Stored.parse(blob) for blob in past(broker.pasts("b1", [0])[0])]
    assert [(one.state, one.attempt, one.body) for one in kept] == [
        (State.FAILED, 1, b"run 0"),
        (State.FAILED, 2, b"run 1"),
    ]
    assert broker.log("b1", 0) == [b"0"]
    assert broker.attempts("b1", [0]) == [3]
    assert broker.retry("b1", [(0, 3)], nonce="n1") == 1
    assert settle(broker, State.FAILED, rerun=rerun) == "AGAIN"


def test_a_claim_tells_how_many_runs_were_used(broker):
    join(broker)
    submit(broker, n=2)
    used = []
    for state in (State.FAILED, State.FINISHED, State.FAILED):
        claimed = claim(broker)
        used += [(job.index, job.retried, job.repeated) for job in claimed.grants[0].jobs]
        held = next(lease for lease in leases(claimed) if lease.index == 0)
        how = {"rerun": Rerun(2)} if state is State.FAILED else {"repeat": Rerun(1)}
        broker.settle("w1", [ended(held, state)._replace(**how)])
    used += [(job.index, job.retried, job.repeated) for job in claim(broker).grants[0].jobs]
    assert used == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]


def test_a_lost_reply(broker):
    join(broker)
    submit(broker, n=1)
    (held,) = leases(claim(broker))
    one = ended(held, State.FAILED)._replace(rerun=LATER)
    assert [broker.settle("w1", [one]) for _ in range(3)] == [["AGAIN"]] * 3
    assert counts(broker) == (0, 1, 0, 0)
    assert broker.settle("w1", [one._replace(blob=b"another")]) == ["STALE"]


def test_it_waits_for_its_interval(broker):
    join(broker)
    submit(broker, n=1)
    assert settle(broker, State.FAILED, rerun=Rerun(2, (0.0, 1000.0))) == "AGAIN"
    assert counts(broker) == (1, 0, 0, 0)
    broker.client.delete(broker.keys.bell("default"))
    assert settle(broker, State.FAILED, rerun=Rerun(2, (0.0, 1000.0))) == "AGAIN"
    assert counts(broker) == (0, 1, 0, 0)
    assert broker.queues()["default"].scheduled == 1
    assert broker.states("b1", [0]) == [State.SCHEDULED]
    assert broker.tails("b1", [0]) == [b"tail"]
    assert broker.client.llen(broker.keys.bell("default")) == 1  # an idle worker learns when
    assert 999 < claim(broker).due <= 1000
    bring_forward(broker, "run:b1:0")
    assert counts(broker) == (1, 0, 0, 0)
    assert claim(broker).grants[0].jobs[0].attempt == 3


def test_repeats_and_their_retries(broker):
    join(broker)
    submit(broker, n=1)
    both = {"rerun": Rerun(1), "repeat": Rerun(2)}
    states = [State.FAILED, State.FINISHED, State.FAILED, State.FINISHED, State.FAILED, State.FINISHED]
    assert [settle(broker, state, **both) for state in states] == ["AGAIN"] * 5 + ["OK"]
    assert broker.view("b1").tally.finished == 1
    submit(broker, "b2", n=1)
    assert settle(broker, State.FAILED, repeat=Rerun(9)) == "OK"


def test_the_last_ten_records_are_kept(broker):
    join(broker)
    submit(broker, n=1)
    answers = [settle(broker, State.FINISHED, b"%d" % run, repeat=Rerun(12)) for run in range(13)]
    assert answers == ["AGAIN"] * 12 + ["OK"]
    kept = past(broker.pasts("b1", [0])[0])
    assert [Stored.parse(blob).body for blob in kept] == [b"%d" % run for run in range(2, 12)]


def test_at_the_front_of_its_batch(broker):
    join(broker)
    submit(broker, n=3)
    broker.release("w1", leases(claim(broker)))
    assert settle(broker, State.FAILED, rerun=Rerun(1, front=True)) == "AGAIN"
    assert claim(broker).grants[0].jobs[0].index == 0


def test_a_lost_or_released_run_is_not_charged(broker):
    join(broker)
    submit(broker, n=1)
    held = leases(claim(broker))
    broker.release("w1", held, begun=frozenset(held))
    claim(broker)
    expire(broker, "w1")
    broker.reap()
    join(broker)
    assert [settle(broker, State.FAILED, rerun=Rerun(1)) for _ in range(2)] == ["AGAIN", "OK"]


@pytest.mark.parametrize("rows", [None, [0]])
def test_cancel_of_one_that_would_run_later(broker, rows):
    join(broker)
    submit(broker, n=1)
    settle(broker, State.FAILED, rerun=LATER)
    assert [broker.cancel("b1", rows), broker.cancel("b1", rows)] == [1, 0]
    view = broker.view("b1")
    assert (view.done, view.tally.canceled, broker.queues()["default"].scheduled) == (True, 1, 0)
    assert Stored.parse(broker.outcomes("b1", [0])[0]).attempt == 1
    assert not broker.client.zscore(broker.keys.at("later"), "run:b1:0")


def test_others_of_its_batch_go_on(broker):
    join(broker)
    submit(broker, n=4)
    held = leases(claim(broker))
    rows = [ended(one, State.FAILED)._replace(rerun=LATER if one.index else Rerun(1)) for one in held[:2]]
    assert broker.settle("w1", [*rows, *map(ended, held[2:])]) == ["AGAIN", "AGAIN", "OK", "OK"]
    assert counts(broker) == (1, 1, 0, 2)
    assert finish_all(broker) == 1
    bring_forward(broker, "run:b1:1")
    assert finish_all(broker) == 1
    assert broker.view("b1").done


def test_a_retry_at_the_front_of_a_single_job_comes_before_the_others_of_its_queue(broker):
    join(broker)
    for front in (True, False):
        first, second = f"first-{front}", f"second-{front}"
        submit(broker, first, n=1, single=True)
        submit(broker, second, n=1, single=True)
        assert settle(broker, State.FAILED, rerun=Rerun(1, front=front)) == "AGAIN"
        order = [lease.batch for lease in (*leases(claim(broker, want=1)), *leases(claim(broker, want=1)))]
        assert order == ([first, second] if front else [second, first])
        broker.cancel_many([first, second])
