"""kill -9 of any of the three processes loses and repeats nothing that was settled, and leaves no process behind."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fleet import processes
from helpers import wait_until

import nbqueue


def noted(diary, number, seconds=0.0):
    """Writes a line as it begins, and one as it ends."""
    with Path(diary).open("a") as file:
        file.write(f"begin {number} {os.getpid()}\n")
        file.flush()
        time.sleep(seconds)
        file.write(f"end {number} {os.getpid()}\n")
    return number


def begun(diary):
    return [line for line in diary.lines if line.startswith("begin")]


def busy(diary):
    """The process of the job that began last, and goes on: a spare horse has none."""
    before = len(begun(diary))
    wait_until(lambda: len(begun(diary)) > before)
    return int(begun(diary)[-1].split()[2])


def check(batch, n):
    """Every job has exactly one outcome, the right one, and the tally sums to n."""
    assert batch.wait(60), batch.tally
    assert batch.results() == list(range(n))
    tally = batch.tally
    assert (tally.n, tally.finished, tally.failed, tally.canceled) == (n, n, 0, 0)


def horses(worker):
    """Pids of the worker's processes by role: its stables (children of the worker), and what they forked."""

    def parent_of(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    below = worker.tree()
    stables = [pid for pid in below if parent_of(pid) == worker.pid]
    return stables, [pid for pid in below if pid not in stables]


def test_the_parent_is_killed(session, fleet, diary):
    first = fleet.start().up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 0.15) for i in range(40)])
    wait_until(lambda: batch.tally.finished >= 4)
    first.process.kill()
    wait_until(lambda: not processes([first.mark]), 5)
    settled = {line.split()[1] for line in diary.lines if line.startswith("end")}
    runs_before = Counter(line.split()[1] for line in begun(diary))
    fleet.start().up()
    check(batch, 40)
    again = Counter(line.split()[1] for line in begun(diary)) - runs_before
    finished_early = {str(job.index) for job in batch if job.outcome.worker.startswith(first_id(first))}
    assert finished_early <= settled
    assert not finished_early & set(again)


def first_id(worker):
    return next(line for line in worker.log.splitlines() if " is up: " in line).split("worker ")[1].split(" is up")[0]


@pytest.mark.parametrize("victim", ["stable", "horse"])
def test_a_child_is_killed(session, fleet, diary, victim):
    worker = fleet.start().up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 0.2) for i in range(24)])
    wait_until(lambda: batch.tally.finished >= 2)
    os.kill(horses(worker)[0][0] if victim == "stable" else busy(diary), signal.SIGKILL)
    assert batch.wait(20), worker.log
    tally = batch.tally
    if victim == "stable":
        assert tally.finished == 24, worker.log
    else:  # a horse of its own that is killed is that job's failure, and says so
        assert (tally.finished, len(batch.failed)) == (23, 1)
        assert all(job.outcome.cause == "crashed" and job.outcome.code == -9 for job in batch.failed)
    ends = Counter(line.split()[1] for line in diary.lines if line.startswith("end"))
    assert all(count <= 2 for count in ends.values())


def test_the_parent_is_stopped_past_its_lease(session, fleet, diary):
    """Its horses are frozen; another worker runs the jobs; when it wakes it kills what it ran and settles nothing."""
    first = fleet.start(slots=1, lease=1.0, beat=0.2).up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 1.6) for i in range(2)])
    wait_until(lambda: begun(diary))
    os.kill(first.pid, signal.SIGSTOP)
    second = fleet.start(slots=1, lease=1.0, beat=0.2).up()
    assert batch.wait(60)
    os.kill(first.pid, signal.SIGCONT)
    wait_until(lambda: "joins under a new id" in first.log, 20)
    check(batch, 2)
    owner = {job.index: job.outcome.worker for job in batch}
    assert set(owner.values()) == {first_id(second)}
    # The frozen run never wrote its end: no two live holders.
    assert Counter(line.split()[1] for line in diary.lines if line.startswith("end")) == {"0": 1, "1": 1}


def test_sigterm_gives_back(session, fleet, diary):
    first = fleet.start("--grace", "0.2").up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 1.5) for i in range(3)])
    wait_until(lambda: len(begun(diary)) >= 2)
    assert first.stop() == 0
    assert "running jobs were given back" in first.log
    wait_until(lambda: batch.tally.queued == 3)
    fleet.start().up()
    check(batch, 3)
    assert {job.outcome.attempt for job in batch} == {1, 2}


def test_a_drain_settles_what_ends_within_the_grace(session, fleet, diary):
    first = fleet.start("--grace", "10").up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 0.6) for i in range(6)])
    wait_until(lambda: len(begun(diary)) >= 2)
    assert first.stop() == 0
    wait_until(lambda: batch.tally.finished >= 2 and batch.tally.started == 0)
    assert batch.tally.queued + batch.tally.finished == 6
    fleet.start().up()
    check(batch, 6)
    assert len(begun(diary)) == 6


def test_two_sigterms_at_once_are_one(session, fleet, diary):
    worker = fleet.start("--grace", "10").up()
    batch = nbqueue.starmap(noted, [(str(diary.path), i, 0.5) for i in range(2)])
    wait_until(lambda: len(begun(diary)) == 2)
    worker.process.terminate()
    assert worker.stop() == 0
    wait_until(lambda: batch.tally.finished == 2)


def kill_parent(levels):
    """Ends the process that is this many levels above the job."""
    pid = os.getpid()
    for _ in range(levels):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    time.sleep(30)


def test_a_job_that_kills_its_stable_fails_alone(session, fleet):
    fleet.start().up()
    poison = nbqueue.submit(kill_parent, 1)
    good = nbqueue.map(abs, range(200))
    assert good.wait(60)
    assert good.results() == list(range(200))
    with pytest.raises(nbqueue.JobFailed, match="SIGKILL"):
        poison.wait(60)
    assert poison.outcome.cause == "crashed"


def test_a_job_that_kills_its_worker_is_lost_after_three_times(session, fleet):
    def replace():
        return fleet.start(slots=1, lease=0.8, beat=0.2).up()

    poison = nbqueue.submit(kill_parent, 2)
    workers = [replace()]
    while poison.status != "failed" and len(workers) < 6:
        wait_until(lambda: workers[-1].process.poll() is not None or poison.status == "failed", 20)
        workers.append(replace())
    wait_until(lambda: poison.status == "failed", 20)
    assert poison.outcome.cause == "lost"
    assert poison.outcome.attempt >= 3
