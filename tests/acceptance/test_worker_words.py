"""What a worker hears and says: messages from afar, suspension, schedules, meta and progress of running jobs."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import time

import pytest
from helpers import eventually, wait_until

import nbqueue
from nbqueue import current, wire
from nbqueue.client.lookup import waiting
from nbqueue.client.panel import polling
from nbqueue.client.worker import Worker
from nbqueue.model import JobMeta, decode
from nbqueue.policies import Repeat, Retry
from nbqueue.worker import mail


def nap(seconds):
    current.progress(0)  # so that others see that it has begun
    time.sleep(seconds)
    return "slept"


def test_a_worker_is_shut_down_from_afar_and_finishes_what_it_runs(session, fleet):
    worker = fleet.start("--grace", "0", lease=30, beat=5).up()
    job = nbqueue.submit(nap, 0.7)
    wait_until(lambda: saved(session, job))
    (found,) = Worker.all()
    assert (found.pid, found.state, found.slots, found.job_ids) == (worker.pid, "busy", 2, [job.id])
    found.shutdown()
    assert job.wait(20) == "slept"
    assert worker.process.wait(10) == 0
    assert Worker.all() == []


class Heavy:
    """Data that takes long to load."""

    def __reduce__(self):
        return time.sleep, (60,)


def test_a_shutdown_does_not_wait_for_what_is_still_loading(session, fleet):
    worker = fleet.start(lease=30, beat=5).up()
    job = nbqueue.submit(functools.partial(abs, Heavy()))
    wait_until(lambda: job.status == "started")
    Worker.all()[0].shutdown()
    assert worker.process.wait(10) == 0
    assert job.get_status() == "queued"


def test_a_message_that_nobody_signed_is_refused(session, fleet):
    worker = fleet.start(lease=30, beat=5).up()
    (found,) = Worker.all()
    session.broker.post(found.id, b"shutdown")
    wait_until(lambda: "a message was refused" in worker.log)
    forged = wire.Sealer(wire.Keyring([b"another secret of some length"], ""), session.settings.namespace)
    mail.send(session.broker, forged, found.id, mail.SHUTDOWN)
    wait_until(lambda: worker.log.count("a message was refused") == 2)
    assert nbqueue.submit(abs, -1).wait(10) == 1


def test_stopping_one_job_spares_the_others(session, fleet):
    worker = fleet.start(slots=3, lease=30, beat=5).up()
    batch = nbqueue.map(nap, [60, 0.5, 60])
    wait_until(lambda: batch.tally.started == 3)
    assert batch[0].stop()
    wait_until(lambda: batch[0].status == "canceled")
    assert batch[1].wait(10) == "slept"
    assert batch[2].status == "started"
    assert f"told to stop {batch.id}:0" in worker.log
    assert batch[0].outcome.cause == "user"
    batch.cancel()


def test_a_suspended_worker_takes_nothing_and_keeps_what_runs(session, fleet):
    worker = fleet.start(lease=30, beat=5).up()
    running = nbqueue.submit(nap, 0.5)
    wait_until(lambda: running.status == "started")
    session.broker.suspend()
    waiting = nbqueue.submit(abs, -1)
    assert running.wait(10) == "slept"
    wait_until(lambda: "suspended" in worker.log)
    assert waiting.status == "queued"
    assert fleet.start("--burst").process.wait(10) == 0  # it does not wait for the end of that
    session.broker.resume()
    assert waiting.wait(3) == 1
    assert worker.log.count("suspended") == 1


# ---------------------------------------------------------------- schedules


def test_a_scheduled_job_begins_at_its_time(session, fleet):
    fleet.start(lease=30, beat=20).up()
    nbqueue.submit(abs, -1).wait(20)  # warm
    job = nbqueue.options(retry=Retry(2, interval=[0.4, 0.2])).submit(late)
    began = session.broker.now_us()
    wait_until(lambda: job.outcome, 10)
    runs = [run.outcome.started_us for run in reversed(job.results())]
    gaps = [(after - before) / 1e6 for before, after in itertools.pairwise(runs)]
    assert len(gaps) == 2
    # A failure is settled 0.2 s after it happened; the interval begins there, and no beat is waited for at its end.
    assert 0.6 <= gaps[0] < 10, (began, runs)
    assert 0.4 <= gaps[1] < 10


def late():
    raise TimeoutError


def asks_again():
    return Retry(2) if current.get_current_job().attempt < 3 else "at last"


def test_a_job_may_ask_to_run_again(session, fleet):
    worker = fleet.start().up()
    job = nbqueue.submit(asks_again)
    assert job.wait(20) == "at last"
    assert [run.outcome.cause for run in job.results()] == [None, "retry", "retry"]
    assert worker.log.count("runs again") == 2


def test_a_repeat_runs_again_after_its_success(session, fleet):
    worker = fleet.start("--burst")
    job = nbqueue.options(repeat=Repeat(2, interval=0.1)).submit(abs, -2)
    assert worker.process.wait(20) == 0
    assert [run.return_value for run in job.results()] == [2, 2, 2]


# ---------------------------------------------------------------- what jobs say of themselves


def counting(n):
    job = current.get_current_job()
    for done in range(n):
        job.meta["done"] = done + 1
        job.save_meta()
        job.progress(done + 1, n, "counting")
    time.sleep(0.3 if n < 100 else 0.0)
    return job.meta["before"]


def saved(session, job):
    blob = session.broker.metas(job.batch.id, [job.index])[0]
    return blob and decode(JobMeta, session.sealer.unseal(wire.META, job.batch.id, job.index, blob))


def test_meta_and_progress_show_while_it_runs(session, fleet):
    fleet.start(lease=30, beat=5).up()
    job = nbqueue.options(meta={"before": 7}).submit(counting, 1)
    found = wait_until(lambda: (notes := saved(session, job)) and notes.progress and notes)
    assert job.status == "started"
    assert found == JobMeta({"before": 7, "done": 1}, (1, 1, "counting"))
    assert job.wait(10) == 7


def test_the_last_word_is_saved_before_the_outcome(session, fleet):
    fleet.start(lease=30, beat=5).up()
    job = nbqueue.options(meta={"before": 7}).submit(counting, 5000)
    assert job.wait(20) == 7
    assert saved(session, job) == JobMeta({"before": 7, "done": 5000}, (5000, 5000, "counting"))


# ---------------------------------------------------------------- one batch after another, job by job


def double(value):
    if value == 3:
        raise ValueError(value)
    return value * 2


def test_a_job_runs_on_the_result_of_another(session, fleet):
    fleet.start().up()
    first = nbqueue.map(double, range(5))
    second = first.then(double)
    assert second.wait(20)
    assert second.results(errors="skip") == [0, 4, 8, 16]
    assert second[3].outcome.cause == "dependency"
    assert first[3].status == "failed"


# ---------------------------------------------------------------- what keeps a job from running


def info(session, home):
    words = [sys.executable, "-m", "nbqueue", "info", "--url", session.settings.url]
    words += ["--namespace", session.settings.namespace]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "300"})
    return told.stdout


def test_a_key_that_no_worker_has_is_told_by_all_who_tell_it(session, fleet, tmp_path, capfd, monkeypatch):
    other = str(tmp_path / "web-home")
    stranger = fleet.start("low", env={"NBQUEUE_HOME": other}).up()
    job = nbqueue.Queue("low").enqueue(abs, -1)
    key = session.sealer.keyring.ids[0]
    name = f"key {key} ({job.batch.spec.owner})"
    with pytest.raises(nbqueue.NotDone) as caught:
        job.wait(0.2)
    assert f"It waits: no worker of the queue 'low' has {name}" in str(caught.value)
    assert "NBQUEUE_SECRET" in str(caught.value)
    assert "is still running" not in str(caught.value)
    told = " ".join(info(session, other).split())
    assert f"1 job waits: no worker of the queue 'low' has {name}" in told
    eventually(lambda: f"1 batch waits for {name}" in stranger.log)
    burst = fleet.start("low", "--burst", env={"NBQUEUE_HOME": other})
    assert burst.process.wait(30) == 0
    assert f"left for others: 1 batch waits for {name}" in burst.log
    monkeypatch.setattr(waiting, "ADVISE", 0.1)
    with pytest.raises(nbqueue.NotDone):
        job.wait(1)
    assert f"nbqueue: no worker of the queue 'low' has {name}" in capfd.readouterr().err
    poller = polling.WorkersPoller()
    monkeypatch.setattr(polling, "WORKERS_PERIOD", 0.0)
    monkeypatch.setattr(polling, "PATIENCE", 0.0)
    poller.poll([job.batch])
    assert name in poller.found.advice


def test_what_is_not_done_says_where_it_is(session, fleet, tmp_path):
    q, gate = nbqueue.Queue("low"), tmp_path / "gate"

    def wait_for(path):
        while not path.exists():
            time.sleep(0.01)

    def words(job):
        with pytest.raises(nbqueue.NotDone) as caught:
            job.wait(0.01)
        return str(caught.value)

    first = q.enqueue(wait_for, gate)
    assert "no live worker serves the queue 'low'" in words(first)
    fleet.start("low", slots=1).up()
    eventually(lambda: first.get_status() == "started")
    assert "It is still running; wait again" in words(first)
    assert "the only slot of its worker is busy" in words(q.enqueue(abs, -1))
    assert f"It waits for {first.id};" in words(q.enqueue(abs, -1, depends_on=first))
    assert "It waits for its time, 2" in words(q.enqueue_in(3600, abs, -1))
    session.broker.suspend(None)
    assert "all workers are suspended. `nbqueue resume`" in words(q.enqueue(abs, -1))
    gate.touch()
