from helpers import FIT, claim, ended, expire, finish_all, join, leases, submit


def test_leaving_takes_everything_along(broker):
    join(broker)
    assert broker.leave("w1")
    assert broker.workers() == []
    assert broker.live_slots("default") == 0


def test_twice_is_as_once(broker):
    join(broker)
    assert [broker.leave("w1"), broker.leave("w1"), broker.leave("nobody", burst=True)] == [True] * 3


def test_what_it_held_goes_back(broker):
    join(broker)
    submit(broker, n=3)
    held = leases(claim(broker))
    assert broker.leave("w1")
    assert broker.view("b1").tally.queued == 3
    join(broker, "w2")
    again = claim(broker, "w2")
    assert [job.index for job in again.grants[0].jobs] == [0, 1, 2]
    assert not any(job.solo for job in again.grants[0].jobs)
    assert broker.settle("w1", []) == []
    assert len(held) == 3


def test_more_than_a_thousand_go_back(broker):
    join(broker, slots=4000)
    submit(broker, n=2500)
    assert sum(len(leases(claim(broker))) for _ in range(3)) == 2500
    assert broker.leave("w1")
    view = broker.view("b1")
    assert (view.tally.queued, view.tally.started) == (2500, 0)


def test_burst_stays_while_anything_is_queued(broker):
    join(broker)
    submit(broker)
    assert not broker.leave("w1", burst=True)
    finish_all(broker)
    assert broker.leave("w1", burst=True)


def test_burst_leaves_work_that_it_cannot_run(broker):
    join(broker)
    submit(broker, signer="ffff0000")
    assert claim(broker).skipped == {"key ffff0000": 1}
    assert broker.leave("w1", burst=True)


def test_burst_waits_for_an_open_upload(broker):
    join(broker)
    new = submit(broker, n=1, last=False)
    finish_all(broker)
    assert not broker.leave("w1", burst=True)
    broker.extend("b1", 1, [], nonce=new.nonce, last=True)
    assert broker.leave("w1", burst=True)


def test_the_last_free_worker_stays_while_others_hold(broker):
    join(broker, "w1", slots=1)
    join(broker, "w2", slots=1)
    join(broker, "w3", slots=1)
    submit(broker, n=1)
    held = leases(claim(broker, "w1"))
    assert broker.leave("w2", burst=True)
    assert not broker.leave("w3", burst=True)
    assert not broker.leave("w1", burst=True)
    broker.release("w1", held)
    finish_all(broker, "w1")
    assert broker.leave("w3", burst=True)


def test_burst_waits_for_the_jobs_of_an_overdue_worker(broker):
    for worker in ("w1", "w2", "w3"):
        join(broker, worker)
    submit(broker, n=1)
    claim(broker, "w1")
    expire(broker, "w1")
    assert not broker.leave("w2", burst=True)
    assert broker.reap().jobs == 1
    assert not broker.leave("w2", burst=True)
    assert finish_all(broker, "w2") == 1
    assert broker.leave("w2", burst=True)
    assert FIT.python == "3.11"


def test_who_holds_jobs_does_not_stand_by_for_them(broker):
    """It may be dead already, its lease pending: then nobody would be left."""
    join(broker, "w1", slots=8)
    join(broker, "w2", slots=1)
    submit(broker, n=2)
    held = leases(claim(broker, "w1", want=2))
    assert len(held) == 2  # it has six slots more
    assert not broker.leave("w2", burst=True)
    join(broker, "w3", slots=1)
    assert broker.leave("w2", burst=True)
    assert not broker.leave("w3", burst=True)
    broker.settle("w1", [ended(lease) for lease in held])
    assert broker.leave("w3", burst=True)
