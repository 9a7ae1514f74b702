"""Workers as users start them: processes of the command `nbqueue worker`, for tests of the whole."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers import wait_until


class Fleet:
    """Starts workers on one server and namespace; `close` ends those that still run and looks for what they left."""

    def __init__(self, url, namespace, home):
        self.url, self.namespace, self.home = url, namespace, home
        self.workers = []

    def start(self, *words, slots=2, lease=2.0, beat=0.4, env=None):
        """A worker process; its log is in `.log`, its id (once it is up) in `.id()`."""
        worker = Worker(self, [*words, "--slots", str(slots), "--lease", str(lease), "--beat", str(beat)], env or {})
        self.workers.append(worker)
        return worker

    def close(self):
        for worker in self.workers:
            worker.end()
        assert not leftovers([worker.mark for worker in self.workers])


class Worker:
    def __init__(self, fleet, words, env):
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed by end()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbqueue", "worker", "--url", fleet.url, "--namespace", fleet.namespace, *words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"NBQUEUE_HOME": str(fleet.home)} | env,
            start_new_session=True,
        )
        self.pid = self.process.pid

    @property
    def log(self):
        return Path(self._log.name).read_text()

    @property
    def mark(self):
        return f"/{self.pid}/"

    def up(self):
        wait_until(lambda: " is up: " in self.log or self.process.poll() is not None, 20)
        assert " is up: " in self.log, self.log
        return self

    def stop(self, signum=signal.SIGTERM, seconds=15):
        self.process.send_signal(signum)
        return self.process.wait(seconds)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()

    def tree(self):
        """Pids of what carries this worker's mark: its stables, horses and their children."""
        return processes([self.mark])


def processes(marks):
    """Pids of living processes whose environment mark holds one of these texts."""
    from nbqueue.settings import born
    from nbqueue.worker.marks import carriers

    return [pid for pid, mark in carriers() if any(each in mark for each in marks) and born(pid)]


def leftovers(marks):
    """What is left of these marks after a moment of grace: the kernel takes a while to reap."""
    try:
        wait_until(lambda: not processes(marks), 5)
    except AssertionError:
        return processes(marks)
    return []
