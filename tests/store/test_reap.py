from helpers import claim, ended, expire, finish_all, join, leases, submit, wait_until

from nbqueue.model import Cause, State
from nbqueue.store.records import Stored


def die(broker, worker):
    """The worker falls silent while another one goes on."""
    expire(broker, worker)
    return broker.reap()


def test_jobs_of_a_lost_worker_go_back(broker):
    join(broker, "w1", lease=0.05, beat=10)
    submit(broker, n=2)
    old = leases(claim(broker, "w1"))
    reaped = wait_until(lambda: (found := broker.reap()).workers and found)
    assert (reaped.workers, reaped.jobs, reaped.lost) == (["w1"], 2, 0)
    assert broker.view("b1").tally.queued == 2
    assert broker.workers() == []
    assert broker.settle("w1", [ended(old[0])]) == ["STALE"]


def test_twice_is_as_once(broker):
    join(broker, "w1")
    submit(broker, n=2)
    claim(broker)
    assert die(broker, "w1").jobs == 2
    assert broker.reap().workers == []
    assert broker.view("b1").tally.queued == 2


def test_the_living_are_left_alone(broker):
    join(broker)
    submit(broker)
    claim(broker)
    reaped = broker.reap()
    assert (reaped.workers, reaped.jobs, reaped.waiting) == ([], 0, False)


def test_suspects_come_in_halves(broker):
    join(broker, "w1", slots=8)
    submit(broker, n=4)
    assert len(leases(claim(broker, "w1", want=8))) == 4
    join(broker, "w0", slots=1)
    die(broker, "w1")
    for number, expected in enumerate((2, 2, 1)):
        worker = join(broker, f"x{number}", slots=8)
        claimed = claim(broker, worker, want=8)
        assert len(leases(claimed)) == expected
        assert all(job.solo for job in claimed.grants[0].jobs)
        assert leases(claim(broker, worker, want=8)) == []
        die(broker, worker)
    finish_all(broker, "w0")
    assert broker.view("b1").tally.finished == 4


def test_only_a_loss_alone_counts_and_the_third_is_the_last(broker):
    submit(broker, n=2)
    join(broker, "y0")
    assert len(leases(claim(broker, "y0"))) == 2
    assert die(broker, "y0").lost == 0
    lost = 0
    for number in range(6):
        worker = join(broker, f"z{number}")
        assert len(leases(claim(broker, worker))) == 1
        lost += die(broker, worker).lost
    assert lost == 2
    view = broker.view("b1")
    assert (view.done, view.tally.failed) == (True, 2)
    record = Stored.parse(broker.outcomes("b1", [0])[0])
    assert (record.state, record.signed, record.attempt) == (State.FAILED, False, 4)
    assert record.note().cause is Cause.LOST
    assert broker.failed("b1") == [0, 1]


def test_a_suspect_that_is_released_stays_one(broker):
    join(broker, "w1")
    submit(broker, n=1)
    claim(broker)
    die(broker, "w1")
    join(broker, "w2")
    broker.release("w2", leases(claim(broker, "w2")))
    assert claim(broker, "w2").grants[0].jobs[0].solo


def test_after_its_suspects_a_worker_takes_more_again(broker):
    join(broker, "w1", slots=2)
    submit(broker, n=6)
    claim(broker, "w1", want=1)
    die(broker, "w1")
    join(broker, "w2", slots=2)
    first = leases(claim(broker, "w2", want=4))
    assert len(first) == 1
    broker.settle("w2", [ended(first[0])])
    assert len(leases(claim(broker, "w2", want=4))) == 4


def test_many_jobs_of_many_workers(broker):
    for worker in ("w1", "w2"):
        join(broker, worker, slots=5000)
    submit(broker, n=3000)
    held = [len(leases(claim(broker, worker, want=1000))) for worker in ("w1", "w1", "w2")]
    assert held == [1000, 1000, 500]
    expire(broker, "w1")
    expire(broker, "w2")
    reaped = broker.reap()
    assert (sorted(reaped.workers), reaped.jobs) == (["w1", "w2"], 2500)
    assert broker.view("b1").tally.queued == 3000


def test_after_an_outage_it_waits_one_lease(broker):
    join(broker, lease=0.3, beat=0.02)
    submit(broker, n=1)
    claim(broker)
    wait_until(lambda: broker.workers()[0].left < -0.02)
    reaped = broker.reap()
    assert (reaped.waiting, reaped.workers) == (True, [])
    assert broker.workers()[0].left > 0
    assert broker.reap().waiting
    reaped = wait_until(lambda: (found := broker.reap()).workers and found)
    assert reaped.jobs == 1


def silent(broker, seconds=60.0):
    """As if the server had been away for so long, until now: all leases have ended meanwhile."""
    ago, _, rest = broker.client.get(broker.keys.at("pulse")).decode().partition(" ")
    broker.client.set(broker.keys.at("pulse"), f"{int(ago) - int(seconds * 1e6)} {rest}")
    script = "for _, w in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, w) end"
    broker.client.eval(script, 1, broker.keys.at("workers"))


