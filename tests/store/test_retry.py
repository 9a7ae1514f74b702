import pytest
from helpers import claim, ended, finish_all, join, leases, submit, wait_until

from nbqueue.errors import BadInput, BadName, NoSuchBatch
from nbqueue.model import State
from nbqueue.store.records import Stored, past


def failed_batch(broker, n=3):
    join(broker)
    submit(broker, n=n)
    finish_all(broker, state=State.FAILED)


def test_an_outcome_is_withdrawn_and_the_job_runs_again(broker):
    failed_batch(broker)
    assert broker.retry("b1", [(1, 1)], nonce="n1") == 1
    view = broker.view("b1")
    assert (view.done, view.tally.queued, view.tally.failed, view.expires_us) == (False, 1, 2, None)
    assert broker.failed("b1") == [0, 2]
    assert broker.log("b1", 3) == [b"r1"]
    assert Stored.parse(past(broker.pasts("b1", [1])[0])[0]).state is State.FAILED
    (job,) = claim(broker).grants[0].jobs
    assert (job.index, job.attempt, job.args) == (1, 2, b"arg1")


def test_the_same_again_answers_the_same(broker):
    failed_batch(broker)
    assert [broker.retry("b1", [(0, 1), (1, 1)], nonce="n1") for _ in range(3)] == [2, 2, 2]
    assert finish_all(broker) == 2
    assert broker.retry("b1", [(0, 1), (1, 1)], nonce="n1") == 2
    assert broker.view("b1").done


def test_it_names_the_attempt_that_it_saw(broker):
    failed_batch(broker)
    broker.retry("b1", [(0, 1)], nonce="n1")
    finish_all(broker, state=State.FAILED)
    assert broker.retry("b1", [(0, 1)], nonce="n2") == 0
    assert broker.retry("b1", [(0, 2)], nonce="n3") == 1
    finish_all(broker)
    assert len(past(broker.pasts("b1", [0])[0])) == 2


def test_what_has_no_outcome_is_left_alone(broker):
    join(broker)
    submit(broker, n=3)
    claim(broker, want=1)
    assert broker.retry("b1", [(0, 1), (1, 0), (2, 0), (99, 0)], nonce="n1") == 0


def test_rows_that_were_canceled_at_once(broker):
    join(broker)
    submit(broker, n=5)
    broker.cancel("b1")
    assert broker.retry("b1", [(3, 0), (4, 0)], nonce="n1") == 2
    assert broker.retry("b1", [(3, 0)], nonce="n2") == 0
    assert broker.states("b1", range(5)) == [State.CANCELED] * 3 + [State.QUEUED] * 2
    assert [lease.index for lease in leases(claim(broker))] == [3, 4]
    assert past(broker.pasts("b1", [3])[0]) == [b""]


def test_rows_canceled_before_their_turn(broker):
    join(broker)
    submit(broker, n=5)
    broker.cancel("b1", [2, 3])
    assert broker.retry("b1", [(3, 0)], nonce="n1") == 1
    assert [lease.index for lease in leases(claim(broker))] == [0, 1, 3, 4]
    assert broker.cancel("b1") == 4
    assert broker.view("b1").tally.canceled == 5


def test_with_another_function(broker):
    failed_batch(broker, n=1)
    broker.retry("b1", [(0, 1)], nonce="n1", function=b"new", key="k9", spec=b"new spec")
    assert broker.function("b1") == b"new"
    (grant,) = claim(broker).grants
    assert (grant.key, grant.spec) == ("k9", b"new spec")


def counts(broker, queue):
    tally = broker.client.hgetall(broker.keys.at("tally", queue))
    return tuple(int(tally.get(state, 0)) for state in (b"queued", b"started", b"finished", b"failed"))


