"""Faults at random moments, several on top of each other, over a running batch; then the invariants.

The same six examples each time; NBQUEUE_TEST_MOMENTS=60 draws that many others. What fails is printed as a blob for
`@reproduce_failure`; moments are real, so the same faults may pass the next time.
"""

import contextlib
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from grounds import LIMIT
from helpers import wait_until
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from redis import exceptions as wrong
from witness import Witness

import nbqueue
from nbqueue.settings import born
from nbqueue.store.scripts import load

EXAMPLES = int(os.environ.get("NBQUEUE_TEST_MOMENTS", "6"))
PATIENT = {"lease": 2.0, "beat": 0.4}
JOBS = 14


class Turmoil:
    """Does one fault after another to the workers, the wire and the server of a ground."""

    def __init__(self, ground):
        self.ground = ground
        self.timers = []

    def living(self):
        return [worker for worker in self.ground.fleet.workers if worker.process.poll() is None]

    def replace(self, worker):
        with contextlib.suppress(Exception):
            worker.process.wait(15)
        self.staff()

    def staff(self):
        while len(self.living()) < 2:
            self.ground.start(**PATIENT)

    def later(self, seconds, *action):
        timer = threading.Timer(seconds, *action)
        self.timers.append(timer)
        timer.start()

    def send(self, pids, signum):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    # ------------------------------------------------------------ the faults

    def kill_parent(self, worker, _):
        worker.process.kill()
        self.replace(worker)

    def kill_all(self, worker, _):
        self.send([worker.pid, *worker.tree()], signal.SIGKILL)
        self.replace(worker)

    def kill_stable(self, worker, _):
        self.send(children(worker.pid)[:1], signal.SIGKILL)

    def kill_horse(self, worker, _):
        self.send([horse for stable in children(worker.pid) for horse in children(stable)][:1], signal.SIGKILL)

    def stop_parent(self, worker, size):
        worker.process.send_signal(signal.SIGSTOP)
        self.later(4 * size, worker.process.send_signal, [signal.SIGCONT])

    def terminate(self, worker, _):
        worker.process.send_signal(signal.SIGCONT)
        worker.process.terminate()
        self.replace(worker)

    def pause_server(self, _, size):
        os.kill(self.ground.pid, signal.SIGSTOP)
        self.later(4 * size, os.kill, [self.ground.pid, signal.SIGCONT])

    def kill_server(self, *_):
        self.ground.kill()
        self.ground.restart()

    def cut(self, *_):
        self.ground.proxy.cut()

    def silence(self, *_):
        self.ground.proxy.silence()

    def lose_claim(self, _, size):
        self.ground.proxy.lose(load("claim").sha, 1 + int(6 * size), least=200)

    def lose_settle(self, _, size):
        self.ground.proxy.lose(load("settle").sha, 1 + int(6 * size))

    def client_kill(self, *_):
        for kind in ("normal", "pubsub"):
            self.tell(lambda client, kind=kind: client.client_kill_filter(_type=kind, skipme=True))

    def script_flush(self, *_):
        self.tell(lambda client: client.script_flush())

    def tell(self, action):
        with contextlib.suppress(wrong.RedisError):  # it may be paused
            action(self.ground.client())

    def over(self):
        """Everything that may come back has come back."""
        for timer in self.timers:
            timer.join()
        self.timers.clear()
        self.ground.proxy.lose("", 0)
        self.staff()


def children(pid):
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((each / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(each.name))
    return found


FAULTS = [
    name
    for name in vars(Turmoil)
    if name.startswith(("kill", "stop", "term", "pause", "cut", "sil", "lose", "client", "script"))
]
MOMENTS = st.lists(
    st.tuples(st.sampled_from(FAULTS), st.floats(0, 0.5), st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=5
)
# No shrinking: a smaller example is another throw of the dice, and each takes seconds.
RULES = settings(
    max_examples=EXAMPLES,
    derandomize="NBQUEUE_TEST_MOMENTS" not in os.environ,
    print_blob=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
)


def test_faults_at_random_moments(hurt):
    turmoil = Turmoil(hurt)
    seen = {"examples": 0, "seconds": 0.0}

    @RULES
    @given(MOMENTS)
    def example(moments):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            _example(hurt, turmoil, moments, Path(folder))
        seen["examples"] += 1
        seen["seconds"] += time.monotonic() - begun

    example()
    print(seen)


def _example(hurt, turmoil, moments, folder):
    witness = Witness(hurt.server_url, hurt.session.settings.namespace, hurt.session.sealer, folder)
    turmoil.staff()
    batch = nbqueue.map(witness.job(0.15), range(JOBS))
    witness.watch(batch.id)
    wait_until(lambda: batch.tally.started or batch.tally.finished, LIMIT)
    for name, delay, size, place in moments:
        time.sleep(delay)
        living = turmoil.living()
        getattr(turmoil, name)(living[place % len(living)], size)
    turmoil.over()
    assert batch.wait(LIMIT), (moments, batch.tally, hurt.logs())
    _judge(witness, batch, moments)
    dead = [worker for worker in hurt.fleet.workers if worker.process.poll() is not None]
    witness.check_gone(batch, marks=[worker.mark for worker in dead])
    witness.close()
    assert born(hurt.pid)


def _judge(witness, batch, moments):
    witness.check(batch.id)
    names = [name for name, *_ in moments]
    for job in batch:
        if job.status == "finished":
            assert job.result == job.index
        else:  # only what was killed itself, or was lost with three workers
            most = {"crashed": "kill_horse", "lost": "kill_"}[job.outcome.cause]
            assert any(name.startswith(most) for name in names), (moments, job.outcome)
    assert batch.tally.failed <= sum(name.startswith("kill_") for name in names), moments
