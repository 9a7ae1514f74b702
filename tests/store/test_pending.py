"""Why jobs wait: one answer for whoever tells it."""

import msgspec
from helpers import FIT, claim, join, leases, new_batch, submit

from nbqueue.model import WorkerInfo, encode
from nbqueue.store import pending

INFO = WorkerInfo(id="w1", name="w", host="h1", pid=1, slots=2, queues=("default",), python="3.11", keys=("aabbccdd",))


def up(broker, name="w1", **changes):
    info = msgspec.structs.replace(INFO, id=name, **changes)
    broker.join(name, encode(info), info.queues, info.slots, lease=30, beat=5, host=info.host)


def why(broker, **facts):
    return pending.Workers(broker).pending(broker.view("b1"), label="f", owner="anna@web1", **facts)


def waiting(broker, **batch):
    facts = {"signer": "aabbccdd", "python": "3.11", "host": "web1"} | batch
    broker.submit(new_batch("b1", **facts), [b"x"] * 3, last=True)


def test_nobody_serves_the_queue(broker):
    waiting(broker, queue="low")
    assert str(why(broker)) == "no live worker serves the queue 'low'. Start one: nbqueue worker low"
    up(broker)
    assert "those that are up serve default" in why(broker, start="nbqueue worker --url x low").text
    assert why(broker, start="nbqueue worker --url x low").remedy == "Start one: nbqueue worker --url x low"
    assert why(broker).reason == pending.QUEUE


def test_one_that_fits_is_free(broker):
    waiting(broker)
    up(broker)
    up(broker, "w2", keys=("ffffffff",))
    assert why(broker) is None


def test_what_all_lack_is_named_with_the_way_out(broker):
    waiting(broker)
    up(broker, keys=("ffffffff",))
    found = why(broker)
    assert (found.reason, found.text) == (
        pending.KEY,
        "no worker of the queue 'default' has key aabbccdd (anna@web1)",
    )
    assert "NBQUEUE_SECRET" in found.remedy
    up(broker, "w2", python="3.12")
    assert "key aabbccdd (anna@web1) or python 3.11" in why(broker).text
    up(broker, "w3", python="3.12", host="web1")
    assert why(broker) is None, "on the client's own host any Python fits"


def test_the_code_is_on_no_worker(broker):
    waiting(broker)
    up(broker)
    held = leases(claim(broker))
    broker.release("w1", held, unfit=True, patience=60)
    assert (why(broker).reason, "pin=False" in why(broker).remedy) == (pending.CODE, True)
    broker.client.zincrby(broker.keys.at("unfit", "k1"), -61_000, "w1")
    assert why(broker) is None, "it tries again"


def test_suspended_or_busy(broker):
    waiting(broker)
    up(broker)
    claim(broker, want=2)
    assert why(broker).text == "all 2 slots of its 1 worker are busy"
    broker.suspend(60)
    assert why(broker).reason == pending.SUSPENDED
    assert "nbqueue resume" in why(broker).remedy


def test_what_a_worker_left_behind(broker):
    waiting(broker, signer="99887766")
    join(broker)
    assert claim(broker, fit=FIT).skipped == {"key 99887766": 1}
    assert broker.left_behind("w1") == ["b1"]
    assert broker.left_behind("nobody") == []


def test_many_batches_are_told_by_reason(broker):
    up(broker)
    submit(broker, "b1", n=2, signer="99887766")
    submit(broker, "b2", n=3, signer="99887766")
    submit(broker, "b3", n=1, queue="low")
    found = pending.grouped(broker, broker.batches(), lambda view: ("f", view.id[:0]))
    told = {why.reason: sorted(view.id for view in views) for why, views in found}
    assert told == {pending.KEY: ["b1", "b2"], pending.QUEUE: ["b3"]}
