"""A SimpleWorker in bad times, and beside other threads."""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import wait_until

import nbqueue
from nbqueue import current
from nbqueue.client.worker import SimpleWorker, Worker
from nbqueue.errors import NoServer
from nbqueue.store.broker import Broker
from nbqueue.worker.simple import Simple


@pytest.fixture
def simple(session):
    """Makes SimpleWorkers."""
    return lambda **options: SimpleWorker(["default"], worker_ttl=5, **options)


def never(*_):
    raise AssertionError("there was no failure")


def test_it_keeps_nothing_of_jobs_that_are_over(session):
    jobs = [nbqueue.options(on_failure=never).submit(abs, number) for number in range(3)]
    plan = SimpleWorker().plan(burst=True, max_jobs=None, max_idle=None)
    worker = Simple(session.fresh_broker(), session.fresh_broker(), session.sealer, plan, handlers=[never])
    worker.run()
    assert [job.wait(5) for job in jobs] == [0, 1, 2]
    assert not worker.rider._jobs
    assert not worker.ledger.tasks
    assert not worker.notes._pages


def test_what_a_function_took_along_is_fresh_in_each_job(session, simple):
    seen = []

    def f(x):
        seen.append(x)
        return len(seen)

    batch = nbqueue.map(f, range(5))
    simple().work(burst=True)
    assert batch.results() == [1] * 5
    assert seen == []


def test_it_leaves_the_names_of_the_users_main_alone(session, simple, monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "seen", [], raising=False)
    names = {"__name__": "__main__", "seen": main.seen}
    before = {**vars(main)}
    exec("def f(x):\n    seen.append(x)\n    return len(seen)", names)
    batch = nbqueue.map(names["f"], range(3))
    simple().work(burst=True)
    assert batch.results() == [1] * 3
    assert main.seen is names["seen"]
    assert vars(main) == before


def away_at(monkeypatch, verb, which):
    """Lets a verb of the store fail once, as if the server were away; what was asked is appended to the answer."""
    asked, real = [], getattr(Broker, verb)

    def stand_in(broker, name, *rest, **facts):
        asked.append(name)
        if len(asked) == which:
            raise NoServer(url="there", why="it was away for a moment", remedy="")
        return real(broker, name, *rest, **facts)

    monkeypatch.setattr(Broker, verb, stand_in)
    return asked


def test_a_job_whose_function_could_not_be_fetched_is_not_dropped(session, simple, monkeypatch):
    job, tries = nbqueue.submit(abs, -5), away_at(monkeypatch, "function", 1)
    simple().work(max_jobs=1)
    assert job.wait(5) == 5
    assert tries == [job.id, job.id]


def test_a_server_that_goes_away_as_the_lease_ends_is_waited_for(session, simple, monkeypatch):
    joins, jobs = away_at(monkeypatch, "join", 2), []

    def end_the_lease():
        wait_until(session.broker.workers)
        session.broker.leave(joins[0])
        jobs.append(nbqueue.submit(abs, -6))

    thread = threading.Thread(target=end_the_lease)
    thread.start()
    simple().work(max_jobs=1)
    thread.join()
    assert jobs[0].wait(5) == 6
    assert len(set(joins)) == 3


def dozes():
    time.sleep(0.6)


def test_it_is_idle_from_its_last_job_on(session, simple):
    first, second = nbqueue.submit(dozes), []
    thread = threading.Thread(target=lambda: first.wait(5) or second.append(nbqueue.submit(abs, -1)))
    thread.start()
    simple().work(max_idle_time=0.5)
    thread.join()
    assert second[0].wait(1) == 1


def test_all_queues_are_those_that_come_later_too(session):
    thread = threading.Thread(target=lambda: SimpleWorker("*", worker_ttl=1).work(max_jobs=1))
    thread.start()
    wait_until(session.broker.workers)
    assert nbqueue.options(queue="late").submit(abs, -9).wait(10) == 9
    thread.join()


def shuts_its_worker_down(url, namespace):
    from nbqueue.client.session import session as sessions

    for worker in Worker.all(url, namespace=namespace):
        worker.shutdown()
    sessions.of(url, namespace).disconnect()


def test_it_hears_a_shutdown_though_there_is_more_to_do(session, simple):
    where = session.settings
    jobs = [nbqueue.submit(shuts_its_worker_down, where.url, where.namespace) for _ in range(2)]
    simple().work(burst=True)
    assert jobs[0].wait(5) is None
    assert jobs[1].get_status() == "queued"


GATE = threading.Event()


def waits_for_the_gate():
    import test_simple_worker

    return test_simple_worker.GATE.wait(10), current.current()


def test_other_threads_may_submit_while_it_works(session, simple):
    job = nbqueue.submit(waits_for_the_gate)
    thread = threading.Thread(target=lambda: simple().work(burst=True))
    thread.start()
    wait_until(lambda: job.status == "started")
    more = nbqueue.submit(abs, -7)
    GATE.set()
    thread.join()
    assert (job.wait(5), more.wait(5)) == ((True, job.id), 7)


def test_a_worker_needs_no_descriptor_behind_stderr_and_leaves_none_open(session):
    job = nbqueue.submit(abs, -8)
    with contextlib.redirect_stderr(io.StringIO()) as log:
        Worker(slots=1).work(burst=True)
    assert job.wait(5) == 8
    assert "jobs served: 1" in log.getvalue()
    before = descriptors()
    gc.disable()
    try:
        assert not Worker(slots=1).work(burst=True)
        assert not SimpleWorker().work(burst=True)
        assert descriptors() <= before
    finally:
        gc.enable()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))
