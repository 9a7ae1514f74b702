import pytest
from helpers import finish_all, join, submit

from nbqueue.errors import BadInput, InUse, NoSuchBatch


def test_more_arrives_and_the_end(broker):
    new = submit(broker, n=2, last=False)
    assert broker.view("b1").open
    assert broker.extend("b1", 2, [b"arg2"], nonce=new.nonce, last=False)
    assert broker.extend("b1", 3, [b"arg3"], nonce=new.nonce, last=True)
    view = broker.view("b1")
    assert (view.n, view.open) == (4, False)
    assert broker.arguments("b1", range(4)) == [b"arg0", b"arg1", b"arg2", b"arg3"]


def test_jobs_run_before_the_last_arrives(broker):
    join(broker)
    new = submit(broker, n=2, last=False)
    assert finish_all(broker) == 2
    assert not broker.view("b1").done
    broker.extend("b1", 2, [], nonce=new.nonce, last=True)
    assert broker.view("b1").done


def test_a_part_sent_again_is_there_once(broker):
    new = submit(broker, n=2, last=False)
    for _ in range(3):
        assert broker.extend("b1", 2, [b"x", b"y"], nonce=new.nonce, last=False)
    assert broker.extend("b1", 3, [b"y", b"z"], nonce=new.nonce, last=True)
    for _ in range(2):
        assert broker.extend("b1", 3, [b"y", b"z"], nonce=new.nonce, last=True)
    assert broker.arguments("b1", range(6)) == [b"arg0", b"arg1", b"x", b"y", b"z", None]
    assert broker.length("default") == 5


def test_the_end_sent_again_after_all_is_done(broker):
    join(broker)
    new = submit(broker, n=2, last=False)
    broker.extend("b1", 2, [b"x"], nonce=new.nonce, last=True)
    finish_all(broker)
    assert broker.extend("b1", 2, [b"x"], nonce=new.nonce, last=True)
    assert broker.view("b1").done


def test_without_arguments_it_renews_the_lease(broker):
    new = submit(broker, n=1, last=False)
    broker.client.zadd(broker.keys.at("later"), {"upload:b1": 1})
    broker.extend("b1", 1, [], nonce=new.nonce, last=False)
    assert 29 < broker.promote() <= 30
    assert broker.view("b1").open


def test_canceled_means_stop(broker):
    new = submit(broker, n=2, last=False)
    assert broker.cancel("b1") == 2
    assert not broker.extend("b1", 2, [b"x"], nonce=new.nonce, last=True)
    assert not broker.extend("b1", 2, [b"x"], nonce=new.nonce, last=True)
    view = broker.view("b1")
    assert (view.done, view.n, view.canceled) == (True, 2, True)


def test_another_may_not_write_an_open_one(broker):
    submit(broker, n=2, last=False)
    with pytest.raises(InUse):
        broker.extend("b1", 2, [b"x"], nonce="another", last=True)


def test_another_may_add_to_a_done_one_at_its_end(broker):
    join(broker)
    submit(broker, n=2)
    finish_all(broker)
    with pytest.raises(InUse):
        broker.extend("b1", 1, [b"x"], nonce="another", last=True)
    for _ in range(2):
        assert broker.extend("b1", 2, [b"x"], nonce="another", last=True)
    view = broker.view("b1")
    assert (view.done, view.n, view.tally.queued, view.expires_us) == (False, 3, 1, None)
    assert broker.client.pttl(broker.keys.part("b1", "out")) == -1
    assert finish_all(broker) == 1
    assert broker.view("b1").done


def test_a_gap_and_a_missing_batch(broker):
    new = submit(broker, n=2, last=False)
    with pytest.raises(BadInput, match="gap"):
        broker.extend("b1", 3, [b"x"], nonce=new.nonce, last=True)
    with pytest.raises(NoSuchBatch, match="nothing"):
        broker.extend("nothing", 0, [b"x"], nonce="n", last=True)
