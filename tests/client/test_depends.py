"""What runs after what: depends_on in all its spellings, batch.then, and what becomes of those that wait in vain."""

from __future__ import annotations

import threading

import pytest
from helpers import wait_until

import nbqueue
from nbqueue import Dependency, Queue
from nbqueue.client.batch import Batch
from nbqueue.errors import BadInput, BadItems, BadOption, JobCanceled, NoSuchDependency
from nbqueue.model import State


def add(x, y=1):
    return x + y


def boom(x):
    raise ValueError(x)


def even(x):
    if x % 2:
        raise ValueError(x)
    return x


@pytest.fixture
def q(session):
    return Queue()


def test_what_depends_on_a_canceled_job_may_run_all_the_same(session, hands):
    q = Queue()
    first = q.enqueue(add, 1)
    after, chained = q.enqueue(add, 2, depends_on=first), first.then(add)
    assert nbqueue.cancel_job(first.id, enqueue_dependents=True)
    assert (first.get_status(), after.get_status(), chained.get_status()) == ("canceled", "queued", "canceled")
    assert not first.cancel(enqueue_dependents=True)
    hands.work()
    assert after.wait(5) == 3
    failed = q.enqueue(boom, 1)
    late = q.enqueue(add, 2, depends_on=failed)
    hands.work()
    assert late.get_status() == "canceled"
    assert not failed.cancel(enqueue_dependents=True)  # it has failed, and late runs in spite of that
    hands.work()
    assert late.wait(5) == 3


def test_a_dependency_is_a_job_an_id_a_batch_or_many_of_them(q, session, hands):
    first, batch = q.enqueue(add, 1), nbqueue.map(add, [1, 2])
    named = {
        "job": (first, [first.id]),
        "id": (first.id, [first.id]),
        "job of a batch": (batch[1], [f"{batch.id}:1"]),
        "its id": (f"{batch.id}:1", [f"{batch.id}:1"]),
        "batch": (batch, [batch.id]),
        "list": ([first, batch, batch[0].id], [first.id, batch.id, f"{batch.id}:0"]),
        "Dependency": (Dependency([first, batch]), [first.id, batch.id]),
        "several": ([Dependency(first, allow_failure=True), batch[0]], [f"{batch.id}:0", first.id]),
        "a slice": (batch[:2], [f"{batch.id}:0", f"{batch.id}:1"]),
    }
    waiting = {how: q.enqueue(add, 5, depends_on=what) for how, (what, _) in named.items()}
    assert {how: job.dependency_ids for how, job in waiting.items()} == {how: ids for how, (_, ids) in named.items()}
    assert {job.status for job in waiting.values()} == {State.DEFERRED}
    assert (len(q), len(q.deferred)) == (3, len(named))
    later = nbqueue.map(add, [7, 8], depends_on=[batch])
    assert [job.status for job in later] == [State.DEFERRED] * 2
    assert hands.work() == 3
    assert hands.work() == len(named) + 2
    assert later.results(timeout=20) == [8, 9]
    assert {job.wait(20) for job in waiting.values()} == {6}


def test_a_dependency_that_is_not_there_is_an_error_and_nothing_is_sent(q, session):
    there = nbqueue.map(add, [1, 2])
    for missing in ("nothing", "nothing:3", f"{there.id}:2"):
        with pytest.raises(NoSuchDependency, match=r"nothing|:2"):
            q.enqueue(add, 1, depends_on=missing)
        with pytest.raises(NoSuchDependency):
            nbqueue.map(add, [1, 2], depends_on=[missing, there])
    assert [view.id for view in session.broker.batches()] == [there.id]
    assert q.enqueue(add, 1, depends_on=[]).status == "queued"
    q.empty()


def test_who_waits_for_a_failed_job_is_canceled_and_comes_back_with_a_retry(q, busy):
    bad = q.enqueue(boom, 1)
    after = q.enqueue(add, 1, depends_on=bad)
    beyond = q.enqueue(add, 1, depends_on=after)
    anyway = q.enqueue(add, 1, depends_on=Dependency([bad], allow_failure=True))
    with pytest.raises(JobCanceled, match="dependency"):
        beyond.wait(10)
    assert (after.status, after.cause, after.error) == (
        "canceled", "dependency", f"canceled: {bad.id}, which it depends on, did not finish",
    )  # fmt: skip
    assert anyway.wait(20) == 2
    late = q.enqueue(add, 1, depends_on=bad)
    assert late.cause == "dependency"
    Batch(bad.batch).retry(func=add)
    assert bad.wait(20) == 2
    # This session has seen them end, and was told nothing of the retry: what it remembers is not the truth any more.
    assert [job.wait(20) for job in (after, beyond, late)] == [2, 2, 2]
    assert {job.status for job in (after, beyond, late)} == {State.FINISHED}


