"""Batches that are not to run before their time."""

import time

from helpers import claim, finish_all, join, leases, submit, wait_until

from nbqueue.model import State


def test_a_delay(broker):
    join(broker)
    broker.client.delete(broker.keys.bell("default"))
    submit(broker, n=3, delay=0.15, ttl=1000)
    began = time.monotonic()
    view = broker.view("b1")
    assert (view.hold, view.tally.scheduled, view.queued_us) == ("scheduled", 3, None)
    assert 100_000 < view.due_us - view.created_us <= 150_000
    assert broker.states("b1", [0]) == [State.SCHEDULED]
    assert broker.client.llen(broker.keys.bell("default")) == 1  # an idle worker learns when
    assert 0 < claim(broker).due <= 0.15
    assert broker.length("default") == 0
    wait_until(lambda: broker.promote() and broker.length("default") == 3)
    assert time.monotonic() - began > 0.1
    assert broker.view("b1").queued_us >= view.due_us
    assert 900 < broker.promote() <= 1000  # the ttl counts from here
    assert finish_all(broker) == 3


def test_a_time(broker):
    submit(broker, "past", n=1, due_us=broker.now_us() - 1)
    submit(broker, "soon", n=1, due_us=broker.now_us() + int(1e9))
    assert [view.hold for view in broker.views(["past", "soon"])] == ["", "scheduled"]
    assert 999 < broker.promote() <= 1000


def test_more_may_arrive_before_it(broker):
    join(broker)
    new = submit(broker, n=1, last=False, delay=1000)
    broker.extend("b1", 1, [b"x"], nonce=new.nonce, last=True)
    assert broker.view("b1").tally.scheduled == 2
    assert leases(claim(broker)) == []
    assert broker.leave("w1", burst=True)


def test_cancel(broker):
    submit(broker, n=2, delay=1000)
    assert broker.cancel("b1", [1]) == 1
    assert broker.cancel("b1") == 1
    assert broker.view("b1").done
    assert (broker.queues()["default"].scheduled, broker.queues()["default"].canceled) == (0, 2)
    assert broker.retry("b1", [(0, 0)], nonce="n1") == 1
    assert broker.view("b1").tally.scheduled == 1


def test_a_burst_worker_waits_for_what_is_due_soon(broker):
    join(broker)
    submit(broker, n=1, delay=20)
    assert not broker.leave("w1", burst=True)
    broker.cancel("b1")
    assert broker.leave("w1", burst=True)


def test_twice_is_as_once(broker):
    new = submit(broker, n=1, delay=1000)
    again = broker.submit(new, [b"arg0"], last=True)
    assert (again.state, again.epoch) == (State.SCHEDULED, broker.epoch())
    assert broker.queues()["default"].scheduled == 1
