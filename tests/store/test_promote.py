from helpers import claim, ended, finish_all, join, leases, new_batch, submit, wait_until

from nbqueue.model import Cause, State


def due(broker, item):
    broker.client.zadd(broker.keys.at("later"), {item: 1})


def test_nothing_is_due(broker):
    assert broker.promote() is None
    submit(broker, n=1, last=False)
    assert 29 < broker.promote() <= 30


def test_an_upload_that_lapsed_is_cut(broker):
    join(broker)
    new = submit(broker, n=2, last=False)
    due(broker, "upload:b1")
    assert broker.promote() is None
    assert broker.promote() is None
    view = broker.view("b1")
    assert (view.open, view.cut, view.done) == (False, True, False)
    finish_all(broker)
    assert broker.view("b1").done
    assert broker.extend("b1", 2, [b"x"], nonce=new.nonce, last=True)
    view = broker.view("b1")
    assert (view.cut, view.done, view.n) == (False, False, 3)


def test_another_process_completes_a_cut_upload(broker):
    submit(broker, n=2, last=False)
    due(broker, "upload:b1")
    broker.promote()
    assert broker.extend("b1", 2, [b"x"], nonce="other", last=True)
    assert not broker.view("b1").cut


def test_jobs_that_waited_too_long_are_canceled(broker):
    join(broker)
    submit(broker, n=6, ttl=0.1)
    held = leases(claim(broker, want=2))
    broker.release("w1", held[:1])
    wait_until(lambda: broker.promote() is None)
    tally = broker.view("b1").tally
    assert (tally.canceled, tally.started) == (5, 1)
    assert broker.view("b1").cuts == ((2, 6, Cause.EXPIRED),)
    assert broker.settle("w1", [ended(held[1])]) == ["OK"]
    assert broker.view("b1").done


def test_many_that_waited_too_long(broker):
    join(broker, slots=5000)
    submit(broker, n=3000, ttl=1000)
    held = [lease for _ in range(3) for lease in leases(claim(broker))]
    broker.release("w1", held)
    due(broker, "ttl:b1")
    broker.promote()
    assert broker.view("b1").tally.canceled == 3000
    assert broker.states("b1", [0, 2999]) == [State.CANCELED] * 2


def test_it_stops_after_a_while_and_says_that_there_is_more(broker):
    broker.submit_many([(new_batch(f"s{n}", ttl=500.0, single=True), b"x") for n in range(450)])
    later = broker.keys.at("later")
    broker.client.zadd(later, {f"ttl:s{n}": 1 for n in range(450)})
    answers = [broker.promote(seconds=0) for _ in range(4)]
    assert answers == [0.0] * 4
    assert broker.queues()["default"].canceled == 400
    assert broker.promote(seconds=0) > 0  # the ends of what was canceled
    assert broker.queues()["default"].canceled == 450


def test_what_is_damaged_is_due_again_later(broker):
    """The others go on meanwhile, and it is not forgotten."""
    join(broker)
    submit(broker, "b1", n=2, ttl=500.0)
    submit(broker, "b2", n=2, ttl=500.0)
    due(broker, "ttl:b1")
    due(broker, "ttl:b2")
    broker.client.set(broker.keys.part("b1", "void"), "no set")
    broker.promote()
    assert broker.view("b2").tally.canceled == 2
    broker.client.delete(broker.keys.part("b1", "void"))
    due(broker, "ttl:b1")
    assert broker.client.zscore(broker.keys.at("later"), "ttl:b1")
    broker.promote()
    assert broker.view("b1").tally.canceled == 2


def test_what_expired_is_swept_and_the_tallies_mended(broker):
    join(broker)
    submit(broker, "b1", n=3, result_ttl=0.05, name="words", single=False)
    submit(broker, "b2", n=1)
    finish_all(broker)
    assert broker.queues()["default"].finished == 4
    wait_until(lambda: broker.view("b1").expired)
    broker.promote()
    broker.promote()
    assert broker.queues()["default"].finished == 1
    assert broker.view("b1") is None
    assert broker.named("words") is None
    assert not list(broker.client.scan_iter(match=broker.keys.at("b", "b1") + "*"))
    assert [view.id for view in broker.batches()] == ["b2"]


def test_without_a_sweep_the_server_drops_it(broker):
    submit(broker, n=3)
    join(broker)
    finish_all(broker)
    assert 0 < broker.client.pttl(broker.keys.part("b1", "args")) <= 120_100
    assert 0 < broker.client.pttl(broker.keys.at("b", "b1")) <= (30 * 86400 + 60) * 1000 + 100
