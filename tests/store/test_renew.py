import pytest
from helpers import claim, ended, expire, join, leases, submit

from nbqueue.errors import LeaseEnded


def test_it_lengthens_the_lease(broker):
    join(broker, lease=1)
    renewed = broker.renew("w1", lease=50)
    assert abs(renewed.now_us - broker.now_us()) < 5_000_000
    assert broker.workers()[0].left > 45
    assert broker.renew("w1", lease=50).fallen == []
    assert broker.work_of("w1") == broker.work_of("nobody") == (0, 0, 0.0)
    broker.renew("w1", lease=50, work="3 1 2.500")
    broker.renew("w1", lease=50)
    assert broker.work_of("w1") == (3, 1, 2.5)
    broker.client.hset(broker.keys.at("w", "w1"), "work", "what?")
    assert broker.work_of("w1") == (0, 0, 0.0)


def test_it_tells_which_leases_fell(broker):
    join(broker)
    submit(broker, n=3)
    held = leases(claim(broker))
    broker.cancel("b1", [1])
    broker.settle("w1", [ended(held[2])])
    assert broker.renew("w1", held).fallen == held[1:]
    assert broker.renew("w1", held).fallen == held[1:]
    assert broker.renew("w1", [held[0]._replace(token="w1:999")]).fallen == [held[0]._replace(token="w1:999")]


def test_many_leases(broker):
    join(broker, slots=3000)
    submit(broker, n=2000)
    held = leases(claim(broker)) + leases(claim(broker))
    broker.cancel("b1", [5, 1500])
    assert [lease.index for lease in broker.renew("w1", held).fallen] == [5, 1500]


def test_an_ended_lease_is_not_renewed(broker):
    join(broker, "w1")
    join(broker, "w2")
    expire(broker, "w1")
    for _ in range(2):
        with pytest.raises(LeaseEnded):
            broker.renew("w1")
    with pytest.raises(LeaseEnded):
        broker.renew("stranger")


def test_an_outage_of_the_server_ends_no_lease(broker):
    join(broker, lease=0.05, beat=0.02)
    submit(broker, n=1)
    held = leases(claim(broker))
    broker.client.set(broker.keys.at("pulse"), f"{broker.now_us() - 1_000_000} 20 5000 0")
    expire(broker, "w1")
    assert broker.renew("w1", held, lease=30).fallen == []