def test_a_done_batch_moves_to_another_queue_with_all_that_is_counted(broker):
    failed_batch(broker)
    submit(broker, "other", n=1)
    everyone = join(broker, "all", queues=("default", "gpu"))
    assert broker.retry("b1", [(0, 1), (1, 1)], nonce="n1", queue="gpu") == 2
    assert broker.view("b1").queue == "gpu"
    assert (counts(broker, "default"), counts(broker, "gpu")) == ((1, 0, 0, 0), (2, 0, 0, 1))
    assert [[view.id for view in broker.in_queue(queue)] for queue in ("default", "gpu")] == [["other"], ["b1"]]
    with pytest.raises(BadInput, match="still running"):
        broker.retry("b1", [(2, 1)], nonce="n2", queue="cpu")
    (other,) = leases(claim(broker))
    taken = leases(claim(broker, everyone, queues=["gpu"]))
    assert (other.batch, [lease.index for lease in taken]) == ("other", [0, 1])
    broker.settle(everyone, [ended(lease) for lease in taken])
    assert (broker.view("b1").done, counts(broker, "gpu")) == (True, (0, 0, 2, 1))
    assert broker.retry("b1", [(2, 1)], nonce="n3", queue="default") == 1
    assert (counts(broker, "gpu"), counts(broker, "default")) == ((0, 0, 0, 0), (1, 1, 2, 0))
    assert [lease.batch for lease in leases(claim(broker))] == ["b1"]


def test_many_rows(broker):
    join(broker, slots=5000)
    submit(broker, n=2300)
    finish_all(broker, state=State.FAILED)
    rows = [(index, 1) for index in range(2300)]
    assert broker.retry("b1", rows, nonce="n1") == 2300
    assert broker.retry("b1", rows, nonce="n1") == 2300
    assert finish_all(broker) == 2300
    assert broker.failed("b1") == []


def test_a_late_outcome_of_the_withdrawn_run_is_stale(broker):
    join(broker)
    submit(broker, n=1)
    (held,) = leases(claim(broker))
    broker.settle("w1", [ended(held, State.FAILED)])
    broker.retry("b1", [(0, 1)], nonce="n1")
    assert broker.settle("w1", [ended(held, State.FAILED)]) == ["STALE"]
    claim(broker)
    assert broker.settle("w1", [ended(held, State.FAILED)]) == ["STALE"]


def test_bad_input(broker):
    with pytest.raises(NoSuchBatch):
        broker.retry("nothing", [(0, 1)], nonce="n1")
    with pytest.raises(BadName):
        broker.retry("b1", [(0, 1)], nonce="a b")
    submit(broker, n=0, result_ttl=0.01)
    wait_until(lambda: broker.view("b1").expired)
    with pytest.raises(NoSuchBatch):
        broker.retry("b1", [], nonce="n1")


def test_another_function_waits_for_the_end_of_all(broker):
    join(broker)
    submit(broker, n=2)
    held = leases(claim(broker, want=1))
    broker.settle("w1", [ended(held[0], State.FAILED)])
    with pytest.raises(BadInput, match="still running"):
        broker.retry("b1", [(0, 1)], nonce="n1", function=b"new", key="k9")
    assert broker.function("b1") == b"the function"
    assert broker.retry("b1", [(0, 1)], nonce="n2") == 1


def test_another_function_for_more_jobs_than_one_script_takes(broker):
    join(broker)
    submit(broker, n=1_500)
    finish_all(broker)
    seen = [(row, 1) for row in range(1_500)]
    assert broker.retry("b1", seen, nonce="n1", function=b"new", key="k9") == 1_500
    assert broker.function("b1") == b"new"


def test_at_the_front_they_come_before_the_others(broker):
    failed_batch(broker)
    broker.retry("b1", [(0, 1)], nonce="n1")
    broker.retry("b1", [(1, 1), (2, 1)], nonce="n2", front=True)
    assert [job.index for job in claim(broker, want=3).grants[0].jobs] == [2, 1, 0]


def test_at_the_front_a_job_of_its_own_comes_before_its_queue_wherever_it_stood(broker):
    join(broker)
    for batch in ("b1", "b2", "b3"):
        submit(broker, batch, n=1, single=True)
    broker.cancel("b3")
    assert broker.retry("b3", [(0, 0)], nonce="n1", front=True) == 1
    assert [grant.batch for grant in claim(broker, want=3, free=3).grants] == ["b3", "b1", "b2"]