def test_batches_that_were_canceled_with_their_source_come_back_with_its_retry(q, busy):
    source = nbqueue.map(even, [2, 3])
    after, behind = source.then(add), nbqueue.map(add, [1, 2], depends_on=source)
    single = q.enqueue(add, 1, depends_on=source)
    attached = nbqueue.attach(behind.id)
    assert after.to_frame()["status"].tolist() == ["finished", "canceled"]
    assert all(batch.wait(20) and batch.tally.canceled == 2 for batch in (behind, attached))
    assert nbqueue.gather([single])["status"].tolist() == ["canceled"]
    source.retry(func=add)
    assert after.to_frame()["result"].tolist() == [3, 5]
    assert (behind.results(timeout=20), attached.results(timeout=20)) == ([2, 3], [2, 3])
    assert nbqueue.gather([single])["status"].tolist() == ["finished"]
    assert [str(each.tally) for each in (after, behind)] == ["2 finished", "2 finished"]


def test_then_runs_job_by_job_on_the_results(session, hands):
    source = nbqueue.map(even, [2, 3, 4])
    after = source.then(add, timeout=60, description="plus one")
    beyond = after.then(add)
    assert (len(after), len(beyond), after.ref.spec.timeout) == (3, 3, 60)
    assert hands.work(1) == 1
    assert after[0].status == "queued"
    assert [job.status for job in after[1:]] == [State.DEFERRED] * 2
    while hands.work():
        pass
    assert beyond.wait(20)
    assert beyond.results(errors="skip") == [4, 6]
    frame = after.to_frame()
    assert frame["status"].tolist() == ["finished", "canceled", "finished"]
    assert frame["x"].tolist()[::2] == [2, 4]
    assert frame["x"].isna().tolist() == [False, True, False]
    assert after[1].cause == "dependency"
    assert nbqueue.attach(beyond.id).to_frame()["x"].tolist()[::2] == [3, 5]
    assert source[1].requeue().status == "queued"
    assert after[1].get_status() == "deferred"
    source.cancel()
    assert hands.work() == 0


def test_then_follows_an_input_that_is_still_read(session, busy):
    gate = threading.Event()

    def items():
        yield 1
        gate.wait(10)
        yield 2

    source = nbqueue.map(add, items())
    after = source.then(lambda x: x * 10)
    assert after[0].wait(20) == 20
    assert not after.done
    gate.set()
    assert after.results(timeout=20) == [20, 30]
    assert source.then(add).results(timeout=10) == [3, 4]  # of one that is done


def test_then_keeps_the_labels_of_the_items(session, busy):
    import pandas as pd

    source = nbqueue.map(add, pd.Series([1, 2], index=pd.Index(["a", "b"], name="who")))
    frame = source.then(add).then(add).to_frame(timeout=10)
    assert frame.index.tolist() == ["a", "b"]
    assert frame.index.name == "who"
    assert frame["result"].tolist() == [4, 5]


def test_then_of_one_job(q, session, busy):
    job = q.enqueue(add, 1)
    after = job.then(add, at_front=True)
    assert (after.wait(20), after.batch.single, after.dependency_ids, after.origin) == (3, True, [job.id], "default")
    batch = nbqueue.map(add, [1])
    with pytest.raises(BadInput, match=r"batch.then\(f\)"):
        batch[0].then(add)
    with pytest.raises(BadOption, match=r"no option 'y'.*functools.partial"):
        batch.then(add, y=1)
    with pytest.raises(BadItems, match="cannot take the results of"):
        batch.then(lambda: 0)
    with pytest.raises(BadOption, match="is for one call"):
        batch.then(add, job_id="x")
    batch.wait(10)


def test_at_once_in_this_process_what_depends_waits_too():
    here = Queue(is_async=False)
    good, bad = here.enqueue(add, 1), here.enqueue(boom, 1)
    assert here.enqueue(add, 1, depends_on=[good]).result == 2
    assert here.enqueue(add, 1, depends_on=[good, bad]).cause == "dependency"
    assert here.enqueue(add, 1, depends_on=Dependency([bad], allow_failure=True)).result == 2
    with pytest.raises(BadInput, match="takes Jobs"):
        here.enqueue(add, 1, depends_on=good.id)
    batch = nbqueue.map(even, [1, 2], inline="collect")
    after = batch.then(add)
    assert after.results(errors="skip") == [3]
    assert after[0].cause == "dependency"
    wait_until(lambda: after.done)
