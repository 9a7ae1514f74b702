"""`Queue(is_async=False)`: calls run at once, in this process, without a worker or a server."""

from __future__ import annotations

import pytest

import nbqueue
from nbqueue import Callback, Queue, Repeat, Retry, get_current_job
from nbqueue.errors import InsideJob
from nbqueue.model import Cause


@pytest.fixture
def q(monkeypatch):
    # Whoever tries to connect fails.
    monkeypatch.setenv("NBQUEUE_URL", "redis://127.0.0.1:1")
    return Queue("low", is_async=False)


def add(x, y=1):
    return x + y


def boom(x):
    raise ValueError(x)


def test_a_call_is_over_when_enqueue_returns(q):
    job = q.enqueue(add, 1, y=2, job_id="x", timeout=5)
    assert (job.result, job.return_value(), job.status, job.is_finished, job.wait()) == (3, 3, "finished", True, 3)
    assert (job.args, job.kwargs, job.origin, job.timeout, job.attempt) == ((1,), {"y": 2}, "low", 5, 1)
    assert job.created_at <= job.enqueued_at <= job.started_at <= job.ended_at
    assert q.fetch_job("x") == job
    assert (job.log, job.exc_info, job.get_position(), job.cancel(), job.stop()) == ("", None, None, False, False)
    bad = q.enqueue(boom, 7)
    assert (bad.status, bad.cause, bad.error) == ("failed", Cause.ERROR, "ValueError: 7")
    assert "ValueError: 7" in bad.exc_info
    assert nbqueue.gather([job, bad])["status"].tolist() == ["finished", "failed"]
    assert [one.result for one in q.enqueue_many([Queue.prepare_data(add, (n,)) for n in range(3)])] == [1, 2, 3]
    assert q.enqueue_in("5m", add, 1).result == 2


def test_all_of_a_jobs_life_happens_at_once(q):
    def work():
        here = get_current_job()
        here.meta["attempt"] = here.attempt
        here.save_meta()
        nbqueue.progress(here.attempt, 3)
        with pytest.raises(InsideJob):
            q.enqueue(add, 1)
        if here.attempt < 3:
            raise ValueError(here.attempt)
        return here.id

    job = q.enqueue(work, meta={"user": "anna"}, retry=Retry(5, interval=60), on_failure="builtins.len")
    assert job.result == job.id
    assert (job.meta, job.progress) == ({"user": "anna", "attempt": 3}, (3, 3, ""))
    assert [run.attempt for run in job.results()] == [3, 2, 1]
    job.meta["more"] = 1
    job.save_meta()
    assert q.fetch_job(job.id).meta["more"] == 1
    assert q.enqueue(lambda: Retry(2)).cause == Cause.RETRY
    assert len(q.enqueue(add, 1, repeat=Repeat(2)).results()) == 3
    # Callbacks travel as they do to a worker: by value.
    echoed = q.enqueue(add, 1, on_success=Callback(lambda job, connection, result: 1 // 0)).echoes
    assert [(echo.hook, echo.failure.type) for echo in echoed] == [("success", "ZeroDivisionError")]


def test_at_once_lets_exceptions_through_where_one_debugs(q):
    with pytest.raises(ValueError, match="7"):
        q.options(inline=True).enqueue(boom, 7)
    assert q.enqueue(boom, 7).requeue().is_failed


def test_a_batch_in_this_process_has_callbacks_and_meta_too():
    batch = nbqueue.map(boom, [1, 2], inline="collect", retries=1, meta={"a": 1}, on_failure=lambda *_: None)
    assert [len(job.results()) for job in batch] == [2, 2]
    assert batch.to_frame(meta=True)["meta"].tolist() == [{"a": 1}] * 2
    assert batch[0].echoes[0].failure is None
    assert batch.failed.requeue() == 2


def test_what_follows_a_batch_of_a_server_runs_here_where_that_is_asked(session, hands):
    remote = nbqueue.map(abs, [-1, -2, "x"])
    hands.work()
    here = remote.then(add, inline="collect")
    assert here.results("skip") == [2, 3]
    assert [str(state) for state in here.to_frame()["status"]] == ["finished", "finished", "canceled"]
    assert here.to_frame()["x"].tolist()[:2] == [1, 2]
    assert session.broker.view(here.id) is None
    assert nbqueue.Job.fetch(here[0].id).result == 2
    single = nbqueue.submit(abs, -5)
    hands.work()
    assert single.then(add, inline=True).result == 6


def test_what_max_failed_cancels_here_has_the_cause_that_it_has_on_a_server():
    batch = nbqueue.map(boom, range(4), inline="collect", max_failed=1)
    assert [job.cause for job in batch] == [Cause.ERROR, Cause.ERROR, Cause.USER, Cause.USER]
    assert batch.to_frame()["error"].tolist()[2:] == ["canceled"] * 2
