"""The wire between: replies lost, links reset, silent, slow or dripping. Nothing is run twice, lost, or waited for."""

import contextlib
import os
import time

import pytest
from helpers import wait_until

import nbqueue
from nbqueue.errors import NoServer, NoSuchWorker
from nbqueue.store.scripts import load


@pytest.mark.parametrize("verb", ["submit", "claim", "settle"])
def test_lost_replies(wire, verb):
    """Three tries make one command: from the third on, the verb's own caller must see to it."""
    worker = wire.start().up()
    first = wire.map(2)  # from here on the server knows the scripts
    assert first.wait(20), worker.log
    batches = []
    for times in (1, 3, 12):
        wire.proxy.lose(load(verb).sha, times, least=200 if verb == "claim" else 0)
        before = wire.proxy.lost
        batches.append(wire.map(4))
        assert batches[-1].wait(40), worker.log
        # The outcomes were there with the first try, and could be seen: the worker goes on trying until it hears so.
        wait_until(lambda expected=before + times: wire.proxy.lost == expected, 30)
    wire.ends_well(first, *batches)
    assert all(len(runs) == 1 for runs in wire.witness.lives().values())  # none has run twice
    assert {job.outcome.attempt for batch in batches for job in batch} == {1}, worker.log
    assert "gives back" not in worker.log


def test_a_submit_that_may_have_arrived_says_so(wire, monkeypatch):
    from nbqueue.client.submit import upload

    monkeypatch.setattr(upload, "ARRIVE", 0.5)
    nbqueue.map(abs, [1]).cancel()
    wire.proxy.lose(load("submit").sha, 1000)
    with pytest.raises(NoServer, match=r"nbqueue\.attach\('abs-\w+'\)") as told:
        nbqueue.map(abs, [-1, -2])
    wire.proxy.lose("", 0)
    batch = nbqueue.attach(str(told.value).partition("attach('")[2].partition("'")[0])
    wire.start().up()
    assert batch.results(timeout=20) == [1, 2]


def test_many_single_jobs_arrive_once(wire):
    q = nbqueue.Queue("default")
    q.enqueue(abs, -1)
    wire.proxy.lose(load("submit").sha, 5)
    jobs = q.enqueue_many([nbqueue.Queue.prepare_data(abs, (-n,)) for n in range(50)])
    assert 1 <= wire.proxy.lost <= 5  # of a long pipeline the proxy may see the end only
    assert len(q) == 51
    wire.start().up()
    assert [job.wait(20) for job in jobs] == list(range(50))


@pytest.mark.parametrize("verb", ["submit", "extend"])
def test_a_reset_inside_a_large_submit(wire, verb):
    nbqueue.map(abs, range(2_000)).cancel()  # both scripts are known
    wire.proxy.tear(load(verb).sha, 20_000)
    batch = nbqueue.map(abs, range(5_000))
    wire.witness.watch(batch.id)
    wait_until(lambda: wire.proxy.resets == 1)
    wire.start().up()
    wire.ends_well(batch)
    assert {job.outcome.attempt for job in batch} == {1}


def test_a_large_submit_goes_on_when_the_wire_is_back(wire):
    nbqueue.map(abs, range(2_000)).cancel()
    wire.proxy.lose(load("extend").sha, 12)
    batch = nbqueue.map(abs, range(5_000))
    wire.witness.watch(batch.id)
    wait_until(lambda: wire.proxy.lost == 12, 30)
    wire.start().up()
    wire.ends_well(batch)


@pytest.mark.parametrize("when", ["idle", "running"])
def test_a_half_open_link(wire, when):
    """What was open takes all and answers nothing, for ever: every end of it notices by itself."""
    worker = wire.start().up()
    first = wire.map(8 if when == "running" else 2)
    wait_until(lambda: first.tally.finished >= 2, 20)
    wire.proxy.silence()
    begun = time.monotonic()
    second = wire.map(2)
    assert second.wait(30), worker.log
    assert time.monotonic() - begun < 25
    wire.ends_well(first, second)


def test_a_letter_is_heard_after_the_mail_link_went_silent(wire):
    """It is listened to for long at a stretch, and nothing is ever sent on it meanwhile."""
    worker = wire.start("--name", "far").up()
    batch = wire.map(2)
    assert batch.wait(20), worker.log
    wire.proxy.silence()
    (far,) = [each for each in nbqueue.Worker.all() if each.name.startswith("far")]

    def gone():
        with contextlib.suppress(NoSuchWorker):
            far.shutdown()  # what was sent into the dead link is lost: said again, it is heard by the next one
        return worker.process.poll() is not None

    wait_until(gone, 30, every=0.5)
    assert worker.process.returncode == 0, worker.log
    wire.ends_well(batch)


def test_latency(slow_wire):
    wire = slow_wire
    worker = wire.start(lease=30, beat=5).up()
    first = wire.map(2)
    assert first.wait(20), worker.log
    wire.proxy.latency = float(os.environ.get("NBQUEUE_TEST_LATENCY", "0.5"))  # 2.0 takes half a minute
    second = wire.map(4)
    assert second.wait(90), worker.log
    wire.proxy.latency = 0.0
    wire.ends_well(first, second)
    assert {job.outcome.attempt for job in second} == {1}


def test_one_byte_at_a_time(wire):
    worker = wire.start(lease=10, beat=2).up()
    wire.proxy.drip = True
    batch = wire.map(12)
    assert batch.wait(50), worker.log
    wire.proxy.drip = False
    wire.ends_well(batch)
    assert {job.outcome.attempt for job in batch} == {1}