def test_an_outage_ends_no_lease_however_many_there_are(broker):
    for number in range(1200):
        join(broker, f"w{number}")
    submit(broker, n=1)
    claim(broker, "w7")
    silent(broker)
    assert broker.live_slots("default") == 2400 or broker.reap().waiting
    for number in range(1200):
        broker.renew(f"w{number}")
    assert broker.reap().workers == []
    assert broker.live_slots("default") == 2400
    assert broker.view("b1").tally.started == 1


def test_who_is_not_back_after_an_outage_is_given_up_then(broker):
    join(broker, "w1", lease=0.3, beat=0.02)
    join(broker, "w2", lease=0.3, beat=0.02)
    submit(broker, n=1)
    claim(broker, "w1")
    silent(broker)
    broker.renew("w2", lease=0.3)
    assert broker.reap().waiting

    def reaped():
        broker.renew("w2", lease=0.3)
        return broker.reap().workers

    assert wait_until(reaped) == ["w1"]


def test_a_second_outage_is_one_too(broker):
    join(broker, lease=0.3, beat=0.02)
    silent(broker)
    broker.renew("w1", lease=0.3)
    # It came in the wait that followed, and then nobody came: the server was away once more.
    wait_until(lambda: float(broker.client.get(broker.keys.at("pulse")).split()[3]) < broker.now_us() / 1000)
    assert broker.reap().waiting


def test_it_stops_after_a_while_and_says_that_there_is_more(broker):
    join(broker, slots=5000)
    submit(broker, n=2500)
    while claim(broker).grants:
        pass
    expire(broker, "w1")
    reaped = [broker.reap(seconds=0) for _ in range(3)]
    assert [(each.jobs, each.more) for each in reaped] == [(1000, True), (1000, True), (500, False)]
    assert broker.workers() == []


def busy(broker, *workers):
    """Workers with two slots that hold a job each, of a batch that has enough for all; and a suspect that waits."""
    submit(broker, "others", n=100)
    held = {join(broker, worker): leases(claim(broker, worker, want=1)) for worker in workers}
    submit(broker, "lost", n=1, at_front=True)
    join(broker, "doomed", slots=1)
    assert [lease.batch for lease in leases(claim(broker, "doomed", want=1))] == ["lost"]
    die(broker, "doomed")
    return held


def test_a_busy_worker_makes_way_for_a_suspect(broker):
    held = busy(broker, "w0")["w0"]
    assert leases(claim(broker, "w0", want=1)) == []  # though others have work: else it would never run
    broker.settle("w0", [ended(held[0])])
    given = leases(claim(broker, "w0", want=2))
    assert [(lease.batch, lease.index) for lease in given] == [("lost", 0)]
    assert leases(claim(broker, "w0", want=1)) == []
    broker.settle("w0", [ended(given[0])])
    assert {lease.batch for lease in leases(claim(broker, "w0", want=2))} == {"others"}


def test_one_worker_makes_way_and_another_when_it_is_gone(broker):
    held = busy(broker, "w0", "w1")
    assert leases(claim(broker, "w0", want=1)) == []
    more = leases(claim(broker, "w1", want=1))
    assert [lease.batch for lease in more] == ["others"]
    broker.settle("w1", [ended(more[0])])
    die(broker, "w0")
    assert leases(claim(broker, "w1", want=1)) == []
    broker.settle("w1", [ended(held["w1"][0])])
    assert [lease.batch for lease in leases(claim(broker, "w1", want=2))] == ["lost"]


def test_who_cannot_make_way_for_long_leaves_it_to_another(broker):
    held = busy(broker, "w0", "w1")
    assert leases(claim(broker, "w0", want=1)) == []  # it holds a job without an end
    at, before = broker.keys.at("b", "lost"), leases(claim(broker, "w1", want=1))
    assert [lease.batch for lease in before] == ["others"]
    broker.settle("w1", [ended(before[0])])
    broker.client.hset(at, "wayuntil", broker.now_us() - 1)
    assert leases(claim(broker, "w1", want=1)) == []
    assert [lease.batch for lease in leases(claim(broker, "w0", want=1))] == ["others"]
    # Each gets more time than the one before: where all jobs are long, none would ever hold few enough.
    assert float(broker.client.hget(at, "wayuntil")) > broker.now_us() + 12e6
    broker.settle("w1", [ended(held["w1"][0])])
    assert [lease.batch for lease in leases(claim(broker, "w1", want=2))] == ["lost"]


def test_who_made_way_goes_on_where_the_suspect_is_gone(broker):
    busy(broker, "w0")
    assert leases(claim(broker, "w0", want=1)) == []
    broker.cancel("lost")
    assert [lease.batch for lease in leases(claim(broker, "w0", want=1))] == ["others"]
