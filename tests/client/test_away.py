"""A server that is away, or takes long to answer: whoever waits is told in time, and what can go on goes on."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import wait_until
from proxy import Proxy

import nbqueue
from nbqueue.client.job import Job
from nbqueue.client.jobs import Jobs
from nbqueue.client.lookup import find, waiting
from nbqueue.client.session.session import Session
from nbqueue.client.submit import upload
from nbqueue.errors import NoServer, NotDone


def square(x):
    return x * x


def fails(x):
    raise ValueError(x)


@pytest.fixture
def proxy(server):
    found = Proxy(server.url)
    yield found
    found.close()


@pytest.fixture
def far(proxy, session):
    """A session that reaches the server by the proxy."""
    found = nbqueue.connect(f"{proxy.url}?socket_timeout=1", namespace=session.settings.namespace)
    yield found
    proxy.closed, proxy.latency = False, 0.0
    found.collector.stop()
    found.disconnect()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as found:
        yield found


def goes_away(proxy, far):
    proxy.closed = True
    proxy.cut()
    wait_until(lambda: far.collector.outage is not None, 20)


def test_an_open_upload_does_not_hold_the_collector_up(far, proxy, hands, monkeypatch):
    monkeypatch.setattr(upload, "BEAT", 0.05)
    more = threading.Event()

    def items():
        yield 1
        more.wait(60)
        yield 2

    batch = nbqueue.map(square, items())
    goes_away(proxy, far)
    proxy.closed = False
    wait_until(lambda: far.collector.outage is None, 20)
    more.set()
    wait_until(lambda: far.broker.view(batch.id).n == 2, 20)
    hands.work()
    assert batch.results(timeout=20) == [1, 4]


def test_an_upload_whose_batch_is_gone_leaves_others_alone(session, hands, monkeypatch):
    monkeypatch.setattr(upload, "BEAT", 0.01)
    more = threading.Event()

    def items():
        yield 1
        more.wait(60)

    lost = nbqueue.map(square, items())
    other = nbqueue.map(square, [1, 2])
    keys = session.broker.keys
    session.broker.client.delete(keys.at("b", lost.id))
    wait_until(lambda: lost.ref.state.gone or lost.ref.state.error)
    hands.work()
    assert other.results(timeout=10) == [1, 4]
    more.set()
    session.broker.client.delete(*session.broker.client.scan_iter(match=f"{keys.at('b', lost.id)}*"))


def test_who_waits_for_a_job_rides_an_outage_out(far, proxy, hands, pool):
    batch, one = nbqueue.map(square, [2, 3]), nbqueue.submit(square, 4)
    goes_away(proxy, far)
    waits = [pool.submit(batch[0].wait, 60), pool.submit(batch[1].exception, 60), pool.submit(one.wait, 60)]
    assert [job.result for job in (*batch, one)] == [None] * 3
    hands.work()
    proxy.closed = False
    assert [each.result(60) for each in waits] == [4, None, 16]


def test_a_timeout_holds_where_the_server_answers_late(far, proxy, pool, monkeypatch):
    monkeypatch.setattr(waiting, "ADVISE", 0.1)
    slow = nbqueue.connect(f"{proxy.url}?socket_timeout=50", namespace=far.settings.namespace)
    batch = nbqueue.map(square, [2, 3])
    fetched = nbqueue.Job.fetch(batch[1].id)
    proxy.latency = 40.0
    assert pool.submit(batch.wait, 1).result(20) is False
    with pytest.raises(NotDone):
        pool.submit(fetched.wait, 1).result(20)

    async def patient():
        await asyncio.wait_for(asyncio.ensure_future(batch), 1)

    with pytest.raises(TimeoutError):
        pool.submit(asyncio.run, patient()).result(20)
    proxy.latency = 0.0
    proxy.cut()
    slow.collector.stop()
    slow.disconnect()
    nbqueue.connect(proxy.url, namespace=far.settings.namespace).broker.cancel(batch.id)


def test_a_job_that_nobody_follows_still_says_that_there_is_no_server(far, proxy, session):
    job = nbqueue.submit(square, 2)
    other = Session(far.settings)
    found = find.fetch(other, job.id)
    proxy.closed = True
    proxy.cut()
    with pytest.raises(NoServer):
        _ = Job(found.batch, found.index).result
    proxy.closed = False
    other.disconnect()
    job.cancel()


@pytest.fixture
def hanging(far, proxy):
    """Makes the server hang for a session that has sockets of much patience; `hanging()` begins it."""
    slow = nbqueue.connect(f"{proxy.url}?socket_timeout=50", namespace=far.settings.namespace)
    yield lambda: setattr(proxy, "latency", 40.0)
    proxy.latency = 0.0
    proxy.cut()
    slow.collector.stop()
    slow.disconnect()
    nbqueue.connect(proxy.url, namespace=far.settings.namespace)


def test_each_verb_with_a_timeout_keeps_it_where_the_server_hangs(hanging, hands, pool):
    failed, waiting_ = nbqueue.map(fails, [2, 3]), nbqueue.map(square, [4, 5], queue="other")
    hands.work()
    failed.wait()
    jobs = Jobs(nbqueue.Job.fetch_many([job.id for job in waiting_]), "jobs that nobody follows")
    hanging()
    assert pool.submit(lambda: list(failed.as_completed(1))).result(20) == list(failed)
    for verb in (
        lambda: nbqueue.gather(jobs, timeout=1),
        lambda: jobs.results(timeout="1s"),
        lambda: jobs[0].exception(1),
        lambda: jobs[1].latest_result(1),
    ):
        with pytest.raises((NotDone, NoServer), match="does not answer"):
            pool.submit(verb).result(20)


def interrupted(ask):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    ask()


def test_ctrl_c_ends_a_question_to_a_server_that_hangs(hanging, hands):
    job = nbqueue.submit(square, 4)
    fetched = nbqueue.Job.fetch(job.id)
    hanging()
    for ask in (lambda: fetched.result, lambda: fetched.status, lambda: fetched.exception(1000)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(ask)
