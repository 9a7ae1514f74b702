import msgspec
import pytest
from helpers import FIT, claim, ended, expire, finish_all, join, leases, new_batch, submit

from nbqueue.errors import BadInput, LeaseEnded


def indexes(claimed):
    return [(grant.batch, [job.index for job in grant.jobs]) for grant in claimed.grants]


def test_jobs_come_with_what_they_need(broker):
    join(broker)
    submit(broker, n=2)
    claimed = claim(broker, token="w1:7")
    (grant,) = claimed.grants
    assert (grant.batch, grant.queue, grant.spec, grant.key, grant.token) == (
        "b1",
        "default",
        b"the spec",
        "k1",
        "w1:7",
    )
    assert [tuple(job[:4]) for job in grant.jobs] == [(0, 1, b"arg0", False), (1, 1, b"arg1", False)]
    tally = broker.view("b1").tally
    assert (tally.queued, tally.started) == (0, 2)


def test_the_same_token_is_answered_again(broker):
    join(broker)
    submit(broker, n=5)
    first = claim(broker, want=2, token="w1:1")
    again = claim(broker, want=2, token="w1:1")
    assert again.grants == first.grants
    broker.settle("w1", [ended(leases(first)[0])])
    assert indexes(claim(broker, want=2, token="w1:1")) == [("b1", [1])]
    assert broker.view("b1").tally.queued == 3


def test_a_claim_that_found_nothing_gives_nothing_of_the_last(broker):
    join(broker)
    submit(broker, n=1)
    claim(broker, token="w1:1")
    assert claim(broker, token="w1:2").grants == []
    assert claim(broker, token="w1:2").grants == []


def test_without_a_lease_there_is_nothing(broker):
    submit(broker)
    with pytest.raises(LeaseEnded):
        claim(broker, "stranger")
    join(broker)
    expire(broker, "w1")
    with pytest.raises(LeaseEnded):
        claim(broker)


def test_an_earlier_token_that_comes_late_gives_nothing(broker):
    """Its sender lost patience, asked again on another link, and has had later answers: nobody would hear this one."""
    join(broker)
    claim(broker, token="w1:1")
    claim(broker, token="w1:2")
    submit(broker, n=3)
    assert claim(broker, token="w1:1").grants == []
    assert len(indexes(claim(broker, token="w1:10"))[0][1]) == 3
    submit(broker, "b2", n=3)
    assert claim(broker, token="w1:9").grants == []
    assert finish_all(broker) == 3


def test_a_foreign_token(broker):
    join(broker)
    with pytest.raises(BadInput):
        claim(broker, token="w2:1")


def test_queues_in_order_and_batches_in_turn(broker):
    join(broker, queues=["high", "default"])
    for batch in ("b1", "b2"):
        submit(broker, batch, n=4)
    submit(broker, "h", n=1, queue="high")
    submit(broker, "f", n=1, at_front=True)
    queues = ["high", "default"]
    found = [indexes(claim(broker, want=1, queues=queues))[0][0] for _ in range(6)]
    assert found == ["h", "f", "b1", "b2", "b1", "b2"]


def test_one_claim_may_take_from_many_batches(broker):
    join(broker, slots=8)
    for number in range(20):
        submit(broker, f"s{number}", n=1, single=True)
    claimed = claim(broker, want=8)
    assert [grant.batch for grant in claimed.grants] == [f"s{number}" for number in range(8)]


def test_a_share_is_fair(broker):
    join(broker, "w1", slots=2)
    join(broker, "w2", slots=2)
    submit(broker, n=100)
    assert len(leases(claim(broker, "w1", free=2, want=1000))) == 25  # half of half
    submit(broker, "b2", n=2, at_front=True)
    assert len(leases(claim(broker, "w2", free=2, want=2))) == 2
    assert len(leases(claim(broker, "w2", free=0, want=4))) == 4


def test_at_most_a_thousand_and_four_megabytes(broker):
    join(broker, slots=5000)
    submit(broker, "b1", n=1500)
    assert len(leases(claim(broker, want=5000))) == 1000
    assert len(leases(claim(broker, want=5000))) == 500
    broker.submit(new_batch("b2"), [b"x" * 1_000_000] * 6 + [b"y" * 9_000_000], last=True)
    sizes = [len(leases(claim(broker))) for _ in range(4)]
    assert sizes == [4, 2, 1, 0]
    assert broker.view("b2").tally.started == 7


@pytest.mark.parametrize(
    ("batch", "fit", "reason"),
    [
        ({"signer": "99887766"}, {}, "key 99887766"),
        ({"python": "3.12", "host": "there"}, {}, "python 3.12"),
        ({}, {"unfit": ("k0", "k1")}, "unfit"),
    ],
)
def test_what_does_not_fit_is_skipped_and_counted(broker, batch, fit, reason):
    join(broker)
    submit(broker, "b1", **batch)
    submit(broker, "b2", n=1, key="k2")
    claimed = claim(broker, fit=msgspec.structs.replace(FIT, **fit))
    assert indexes(claimed) == [("b2", [0])]
    assert claimed.skipped == {reason: 1}


