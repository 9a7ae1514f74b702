"""restore: a batch that the server had forgotten comes back, with the outcomes that it had."""

import pytest
from helpers import claim, finish_all, join, leases, submit

from nbqueue.errors import BadInput, InUse, NoSuchBatch
from nbqueue.model import State

DONE, BAD, GONE = b"F\x00\x01done", b"X\x00\x02bad", b"C\x00\x00gone"


def restore(broker, new, start, jobs, *, last=True, **more):
    return broker.restore("b1", start, jobs, nonce=new.nonce, last=last, created_us=77, **more)


def test_what_had_ended_has_ended_and_the_rest_runs(broker):
    join(broker)
    new = submit(broker, n=0, last=False, name="words")
    jobs = [(b"a0", DONE), (b"a1", b""), (b"a2", BAD), (b"a3", GONE), (b"", DONE)]
    assert restore(broker, new, 0, jobs, marks=bytes(range(80)))
    view = broker.view("b1")
    assert (view.n, view.open, view.done, view.created_us) == (5, False, False, 77)
    tally = view.tally
    assert (tally.finished, tally.failed, tally.canceled, tally.queued) == (2, 1, 1, 1)
    assert broker.failed("b1") == [2]
    assert broker.marks("b1") == bytes(range(80))
    assert broker.outcomes("b1", range(5)) == [DONE, None, BAD, GONE, DONE]
    assert broker.arguments("b1", range(5)) == [b"a0", b"a1", b"a2", b"a3", None]
    assert broker.log("b1", 0) == [b"0", b"2", b"3", b"4"]
    taken = claim(broker)
    assert [(lease.batch, lease.index) for lease in leases(taken)] == [("b1", 1)]
    assert broker.length("default") == 0
    broker.release("w1", leases(taken))
    assert finish_all(broker) == 1
    assert broker.view("b1").done
    assert broker.named("words") == "b1"


def test_parts_may_be_sent_again_and_all_done_is_done(broker):
    new = submit(broker, n=0, last=False)
    for _ in range(2):
        assert restore(broker, new, 0, [(b"a", DONE)] * 2, last=False)
    for _ in range(2):
        assert restore(broker, new, 1, [(b"a", DONE)] * 2)
    view = broker.view("b1")
    assert (view.n, view.tally.finished, view.open) == (3, 3, False)
    assert view.done
    assert broker.log("b1", 0) == [b"0", b"1", b"2"]
    with pytest.raises(InUse):
        restore(broker, new, 3, [(b"a", b"")])  # it is closed


def test_what_waits_may_be_retried_and_canceled(broker):
    join(broker)
    new = submit(broker, n=0, last=False)
    assert restore(broker, new, 0, [(b"a", BAD), (b"a", b""), (b"a", b"")])
    assert broker.retry("b1", [(0, 2)], nonce="again") == 1
    assert broker.cancel("b1", [1]) == 1
    assert finish_all(broker) == 2
    assert broker.states("b1", range(3)) == [State.FINISHED, State.CANCELED, State.FINISHED]
    assert broker.view("b1").tally.n == 3


def test_many_go_in_parts(broker):
    new = submit(broker, n=0, last=False)
    assert restore(broker, new, 0, [(b"%d" % n, DONE if n % 2 else b"") for n in range(2_500)])
    view = broker.view("b1")
    assert (view.n, view.tally.finished, view.tally.queued) == (2_500, 1_250, 1_250)


def test_it_goes_where_nothing_else_is(broker):
    with pytest.raises(NoSuchBatch):
        broker.restore("b9", 0, [(b"a", DONE)], nonce="x", last=True, created_us=1)
    new = submit(broker, n=0, last=False)
    with pytest.raises(InUse):
        broker.restore("b1", 0, [(b"a", DONE)], nonce="another", last=True, created_us=1)
    with pytest.raises(BadInput, match="gap"):
        restore(broker, new, 5, [(b"a", DONE)])
    broker.cancel("b1")
    assert not restore(broker, new, 0, [(b"a", DONE)])


def test_an_upload_that_lapsed_goes_on(broker):
    new = submit(broker, n=0, last=False)
    restore(broker, new, 0, [(b"a", DONE)], last=False)
    broker.client.zadd(broker.keys.at("later"), {"upload:b1": 1})
    broker.promote()
    assert broker.view("b1").done
    assert restore(broker, new, 1, [(b"a", b"")])
    view = broker.view("b1")
    assert (view.n, view.cut, view.done, view.tally.queued) == (2, False, False, 1)
