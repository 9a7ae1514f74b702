from helpers import claim, join, leases, submit


def test_work_is_given_again(broker):
    join(broker)
    submit(broker, n=2)
    submit(broker, "b2", n=1, queue="other")
    broker.suspend(1000)
    assert leases(claim(broker)) == []
    broker.client.delete(*map(broker.keys.bell, ("default", "other")))
    for _ in range(2):
        broker.resume()
    assert [broker.client.llen(broker.keys.bell(queue)) for queue in ("default", "other")] == [1, 1]
    assert broker.suspended() is None
    assert len(leases(claim(broker))) == 2


def test_nothing_was_suspended(broker):
    broker.resume()
    assert broker.suspended() is None
