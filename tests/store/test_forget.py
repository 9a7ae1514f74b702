from helpers import finish_all, join, submit

from nbqueue.model import State


def test_a_done_batch_is_gone_without_a_trace(broker):
    join(broker)
    submit(broker, n=3, name="words")
    finish_all(broker, state=State.FAILED)
    assert broker.forget("b1")
    assert broker.view("b1") is None
    assert broker.named("words") is None
    assert broker.queues()["default"].n == 0
    assert broker.batches() == []
    assert not list(broker.client.scan_iter(match=broker.keys.at("b", "b1") + "*"))
    assert not list(broker.client.scan_iter(match=broker.keys.at("failed", "*")))
    assert broker.promote() is None


def test_twice_is_as_once(broker):
    submit(broker, n=0)
    assert [broker.forget("b1"), broker.forget("b1"), broker.forget("nothing")] == [True] * 3
    assert broker.queues()["default"].n == 0


def test_a_running_one_stays(broker):
    submit(broker, n=1)
    assert not broker.forget("b1")
    assert broker.view("b1").n == 1


def test_a_name_that_another_took_stays(broker):
    submit(broker, "b1", n=0, name="words")
    submit(broker, "b2", n=0, name="words", signer="11112222")
    assert broker.forget("b1")
    assert broker.named("words") == "b2"
