"""`nbqueue worker`: bursts, limits on jobs and idleness, queues, logs."""

import os
import signal
import time

from helpers import wait_until

import nbqueue
from nbqueue.worker.tree import children


def test_burst_leaves_when_nothing_is_left(session, fleet):
    batch = nbqueue.map(abs, range(500))
    worker = fleet.start("--burst")
    assert worker.process.wait(30) == 0, worker.log
    assert batch.results() == list(range(500))
    assert "jobs served: 500" in worker.log


def test_burst_that_found_nothing_names_server_and_queues(session, fleet, server):
    worker = fleet.start("--burst", "high", "low")
    assert worker.process.wait(30) == 0
    assert "no job was found" in worker.log
    assert server.url in worker.log
    assert "high low" in worker.log


def test_burst_says_what_waits_in_queues_that_it_does_not_serve(session, fleet):
    nbqueue.options(queue="gpu").map(abs, [1, 2])
    nbqueue.options(queue="two words").submit(abs, 1)
    worker = fleet.start("--burst", "--quiet")
    assert worker.process.wait(30) == 0
    assert "gpu (2), two words (1). nbqueue worker gpu 'two words'" in worker.log
    alone = fleet.start("--burst", "--quiet", "gpu", "-w", "nbqueue.SimpleWorker")
    assert alone.process.wait(30) == 0
    assert "does not serve: two words (1). nbqueue worker 'two words'" in alone.log
    assert fleet.start("--burst", "two words").process.wait(30) == 0


def test_a_preload_that_is_nowhere_here_is_said_at_the_start(session, fleet, tmp_path):
    (tmp_path / "beside.py").write_text("")
    words = [word for name in ("typo_module.part", "beside", "colorsys") for word in ("--preload", name)]
    worker = fleet.start("--burst", "--quiet", "-P", str(tmp_path), *words)
    assert worker.process.wait(30) == 0
    assert "no module 'typo_module.part' here" in worker.log
    assert worker.log.count("preload") == 1
    alone = fleet.start("--burst", "--preload", "typo_module", "-w", "nbqueue.SimpleWorker")
    assert alone.process.wait(30) == 1
    assert "preload='typo_module' cannot be imported" in alone.log
    assert "Traceback" not in alone.log


def test_burst_waits_for_a_first_job(session, fleet):
    worker = fleet.start("--burst", "--patience", "30").up()
    assert nbqueue.submit(abs, -3).wait(20) == 3
    assert worker.process.wait(20) == 0


def test_burst_stays_for_the_jobs_of_a_dead_worker(session, fleet):
    batch = nbqueue.map(time.sleep, [0.5] * 4)
    first = fleet.start(slots=4).up()
    wait_until(lambda: batch.tally.started == 4)
    first.process.kill()
    second = fleet.start("--burst")
    assert second.process.wait(40) == 0
    assert batch.tally.finished == 4, second.log


def test_a_worker_with_room_hears_of_work_at_once(session, fleet):
    fleet.start(lease=60, beat=50).up()
    long = nbqueue.submit(time.sleep, 60)
    wait_until(lambda: long.status == "started")
    for value in range(3):
        assert nbqueue.submit(abs, -value).wait(10) == value  # long before the next beat
    long.cancel()


def test_max_jobs(session, fleet):
    batch = nbqueue.map(abs, range(20))
    worker = fleet.start("--max-jobs", "5")
    assert worker.process.wait(30) == 0
    wait_until(lambda: batch.tally.finished == 5)
    assert batch.tally.queued == 15


def test_max_idle(session, fleet):
    worker = fleet.start("--max-idle", "0.3")
    assert worker.process.wait(20) == 0
    assert "idle" in worker.log


def test_queues_are_served_in_order(session, fleet):
    low = nbqueue.options(queue="low").map(abs, range(50))
    high = nbqueue.options(queue="high").map(abs, range(50))
    worker = fleet.start("--burst", "high", "low", slots=1)
    assert worker.process.wait(30) == 0
    last_high = max(job.outcome.started_us for job in high)
    assert all(job.outcome.started_us > last_high for job in low)


def test_a_small_batch_is_not_starved_by_a_large_one(session, fleet):
    large = nbqueue.map(time.sleep, [0.02] * 400)
    worker = fleet.start().up()
    wait_until(lambda: large.tally.finished > 4)
    small = nbqueue.map(abs, range(10))
    assert small.wait(20)
    assert large.tally.queued > 100, worker.log
    large.cancel()


