import math

import pytest
from helpers import claim, ended, join, leases, submit, wait_until

from nbqueue.errors import BadInput


def test_nobody_is_given_work(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker, want=1))
    assert broker.suspended() is None
    for _ in range(2):
        broker.suspend()
    assert broker.suspended() == math.inf
    found = claim(broker)
    assert (found.grants, found.suspended) == ([], True)
    assert broker.settle("w1", [ended(held[0])]) == ["OK"]  # what runs goes on
    assert broker.length("default") == 1


def test_a_claim_that_was_answered_is_answered_again(broker):
    join(broker)
    submit(broker, n=2)
    first = claim(broker, token="w1:1")
    broker.suspend()
    assert claim(broker, token="w1:1").grants == first.grants


def test_for_a_while(broker):
    join(broker)
    submit(broker, n=1)
    broker.suspend(0.1)
    assert 0 < broker.suspended() <= 0.1
    wait_until(lambda: leases(claim(broker)))
    assert broker.suspended() is None


def test_a_burst_worker_may_leave(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=2)
    claim(broker, "w1", want=1)
    broker.suspend()
    assert not broker.leave("w1", burst=True)  # it holds something
    assert broker.leave("w2", burst=True)


def test_no_time_is_a_mistake(broker):
    with pytest.raises(BadInput):
        broker.suspend(0)
