from helpers import expire, join


def mail(broker, worker="w1"):
    return broker.client.lrange(broker.keys.mail(worker), 0, -1)


def test_a_message_arrives_once(broker):
    join(broker)
    assert [broker.post("w1", b"one"), broker.post("w1", b"two"), broker.post("w1", b"one")] == [True] * 3
    assert mail(broker) == [b"one", b"two"]
    assert 0 < broker.client.pttl(broker.keys.mail("w1")) <= 3_600_000


def test_only_the_living_get_mail(broker):
    assert not broker.post("nobody", b"one")
    join(broker)
    expire(broker, "w1")
    assert not broker.post("w1", b"one")
    assert mail(broker) == []
