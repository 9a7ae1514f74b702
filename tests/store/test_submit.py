import pytest
from helpers import finish_all, join, new_batch, submit, wait_until

from nbqueue.errors import BadInput, BadName, BadOption, InUse, TooManyOpen
from nbqueue.model import State


def test_a_batch_arrives(broker):
    new = submit(broker, n=3, name="wordcount")
    view = broker.view("b1")
    assert (view.n, view.open, view.done, view.tally.queued) == (3, False, False, 3)
    assert (view.spec, view.key, view.signer, view.session, view.name) == (
        b"the spec",
        "k1",
        "aabbccdd",
        "s1",
        "wordcount",
    )
    assert (view.nonce, view.queue) == (new.nonce, "default")
    assert broker.arguments("b1", [0, 2, 3]) == [b"arg0", b"arg2", None]
    assert broker.function("b1") == b"the function"
    assert broker.named("wordcount") == "b1"
    assert broker.length("default") == 3
    assert [view.id for view in broker.batches()] == ["b1"]


def test_the_same_again_is_one_batch(broker):
    new = submit(broker, n=3)
    broker.submit(new, [b"arg0", b"arg1", b"arg2"], last=True)
    assert broker.view("b1").n == 3
    assert broker.length("default") == 3
    assert broker.client.lrange(broker.keys.at("q", "default"), 0, -1) == [b"b1"]


def test_another_nonce_meets_in_use(broker):
    submit(broker)
    with pytest.raises(InUse, match="id 'b1'"):
        submit(broker, n=9)
    assert broker.view("b1").n == 4


def test_a_name_belongs_to_one_batch_of_a_signer(broker):
    submit(broker, "b1", name="words")
    with pytest.raises(InUse, match="name 'words'"):
        submit(broker, "b2", name="words")
    assert broker.view("b2") is None
    submit(broker, "b3", name="words", signer="11112222")
    assert broker.named("words", "11112222") == "b3"
    assert broker.named("words", "aabbccdd") == "b1"
    assert broker.named("words", "99") is None


def test_the_name_of_an_expired_batch_is_free(broker):
    submit(broker, "b1", n=0, name="words", result_ttl=0.02)
    wait_until(lambda: broker.view("b1").expired)
    submit(broker, "b2", n=0, name="words")
    broker.promote()
    assert broker.named("words") == "b2"


def test_an_empty_batch_is_done_at_once(broker):
    submit(broker, n=0)
    view = broker.view("b1")
    assert view.done
    assert 55e6 < view.expires_us - broker.now_us() <= 60e6


def test_many_go_in_parts(broker):
    submit(broker, n=12_345)
    assert broker.view("b1").tally.queued == 12_345
    assert broker.arguments("b1", [12_344]) == [b"arg12344"]
    assert not broker.view("b1").open


def test_large_ones_go_in_parts(broker):
    args = [bytes([index]) * 1_500_000 for index in range(7)]
    broker.submit(new_batch(), args, last=True)
    assert broker.arguments("b1", range(7)) == args


def test_at_the_front(broker):
    submit(broker, "b1")
    submit(broker, "b2", at_front=True)
    join(broker)
    assert finish_all(broker) == 8
    assert broker.log("b2", 0) == [b"0", b"1", b"2", b"3"]
    assert broker.view("b2").done_us <= broker.view("b1").done_us


def test_forever_means_a_year(broker):
    submit(broker, n=0, result_ttl=-1)
    assert broker.view("b1").expires_us - broker.now_us() > 364 * 86400e6


def test_it_tells_where_the_jobs_are(broker):
    new = new_batch()
    made = broker.submit(new, [b"x"] * 3, last=True)
    assert made == (broker.epoch(), State.QUEUED, 3)
    assert broker.submit(new, [b"x"] * 3, last=True) == made
    assert broker.submit(new_batch("b2"), [b"x"] * 2100, last=True).n == 2100


def test_many_singles_at_once(broker):
    batches = [(new_batch(f"s{number}", single=True), b"arg%d" % number) for number in range(1500)]
    for _ in range(2):
        assert {made.n for made in broker.submit_many(batches)} == {1}
    assert broker.length("default") == 1500
    batches = [(new_batch(name, single=True), b"x") for name in ("t0", "s7", "t1", "s8")]
    with pytest.raises(InUse, match="'s7'"):
        broker.submit_many(batches)
    assert [view is not None for view in broker.views(["t0", "t1"])] == [True, True]
    assert broker.submit_many([]) == []


def test_bad_input(broker):
    with pytest.raises(BadName):
        submit(broker, "a:b")
    with pytest.raises(BadOption):
        submit(broker, queue="a,b")
    with pytest.raises(BadName):
        submit(broker, name="../x")
    with pytest.raises(BadInput):
        submit(broker, single=True, n=2)
    with pytest.raises(BadInput):
        submit(broker, meta=b"x", n=2)


def test_a_queue_that_is_full_takes_no_more_batches(broker):
    first = submit(broker, "b1", n=1, max_open=2)
    submit(broker, "b2", n=1, max_open=2)
    told = r"'default' on .* holds 2 unfinished batches.*nbqueue\.map.*nbqueue empty default"
    with pytest.raises(TooManyOpen, match=told):
        submit(broker, "b3", max_open=2)
    assert broker.view("b3") is None
    broker.submit(first, [b"arg0"], last=True)  # the same again is no other
    submit(broker, "b4", queue="other", max_open=2)
    broker.extend("b1", 1, [], nonce=first.nonce, last=True)
    join(broker)
    assert finish_all(broker) == 2
    submit(broker, "b5", max_open=2)
    with pytest.raises(TooManyOpen):
        broker.submit_many([(new_batch(f"s{i}", single=True, max_open=3), b"x") for i in range(3)])
    assert broker.view("s1") is not None
    assert broker.view("s2") is None