def calls_until_given(broker, **facts):
    """How many scripts a worker with nothing to do runs until it is given something; each goes on where one stopped."""
    more, calls = "", 0
    while True:
        claimed = claim(broker, more=more, **facts)
        calls, more = calls + 1, claimed.more
        assert claimed.grants or more, "it came to the end, and was given nothing"
        if claimed.grants:
            return calls, indexes(claimed)


def test_behind_canceled_rows_stands_the_first_that_is_not(broker):
    join(broker, queues=["default", "low"])
    args = [b"x"] * 21_000
    new = new_batch()
    broker.submit(new, args[:1000], last=False)
    for start in range(1000, 21_000, 1000):
        broker.extend("b1", start, args[start : start + 1000], nonce=new.nonce, last=start == 20_000)
    broker.cancel("b1", range(20_000))
    submit(broker, "b2", n=1, queue="low")
    calls, given = calls_until_given(broker, want=1, queues=["default", "low"])
    assert given == [("b1", [20_000])]  # and nothing of a queue behind that
    assert calls <= 21


def test_behind_what_was_handed_back_and_canceled_stands_the_rest(broker):
    join(broker, slots=5000)
    submit(broker, n=3000)
    held = [lease for _ in range(3) for lease in leases(claim(broker))]
    broker.release("w1", held)
    broker.cancel("b1", range(2900))
    calls, given = calls_until_given(broker, want=1)
    assert given == [("b1", [2900])]
    assert calls <= 4


@pytest.mark.parametrize("at_front", [False, True])
def test_behind_batches_that_it_cannot_run_stands_one_that_it_can(broker, at_front):
    join(broker)
    foreign = {"single": True, "signer": "99887766", "at_front": at_front}
    if at_front:
        submit(broker, "mine", n=1, at_front=True)
    broker.submit_many([(new_batch(f"f{n}", **foreign), b"x") for n in range(2500)])
    if not at_front:
        submit(broker, "mine", n=1)
    calls, given = calls_until_given(broker, want=1)
    assert given == [("mine", [0])]
    assert calls == 3
    assert [lease.batch for lease in leases(claim(broker, fit=msgspec.structs.replace(FIT, keys=("99887766",))))][
        :2
    ] == (["f2499", "f2498"] if at_front else ["f0", "f1"])


def test_what_arrives_while_it_looks_is_not_taken_for_seen(broker):
    """A worker of a burst goes when it has seen all and can run none: not if something came behind its back."""
    join(broker)
    broker.submit_many([(new_batch(f"f{n}", single=True, signer="99887766"), b"x") for n in range(1500)])
    more = claim(broker).more
    submit(broker, "mine", n=1, at_front=True)
    claimed = claim(broker, more=more)
    assert (claimed.grants, claimed.more) == ([], "")
    assert bells(broker) == 1
    assert not broker.leave("w1", burst=True)
    assert finish_all(broker) == 1
    more = claim(broker).more
    assert claim(broker, more=more).more == ""
    assert broker.leave("w1", burst=True)


def test_an_error_on_the_way_loses_no_row(broker):
    """What was read of a batch goes from its place only when it is safe in another one."""
    join(broker)
    submit(broker, n=5)
    broker.release("w1", leases(claim(broker, want=2)))
    broker.cancel("b1", [3])
    args = broker.keys.part("b1", "args")
    broker.client.rename(args, args + "aside")
    broker.client.set(args, "no hash")
    assert claim(broker).skipped == {"repair": 1}
    broker.client.rename(args + "aside", args)
    assert indexes(claim(broker)) == [("b1", [0, 1, 2, 4])]


def test_on_the_client_s_host_any_python_fits(broker):
    join(broker)
    submit(broker, python="3.13")
    assert claim(broker).skipped == {}


def bells(broker):
    return broker.client.llen(broker.keys.bell("default"))


def silence(broker):
    broker.client.delete(broker.keys.bell("default"))


def test_the_bell_rings_for_what_is_left(broker):
    join(broker)
    submit(broker, n=3)
    assert bells(broker) == 1
    silence(broker)
    assert claim(broker, want=1).left
    assert bells(broker) == 1
    silence(broker)
    assert not claim(broker).left
    assert bells(broker) == 0


def test_workers_that_cannot_run_it_do_not_wake_each_other_for_ever(broker):
    submit(broker, signer="99887766")
    rung = 0
    for worker in ("w1", "w2", "w1", "w2", "w1", "w2"):
        join(broker, worker)
        silence(broker)
        claim(broker, worker)
        rung += bells(broker)
    assert rung == 2


def test_a_batch_that_is_gone_is_dropped(broker):
    join(broker)
    submit(broker, n=0)
    broker.client.rpush(broker.keys.at("q", "default"), "b1", "nothing")
    assert claim(broker).grants == []
    assert broker.client.exists(broker.keys.at("q", "default")) == 0


def test_missing_arguments_are_empty(broker):
    join(broker)
    submit(broker, n=2)
    broker.client.hdel(broker.keys.part("b1", "args"), "1")
    assert [job.args for job in claim(broker).grants[0].jobs] == [b"arg0", b""]
    assert finish_all(broker) == 0
