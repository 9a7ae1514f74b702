"""Workers that are killed, stopped, or told to leave, at any moment: what was settled stands, the rest runs again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleet import processes
from helpers import eventually

import nbqueue
from nbqueue.model import Cause, State

KILLS = 6


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def victims(worker, which):
    below = worker.tree()
    stables = [pid for pid in below if parent_of(pid) == worker.pid]
    horses = [pid for pid in below if parent_of(pid) in stables]
    return {"parent": [worker.pid], "stable": stables[:1], "horse": horses[:1], "all": [worker.pid, *below]}[which]


def kill(pids, signum=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue  # it has just ended


def test_kills_at_random_moments(session, fleet, witness):
    chance = random.Random(os.environ.get("NBQUEUE_TEST_SEED", "7"))
    workers = [fleet.start(slots=2, lease=1.0, beat=0.2).up() for _ in range(2)]
    batch = nbqueue.map(witness.job(0.1), range(80))
    witness.watch(batch.id)
    horses = 0
    for which in chance.choices(["parent", "stable", "horse", "all"], k=KILLS):
        pause, place = chance.uniform(0.05, 0.4), chance.randrange(2)
        time.sleep(pause)  # the moment is what this is about
        hit = victims(workers[place], which)
        kill(hit)
        horses += which == "horse" and len(hit)
        if which in ("parent", "all"):
            workers[place] = fleet.start(slots=2, lease=1.0, beat=0.2).up()
    assert batch.wait(120), [worker.log for worker in workers]
    for job in batch.failed:
        assert (job.outcome.cause, job.outcome.code) == (Cause.CRASHED, -signal.SIGKILL), job.outcome
    assert batch.tally.failed <= horses  # of all that was killed, only a horse is its job's own end
    assert batch.tally.finished + batch.tally.failed == 80
    witness.check(batch.id)
    for worker in workers:
        worker.stop()
    witness.check_gone(batch, marks=[worker.mark for worker in fleet.workers])


def test_a_stable_that_is_killed_while_it_loads_costs_no_job(session, fleet, witness):
    worker = fleet.start(slots=1).up()
    batch = nbqueue.map(witness.job(), range(3))
    kill(eventually(lambda: victims(worker, "stable")))
    assert batch.wait(120)
    assert batch.results() == list(range(3))
    witness.check(batch.id)


@pytest.mark.parametrize("which", ["parent", "all"])
def test_stopped_past_the_lease_and_woken(session, fleet, witness, which):
    """What it ran belongs to another by then: its outcomes are dropped, its horses are dead."""
    first = fleet.start(slots=2, lease=1.0, beat=0.2).up()
    batch = nbqueue.map(witness.job(0.6), range(4))
    witness.watch(batch.id)
    eventually(lambda: len(witness.lives()) == 2)
    stopped = victims(first, which)
    kill(stopped, signal.SIGSTOP)
    fleet.start(slots=2, lease=1.0, beat=0.2).up()
    assert batch.wait(120)
    time.sleep(1.0)  # a lease more than it took to give its jobs to others
    # Not the horses: woken at the same moment, one may go on until it is killed.
    kill([pid for pid in stopped if pid == first.pid or parent_of(pid) == first.pid], signal.SIGCONT)
    eventually(lambda: "joins under a new id" in first.log)
    eventually(lambda: not [pid for pid in stopped if pid != first.pid and Path(f"/proc/{pid}").exists()])
    assert batch.results() == list(range(4))
    assert max(job.outcome.attempt for job in batch) >= 2
    witness.check(batch.id)


def test_sigterm_then_sigkill_within_the_grace(session, fleet, witness):
    first = fleet.start("--grace", "30", lease=1.0, beat=0.2).up()
    batch = nbqueue.map(witness.job(1.0), range(4))
    witness.watch(batch.id)
    eventually(lambda: len(witness.lives()) == 2)
    first.process.terminate()
    eventually(lambda: "asked to stop" in first.log)
    first.process.kill()
    eventually(lambda: not processes([first.mark]))
    fleet.start(lease=1.0, beat=0.2).up()
    assert batch.wait(120)
    assert batch.results() == list(range(4))
    witness.check(batch.id)


def test_five_sigterms(session, fleet, witness):
    """The second that comes a second later ends it at once; none of them costs a job anything."""
    first = fleet.start("--grace", "60").up()
    batch = nbqueue.options(retry=1).map(witness.job(3.0), range(2))
    witness.watch(batch.id)
    eventually(lambda: len(witness.lives()) == 2)
    for _ in range(5):
        kill([first.pid], signal.SIGTERM)
        time.sleep(0.4)  # the first and the last are more than a second apart
    assert first.process.wait(10) == 0
    assert "2 running jobs were given back" in first.log
    assert (batch.tally.queued, batch.tally.failed) == (2, 0)
    fleet.start().up()
    assert batch.wait(120)
    assert [(job.outcome.state, job.outcome.attempt) for job in batch] == [(State.FINISHED, 2)] * 2
    witness.check(batch.id)


SCRIPT = """
import os, sys, threading
from pathlib import Path
from nbqueue.client.worker import Worker

def dead():
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    return states.count("Z")

Worker("default", url=sys.argv[1], namespace=sys.argv[2], slots=1, worker_ttl=2).work(burst=True)
print("dead", dead())
"""


def kills_its_stable():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


def test_a_script_that_is_a_worker_reaps_the_horses_of_a_dead_stable(session, home, server):
    jobs = [nbqueue.submit(kills_its_stable), nbqueue.submit(abs, -1)]
    words = [sys.executable, "-c", SCRIPT, server.url, session.settings.namespace]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "dead 0\n", done.stderr
    assert jobs[1].wait(5) == 1
    assert "3 times under this job" in jobs[0].error
