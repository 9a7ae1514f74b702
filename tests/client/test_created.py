"""`Job.create` describes a call, `Queue.enqueue_job` sends it: the same Job before and after."""

from __future__ import annotations

import pytest

from nbqueue import Callback, Job, Queue, Repeat, Retry, State, gather
from nbqueue.errors import BadInput, BadItems, BadOption, InUse, NoSuchJob


def add(x, y=1):
    return x + y


def test_what_was_created_tells_of_itself_and_no_server_knows_it(session, q):
    said = {"timeout": "1m", "result_ttl": 60, "ttl": "2m", "meta": {"a": 1}, "retry": Retry(3), "repeat": Repeat(2)}
    job = Job.create(add, (1,), {"y": 2}, id="mine", description="a sum", depends_on=["other"], **said)
    assert (job.id, job.func_name, job.description, job.origin) == ("mine", "add", "a sum", "")
    assert (job.args, job.kwargs, job.func, job.call_string) == ((1,), {"y": 2}, add, "add(1, y=2)")
    assert (job.timeout, job.result_ttl, job.ttl, job.meta) == (60, 60, 120, {"a": 1})
    assert (job.retries_left, job.repeats_left, job.dependency_ids) == (3, 2, ["other"])
    assert job.get_status() == job.status == State.CREATED == "created"
    assert job.created_at is not None
    assert [job.enqueued_at, job.started_at, job.ended_at, job.result, job.return_value()] == [None] * 5
    assert not any([job.is_queued, job.is_finished, job.is_failed])
    assert "created" in repr(job)
    assert job.replay() == 3
    with pytest.raises(NoSuchJob):
        Job.fetch("mine")
    assert Job.create("os.path.basename", ["/a/b"]).func("/a/b") == "b"


def test_what_was_created_is_sent_as_it_is_and_its_job_goes_on_to_tell(q, hands):
    job = Job.create(add, (1,), ttl=60, timeout=-1)
    job.meta["a"] = 1
    job.save()
    job.meta["b"] = 2  # as in RQ, all of a job is written when it is enqueued
    assert q.enqueue_job(job) is job
    assert (job.get_status(), job.origin, job.timeout) == (State.QUEUED, "low", None)
    assert job.get_meta() == {"a": 1, "b": 2}
    assert 0 < job.ttl <= 60
    assert Job.fetch(job.id) == job
    assert hands.work() == 1
    assert job.wait(5) == job.result == 2
    assert q.enqueue_job(job) is job  # again
    assert job.get_status() is State.QUEUED


def test_the_queue_gives_its_default_limit_and_its_way(session):
    job = Queue("low", default_timeout=15).enqueue_job(Job.create(add, (1,)))
    assert job.timeout == 15
    assert Queue(is_async=False).enqueue_job(Job.create(add, (1,))).result == 2


def test_one_comes_before_what_waits(q, hands):
    first, front, option = q.enqueue(add, 1), Job.create(add, (2,)), Job.create(add, (3,), at_front=True)
    q.enqueue_job(front, at_front=True)
    q.enqueue_job(option)
    assert q.job_ids == [option.id, front.id, first.id]


def test_what_depends_on_a_created_job_waits_for_it(q, hands):
    first = Job.create(add, (1,))
    second = Job.create(add, (2,), depends_on=first)
    assert second.dependency_ids == [first.id]
    with pytest.raises(BadInput, match="not enqueued"):
        q.enqueue_job(second)
    q.enqueue_job(first)
    assert q.enqueue_job(second).get_status() is State.DEFERRED
    hands.work()
    hands.work()
    assert second.wait(5) == 3


@pytest.mark.parametrize(
    "act",
    [
        lambda job: job.wait(1),
        lambda job: job.exception(1),
        lambda job: job.cancel(),
        lambda job: job.requeue(),
        lambda job: job.delete(),
        lambda job: job.then(add),
        lambda job: gather([job], timeout=1),
        lambda job: Queue("low").enqueue(add, 1, depends_on=job),
        lambda job: job.latest_result(timeout=1),
    ],
)
def test_what_needs_a_sent_job_says_how_to_send_it(session, act):
    with pytest.raises(BadInput, match=r"enqueue_job\(job\) enqueues it"):
        act(Job.create(add, (1,)))


def test_what_cannot_be_meant_is_refused_where_it_is_typed(q, hands):
    for wrong, said in [
        (lambda: Job.create(42), "cannot be called"),
        (lambda: Job.create("myfunc"), "not a dotted function name"),
        (lambda: Job.create(add, "text"), "args="),
        (lambda: Job.create(add, (), "text"), "kwargs="),
        (lambda: Queue.prepare_data(add, (), "text"), "kwargs="),
        (lambda: q.enqueue_call(add, (), ["text"]), "kwargs="),
        (lambda: Job.create(add, timeout="soon"), "timeout"),
        (lambda: Job.create(add, depends_on=[1]), "names no job"),
        (lambda: Job.create(add, status="queued"), "no option 'status'"),
        (lambda: Job.create(add, on_success=Callback), "on_success"),
        (lambda: q.enqueue_job(add), r"Job\.create"),
        (lambda: Queue("high").enqueue_job(q.enqueue(add, 1)), "is in the queue low"),
        (lambda: q.enqueue_job(q.enqueue(add, 1)), "has not ended yet"),
    ]:
        with pytest.raises((BadInput, BadOption), match=said):
            wrong()
    misfit = Job.create(add, (1, 2, 3))
    with pytest.raises(BadItems):
        q.enqueue_job(misfit)
    twice = q.enqueue_job(Job.create(add, (1,), id="twice"))
    with pytest.raises(InUse):
        q.enqueue_job(Job.create(add, (1,), id="twice"))
    twice.delete()
    assert q.enqueue_job(Job.create(add, (1,), id="twice")).get_status() is State.QUEUED


def test_the_origin_of_a_created_job_may_be_said(q, hands):
    job = Job.create(add, (1,), origin="there")
    assert job.origin == "there"
    job.origin = "elsewhere"
    assert job.origin == "elsewhere"
    q.enqueue_job(job)
    with pytest.raises(BadInput, match="retry"):
        job.origin = "high"
    assert job.origin == "low"
