"""A user's tests on fakeredis: enqueue, fetch, and work it off in this process, without a server."""

import threading

import fakeredis
import pytest
from helpers import eventually

import nbqueue
from nbqueue.client.session import session as sessions


@pytest.fixture
def connection(home):
    found = fakeredis.FakeRedis()
    yield found
    for opened in [*sessions._by_place.values()]:
        opened.collector.stop()
    sessions._by_place.clear()


def double(x):
    return 2 * x


def work(*queues, connection, **how):
    return nbqueue.SimpleWorker(queues, connection=connection, quiet=True).work(burst=True, **how)


def test_enqueue_fetch_and_work_it_off(connection):
    q = nbqueue.Queue("low", connection=connection)
    jobs = [q.enqueue(double, x, meta={"x": x}) for x in range(3)]
    assert (len(q), q.job_ids) == (3, [job.id for job in jobs])
    assert q.fetch_job(jobs[0].id).get_status() == "queued"
    assert work(q, connection=connection)
    assert [job.result for job in jobs] == [0, 2, 4]
    assert nbqueue.Job.fetch(jobs[1].id, connection=connection).return_value() == 2
    assert (len(q), len(q.finished), jobs[2].get_meta()) == (0, 3, {"x": 2})


def test_failures_retries_dependencies_and_cancels(connection):
    q = nbqueue.Queue(connection=connection)
    bad = q.enqueue(double, None, retry=nbqueue.Retry(max=1))
    after = q.enqueue(double, 1, depends_on=q.enqueue(double, 2))
    never = q.enqueue(double, 1, depends_on=bad)
    gone = q.enqueue(double, 5)
    assert gone.cancel()
    assert work(q, connection=connection)
    assert (bad.get_status(), after.result, never.get_status(), gone.get_status()) == (
        "failed",
        2,
        "canceled",
        "canceled",
    )
    assert bad.attempt == 2
    assert q.failed.requeue() == 1
    assert work(q, connection=connection)
    assert len(bad.results()) >= 2


def test_each_fake_is_a_server_of_its_own(connection):
    other = fakeredis.FakeRedis()
    nbqueue.Queue(connection=connection).enqueue(double, 1)
    assert (len(nbqueue.Queue(connection=connection)), len(nbqueue.Queue(connection=other))) == (1, 0)
    both = fakeredis.FakeServer()
    first, second = (nbqueue.Queue(connection=fakeredis.FakeRedis(server=both)) for _ in range(2))
    job = first.enqueue(double, 1)
    assert second.job_ids == [job.id]


def test_at_once(connection):
    q = nbqueue.Queue(connection=connection, is_async=False)
    assert q.enqueue(double, 4).result == 8


def test_a_worker_that_stays_hears_of_work_and_of_its_end(connection):
    q = nbqueue.Queue(connection=connection)
    worker = nbqueue.SimpleWorker(q, connection=connection, quiet=True)
    thread = threading.Thread(target=worker.work)
    thread.start()
    assert q.enqueue(double, 1).wait(20) == 2
    assert q.enqueue(double, 2).wait(20) == 4
    eventually(lambda: nbqueue.Worker.all(connection=connection))[0].shutdown()
    thread.join(20)
    assert not thread.is_alive()