def test_a_process_stands_ready_for_the_next_function(session, fleet):
    worker = fleet.start().up()
    ended = []
    for number in range(3):  # each has another function
        wait_until(lambda: len(set(children(worker.process.pid)) - set(ended)) == 1)
        (ready,) = set(children(worker.process.pid)) - set(ended)
        assert nbqueue.submit(lambda _, number=number: (number, os.getppid()), 0).wait(20) == (number, ready)
        ended.append(ready)
    wait_until(lambda: len(set(children(worker.process.pid)) - set(ended)) == 1)
    (ready,) = set(children(worker.process.pid)) - set(ended)
    os.kill(ready, signal.SIGKILL)
    assert nbqueue.submit(lambda _: os.getppid(), 0).wait(20) not in {ready, *ended}
    worker.process.terminate()
    wait_until(lambda: worker.process.poll() is not None)


def test_a_worker_of_every_queue_learns_of_a_new_one(session, fleet):
    fleet.start("*", lease=60, beat=50).up()
    assert nbqueue.options(queue="never_seen").submit(abs, -1).wait(20) == 1  # long before the next beat


def test_the_log_reads_like_a_score(session, fleet):
    worker = fleet.start("--burst")
    job = nbqueue.submit(abs, -1)
    assert worker.process.wait(30) == 0
    assert job.wait(5) == 1
    lines = [line.split(maxsplit=2) for line in worker.log.splitlines()]
    assert ["->", job.id] in [line[1:] for line in lines]
    assert ["<-", f"{job.id} ok"] in [line[1:] for line in lines]


def secret_argument(password):
    raise ValueError(password)


def test_arguments_and_messages_are_in_no_log_line(session, fleet):
    worker = fleet.start("--burst")
    batch = nbqueue.map(secret_argument, ["hunter2"])
    assert worker.process.wait(30) == 0
    assert "hunter2" in batch.failed[0].error
    assert "hunter2" not in worker.log
    assert "ValueError" in worker.log


def test_a_canceled_job_stops_soon(session, fleet):
    worker = fleet.start(lease=80, beat=25).up()
    batch = nbqueue.map(time.sleep, [60, 60, 60])
    wait_until(lambda: batch.tally.started == 2)
    began = time.monotonic()
    assert batch.cancel() == 3
    assert batch.wait(15)
    assert batch.tally.canceled == 3
    assert nbqueue.submit(abs, -2).wait(10) == 2  # the slots are free again, long before the next beat
    assert time.monotonic() - began < 20
    assert worker.process.poll() is None


def test_another_signal_makes_it_leave_at_once(session, fleet):
    worker = fleet.start("--grace", "60").up()
    batch = nbqueue.map(time.sleep, [60])
    wait_until(lambda: batch.tally.started == 1)
    worker.process.terminate()
    wait_until(lambda: "asked to stop" in worker.log)

    def gone():
        worker.process.send_signal(signal.SIGTERM)
        return worker.process.poll() is not None

    wait_until(gone, 10)
    assert worker.process.returncode == 0
    wait_until(lambda: batch.tally.queued == 1)
    batch.cancel()


def environment():
    return dict(os.environ)


def test_a_job_sees_neither_secret_nor_url(session, fleet):
    fleet.start(env={"NBQUEUE_URL": fleet.url, "JPY_PARENT_PID": "1"}).up()
    found = nbqueue.submit(environment).wait(20)
    assert not {"NBQUEUE_SECRET", "NBQUEUE_URL", "JPY_PARENT_PID"} & set(found)
    assert found["MPLBACKEND"] == "Agg"
    assert found["OMP_NUM_THREADS"].isdigit()


def test_variables_travel_when_named(session, fleet, monkeypatch):
    monkeypatch.setenv("API_KEY", "k-123")
    fleet.start().up()
    assert nbqueue.options(env=["API_KEY"]).submit(environment).wait(20)["API_KEY"] == "k-123"


def test_isolate_gives_every_job_a_process(session, fleet):
    fleet.start("--isolate").up()
    pids = nbqueue.starmap(os.getpid, [()] * 30).results()
    assert len(set(pids)) == 30


def test_without_isolate_short_jobs_share_processes(session, fleet):
    fleet.start().up()
    pids = nbqueue.starmap(os.getpid, [()] * 2000).results()
    assert len(set(pids)) < 500
