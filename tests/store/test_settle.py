from helpers import claim, ended, expire, join, leases, submit

from nbqueue.model import State
from nbqueue.store.records import Stored


def test_outcomes_land(broker):
    join(broker)
    submit(broker, n=3)
    held = leases(claim(broker))
    states = [State.FINISHED, State.FAILED, State.CANCELED]
    settled = [ended(lease, state, b"blob", b"tail") for lease, state in zip(held, states, strict=True)]
    assert broker.settle("w1", settled) == ["OK"] * 3
    view = broker.view("b1")
    tally = view.tally
    assert (tally.finished, tally.failed, tally.canceled, view.done) == (1, 1, 1, True)
    found = [Stored.parse(blob) for blob in broker.outcomes("b1", range(3))]
    assert [(one.state, one.attempt, one.signed, one.body) for one in found] == [(s, 1, True, b"blob") for s in states]
    assert broker.tails("b1", [0]) == [b"tail"]
    assert broker.failed("b1") == [1]
    assert broker.log("b1", 0) == [b"0", b"1", b"2"]
    assert broker.states("b1", range(4)) == [*states, None]
    assert broker.attempts("b1", [0]) == [1]


def test_the_same_again_is_a_duplicate(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker))
    settled = [ended(lease) for lease in held]
    assert broker.settle("w1", [settled[0], settled[0], settled[1]]) == ["OK", "DUP", "OK"]
    assert broker.settle("w1", settled) == ["DUP", "DUP"]
    assert broker.settle("w1", [ended(held[0], blob=b"another")]) == ["STALE"]
    assert broker.view("b1").tally.finished == 2
    assert broker.log("b1", 0) == [b"0", b"1"]


def test_it_is_fenced(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=1)
    (old,) = leases(claim(broker, "w1"))
    assert broker.settle("w2", [ended(old)]) == ["STALE"]  # another's token
    expire(broker, "w1")
    broker.reap()
    (new,) = leases(claim(broker, "w2"))
    assert broker.settle("w1", [ended(old)]) == ["STALE"]
    assert broker.settle("w2", [ended(new)]) == ["OK"]
    assert broker.settle("w1", [ended(old, blob=b"late")]) == ["STALE"]


def test_what_does_not_exist_is_stale(broker):
    join(broker)
    submit(broker, n=1)
    (held,) = leases(claim(broker))
    others = [held._replace(batch="nothing"), held._replace(index=77), held._replace(token="")]
    assert broker.settle("w1", [ended(lease) for lease in others]) == ["STALE"] * 3


def test_many_batches_and_sizes_in_one_call(broker):
    join(broker, slots=5000)
    for batch in ("b1", "b2"):
        submit(broker, batch, n=1200)
    held = [lease for _ in range(3) for lease in leases(claim(broker))]
    assert len(held) == 2400
    settled = [ended(lease, blob=b"x" * 20_000) for lease in held]
    assert broker.settle("w1", settled) == ["OK"] * 2400
    assert all(view.done for view in broker.views(["b1", "b2"]))


def test_a_single_tells_its_session(broker):
    join(broker)
    submit(broker, "one", n=1, single=True)
    broker.settle("w1", [ended(lease) for lease in leases(claim(broker))])
    assert broker.log("one", 0) == []
    assert broker.session_log("s1", 0) == ([b"one"], 1)
    assert broker.view("one").done


def test_done_batches_expire(broker):
    join(broker)
    submit(broker, "b1", n=1)
    submit(broker, "b2", n=1)
    first, second = leases(claim(broker))
    broker.settle("w1", [ended(first), ended(second, State.FAILED)])
    now = broker.now_us()
    assert 55e6 < broker.view("b1").expires_us - now <= 60e6
    assert 595e6 < broker.view("b2").expires_us - now <= 600e6
