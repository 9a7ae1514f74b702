import pytest
from helpers import claim, expire, join, leases, submit

from nbqueue.errors import BadInput, BadName, LeaseEnded


def test_a_worker_enters_with_its_slots(broker):
    now = broker.join("w1", b"info", ["default", "low"], 4, lease=30, beat=5)
    assert abs(now - broker.now_us()) < 5_000_000
    (worker,) = broker.workers()
    assert worker.info == b"info"
    assert 29 < worker.left <= 30
    assert (broker.live_slots("default"), broker.live_slots("low")) == (4, 4)
    assert sorted(broker.queues()) == ["default", "low"]


def test_the_same_again_changes_nothing(broker):
    join(broker)
    submit(broker)
    held = leases(claim(broker, want=1))
    join(broker)
    assert len(broker.workers()) == 1
    assert broker.live_slots("default") == 2
    assert broker.renew("w1", held).fallen == []


def test_a_dead_id_is_not_taken_up_again(broker):
    join(broker)
    submit(broker)
    claim(broker, want=1)
    broker.client.hset(broker.keys.at("w", "w1"), "dead", 1)  # as in the middle of a large reap
    with pytest.raises(LeaseEnded, match="w1"):
        join(broker)
    expire(broker, "w1")
    assert broker.reap().jobs == 1


def test_the_epoch_stays(broker):
    first = broker.epoch()
    join(broker)
    assert broker.epoch() == first


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "{x}", "a\0b", "a\nb", "x" * 101])
def test_bad_names(broker, name):
    with pytest.raises(BadName):
        broker.join(name, b"", ["default"], 1)
    if name not in {"a b", "a:b", "a/b", "{x}"}:  # a queue may be called so, as in RQ
        with pytest.raises(BadName):
            broker.join("w", b"", [name], 1)


def test_no_slots_or_queues(broker):
    with pytest.raises(BadInput):
        broker.join("w", b"", ["default"], 0)
    with pytest.raises(BadInput):
        broker.join("w", b"", [], 1)
