from helpers import claim, finish_all, join, leases, new_batch, submit

from nbqueue.model import State
from nbqueue.store.records import Need


def rows(broker, queue="default"):
    return [(row.view.id, row.indexes) for row in broker.queued(queue)]


def test_what_waits_in_the_order_of_claims(broker):
    join(broker)
    submit(broker, "b1", n=4)
    submit(broker, "b2", n=2)
    submit(broker, "first", n=1, at_front=True)
    submit(broker, "later", n=1, delay=1000)
    broker.cancel("b1", [2])
    assert rows(broker) == [("first", [0]), ("b1", [0, 1, 3]), ("b2", [0, 1])]
    held = leases(claim(broker, want=3))
    assert rows(broker) == [("b2", [0, 1]), ("b1", [3])] or rows(broker) == [("b1", [3]), ("b2", [0, 1])]
    broker.release("w1", held[1:])
    found = dict(rows(broker))
    assert found["b1"] == [0, 1, 3]
    broker.cancel("b1", [0])
    view = next(row.view for row in broker.queued("default") if row.view.id == "b1")
    assert (view.spec, view.tally) == (b"the spec", broker.view("b1").tally)
    assert dict(rows(broker))["b1"] == [1, 3]
    assert rows(broker, "nothing") == []


def test_more_than_a_thousand(broker):
    batches = [(new_batch(f"s{number}", single=True, at_front=number < 5), b"x") for number in range(1203)]
    assert [made.state for made in broker.submit_many(batches)] == [State.QUEUED] * 1203
    found = rows(broker)
    assert len(found) == len({name for name, _ in found}) == 1203
    assert [name for name, _ in found[:5]] == ["s4", "s3", "s2", "s1", "s0"]


def test_all_batches_of_a_queue(broker):
    join(broker)
    submit(broker, "b1", n=1)
    finish_all(broker)
    submit(broker, "b2", n=1)
    submit(broker, "b3", n=1, needs=(Need("b2", None),))
    submit(broker, "b4", n=1, queue="other")
    assert [view.id for view in broker.in_queue("default")] == ["b1", "b2", "b3"]
    broker.forget("b1")
    assert [view.id for view in broker.in_queue("default")] == ["b2", "b3"]
