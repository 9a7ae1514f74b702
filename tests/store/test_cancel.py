import pytest
from helpers import claim, ended, join, leases, submit

from nbqueue.errors import NoSuchBatch
from nbqueue.model import Cause, State
from nbqueue.store.records import Stored


def test_a_whole_batch(broker):
    join(broker)
    submit(broker, n=10)
    held = leases(claim(broker, want=3))
    broker.release("w1", held[:1])
    assert broker.cancel("b1") == 10
    view = broker.view("b1")
    assert (view.done, view.tally.canceled, view.cuts) == (True, 10, ((3, 10, Cause.USER),))
    assert broker.states("b1", range(10)) == [State.CANCELED] * 10
    assert b"c3-10" in broker.log("b1", 0)
    record = Stored.parse(broker.outcomes("b1", [1])[0])
    assert (record.state, record.signed, record.attempt, record.note().cause) == (State.CANCELED, False, 1, Cause.USER)
    assert record.note().worker == "w1"
    assert broker.length("default") == 0


def test_twice_cancels_once(broker):
    join(broker)
    submit(broker, n=10)
    claim(broker, want=3)
    assert [broker.cancel("b1"), broker.cancel("b1"), broker.cancel("b1", [1, 5])] == [10, 0, 0]
    assert broker.view("b1").tally.canceled == 10


def test_running_ones_fall_and_their_worker_gets_a_hint(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker))
    broker.cancel("b1")
    assert broker.client.lrange(broker.keys.mail("w1"), 0, -1) == [b"look"]
    assert broker.renew("w1", held).fallen == held
    assert broker.settle("w1", [ended(lease) for lease in held]) == ["STALE", "STALE"]
    assert broker.workers()[0].held == 0


def test_running_ones_may_be_spared(broker):
    join(broker)
    submit(broker, n=5)
    held = leases(claim(broker, want=2))
    assert broker.cancel("b1", running=False) == 3
    assert broker.cancel("b1", [0], running=False) == 0
    assert broker.settle("w1", [ended(lease) for lease in held]) == ["OK", "OK"]
    assert broker.view("b1").done


def test_rows_wherever_they_are(broker):
    join(broker)
    submit(broker, n=6)
    held = leases(claim(broker, want=3))
    broker.settle("w1", [ended(held[0])])
    broker.release("w1", [held[1]])
    rows = [0, 1, 2, 3, 3, 99]
    assert broker.cancel("b1", rows) == 3
    assert broker.cancel("b1", rows) == 0
    states = broker.states("b1", range(6))
    assert states == [State.FINISHED, *[State.CANCELED] * 3, State.QUEUED, State.QUEUED]
    assert broker.view("b1").tally.queued == 2
    assert [lease.index for lease in leases(claim(broker))] == [4, 5]


def test_a_row_canceled_and_retried_while_handed_back(broker):
    join(broker)
    submit(broker, n=1)
    broker.release("w1", leases(claim(broker)))
    assert broker.cancel("b1", [0]) == 1
    assert broker.view("b1").done
    assert broker.retry("b1", [(0, 0)], nonce="n1") == 1
    assert len(leases(claim(broker))) == 1
    assert len(leases(claim(broker))) == 0


def test_many(broker):
    join(broker, slots=5000)
    submit(broker, n=50_000)
    held = [lease for _ in range(3) for lease in leases(claim(broker))]
    broker.release("w1", held[:1500])
    assert broker.cancel("b1") == 50_000
    assert broker.view("b1").done
    assert broker.workers()[0].held == 0


def test_nothing_to_cancel(broker):
    with pytest.raises(NoSuchBatch, match="nothing"):
        broker.cancel("nothing")
    submit(broker, n=2)
    assert broker.cancel("b1", []) == 0
    assert broker.cancel("b1", [-1]) == 0


def test_all_of_it_unless_it_has_grown(broker):
    submit(broker, n=4)
    assert broker.cancel("b1", range(3)) == 3  # not all: these rows alone
    assert broker.view("b1").cuts == ()
    assert broker.cancel("b1", range(4)) == 1  # all: as the whole batch
    assert broker.view("b1").cuts == ((0, 4, Cause.USER),)
