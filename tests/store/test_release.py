import msgspec
from helpers import FIT, claim, ended, expire, finish_all, join, leases, submit


def attempts(claimed):
    return [job.attempt for grant in claimed.grants for job in grant.jobs]


def test_jobs_go_back_uncharged(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker))
    assert not broker.release("w1", held, begun=frozenset(held[1:]))
    tally = broker.view("b1").tally
    assert (tally.queued, tally.started) == (2, 0)
    again = claim(broker)
    assert attempts(again) == [1, 2]
    assert not any(job.solo for job in again.grants[0].jobs)


def test_twice_is_as_once(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker))
    for _ in range(3):
        broker.release("w1", held)
    assert broker.view("b1").tally.queued == 2
    assert len(leases(claim(broker))) == 2
    assert len(leases(claim(broker))) == 0


def test_it_is_fenced(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=1)
    old = leases(claim(broker, "w1"))
    broker.release("w2", old)
    assert broker.view("b1").tally.started == 1
    expire(broker, "w1")
    broker.reap()
    claim(broker, "w2")
    broker.release("w1", old)
    assert broker.view("b1").tally.started == 1


def test_an_old_claim_of_the_same_worker_releases_nothing(broker):
    join(broker)
    submit(broker, n=1)
    old = leases(claim(broker))
    broker.release("w1", old)
    new = leases(claim(broker))
    broker.release("w1", old)
    assert broker.renew("w1", new).fallen == []


def test_of_several_batches_and_more_than_a_thousand(broker):
    join(broker, slots=5000)
    submit(broker, "b1", n=1100)
    submit(broker, "b2", n=300)
    held = [lease for _ in range(3) for lease in leases(claim(broker))]
    assert len(held) == 1400
    broker.release("w1", [*held, held[0]._replace(batch="nothing")])
    assert [view.tally.queued for view in broker.views(["b1", "b2"])] == [1100, 300]


def test_unfit_goes_on_to_others(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=1)
    held = leases(claim(broker, "w1"))
    assert not broker.release("w1", held, unfit=True)
    assert not broker.release("w1", held, unfit=True)
    refusing = msgspec.structs.replace(FIT, unfit=("k1",))
    assert claim(broker, "w1", fit=refusing).skipped == {"unfit": 1}
    held = leases(claim(broker, "w2"))
    assert broker.release("w2", held, unfit=True)
    assert broker.release("w2", held, unfit=True)
    assert broker.settle("w2", [ended(held[0])]) == ["OK"]


def test_what_all_refuse_is_handed_out_to_be_failed(broker):
    join(broker, "w1", slots=4)
    join(broker, "w2", slots=1)
    submit(broker, "b1", n=1)
    submit(broker, "b2", n=1)
    first, second = leases(claim(broker, "w1"))
    assert not broker.release("w1", [first, second], unfit=True)
    refusing = msgspec.structs.replace(FIT, unfit=("k1",))
    broker.leave("w2")
    held = leases(claim(broker, "w1", fit=refusing))
    assert len(held) == 2
    assert broker.release("w1", held, unfit=True)
    broker.settle("w1", [ended(lease) for lease in held])
    assert finish_all(broker, "w1") == 0


def test_for_a_time_what_all_refuse_waits(broker):
    join(broker, "w1")
    join(broker, "w2")
    submit(broker, n=1)
    for worker in ("w1", "w2", "w1"):
        assert not broker.release(worker, leases(claim(broker, worker)), unfit=True, patience=60)
    refusing = msgspec.structs.replace(FIT, unfit=("k1",))
    assert claim(broker, "w1", fit=refusing).skipped == {"unfit": 1}
    key = broker.keys.at("unfit", "k1")
    broker.client.zincrby(key, -60_000, ":w1")
    assert claim(broker, "w1", fit=refusing).skipped == {"unfit": 1}, "the other one has not refused for so long"
    broker.client.zincrby(key, -60_000, ":w2")
    held = leases(claim(broker, "w1", fit=refusing))
    assert broker.release("w1", held, unfit=True, patience=60)
    assert broker.settle("w1", [ended(held[0])]) == ["OK"]


def test_who_has_not_refused_for_a_minute_begins_anew(broker):
    join(broker, "w1")
    submit(broker, n=1)
    assert not broker.release("w1", leases(claim(broker)), unfit=True, patience=60)
    key = broker.keys.at("unfit", "k1")
    broker.client.zincrby(key, -60_001, "w1")
    broker.client.zincrby(key, -60_001, ":w1")
    assert not broker.release("w1", leases(claim(broker)), unfit=True, patience=60)
