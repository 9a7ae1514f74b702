from helpers import claim, expire, finish_all, join, leases, submit, wait_until


def test_meta_is_kept(broker):
    submit(broker, n=2)
    assert broker.save("b1", 1, b"meta")
    assert broker.save("b1", 1, b"meta")
    assert broker.metas("b1", [0, 1]) == [None, b"meta"]


def test_it_is_fenced_by_a_token(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=1)
    (old,) = leases(claim(broker, "w1"))
    assert broker.save("b1", 0, b"one", old.token)
    expire(broker, "w1")
    broker.reap()
    assert not broker.save("b1", 0, b"two", old.token)
    claim(broker, "w2")
    assert not broker.save("b1", 0, b"two", old.token)
    assert broker.metas("b1", [0]) == [b"one"]


def test_after_the_end_it_expires_with_the_batch(broker):
    join(broker)
    submit(broker, n=1)
    finish_all(broker)
    assert broker.save("b1", 0, b"late")
    assert 0 < broker.client.pttl(broker.keys.part("b1", "meta")) <= 120_100


def test_what_is_not_there(broker):
    assert not broker.save("nothing", 0, b"m")
    submit(broker, n=1, result_ttl=0.02)
    assert not broker.save("b1", 1, b"m")
    assert not broker.save("b1", -1, b"m")
    join(broker)
    finish_all(broker)
    wait_until(lambda: broker.view("b1").expired)
    assert not broker.save("b1", 0, b"m")


def test_echoes_are_another_thing(broker):
    join(broker)
    submit(broker, n=1)
    finish_all(broker)
    assert broker.save("b1", 0, b"echo", what="echo")
    assert (broker.echoes("b1", [0]), broker.metas("b1", [0])) == ([b"echo"], [None])
    assert 0 < broker.client.pttl(broker.keys.part("b1", "echo")) <= 120_100


def test_a_claim_brings_the_meta(broker):
    join(broker)
    submit(broker, "one", n=1, single=True, meta=b"first")
    submit(broker, "b2", n=3)
    broker.save("b2", 1, b"second")
    found = {(grant.batch, job.index): job.meta for grant in claim(broker).grants for job in grant.jobs}
    assert found == {("one", 0): b"first", ("b2", 0): b"", ("b2", 1): b"second", ("b2", 2): b""}
