"""Worker and SimpleWorker as a script has them, and what a script may rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import wait_until

import nbqueue
from nbqueue import current
from nbqueue.client.worker import SimpleWorker, Worker
from nbqueue.errors import BadInput, BadOption
from nbqueue.policies import Retry
from nbqueue.settings import host

SCRIPT = """
import os, subprocess, sys
from nbqueue.client.worker import Worker

child = subprocess.Popen(["sleep", "60"])
try:
    ran = Worker("default", url=sys.argv[1], namespace=sys.argv[2], slots=1, worker_ttl=2).work(burst=True)
    again = Worker("default", url=sys.argv[1], namespace=sys.argv[2], slots=1, worker_ttl=2).work(burst=True)
    print("ran", ran, again, "child", child.poll())
finally:
    child.kill()
"""


def leaves_a_child():
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    return os.getppid()


def test_a_scripts_own_children_are_spared(session, home, server):
    job = nbqueue.submit(leaves_a_child)
    words = [sys.executable, "-c", SCRIPT, server.url, session.settings.namespace]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.stdout == "ran True False child None\n", done.stderr
    assert job.wait(5) > 1


def test_a_stray_of_a_dead_stable_is_killed(session, fleet):
    fleet.start(slots=1).up()
    running = nbqueue.submit(orphan)
    found = wait_until(lambda: noted(session, running)).meta
    os.kill(found["stable"], signal.SIGKILL)
    wait_until(lambda: not alive(found["child"]))
    running.cancel()


def noted(session, job):
    from nbqueue import wire
    from nbqueue.model import JobMeta, decode

    blob = session.broker.metas(job.batch.id, [0])[0]
    return blob and decode(JobMeta, session.sealer.unseal(wire.META, job.batch.id, 0, blob))


def orphan():
    job = current.get_current_job()
    job.meta |= {"stable": os.getppid(), "child": subprocess.Popen(["sleep", "60"], start_new_session=True).pid}
    job.save_meta()
    time.sleep(60)


def alive(pid):
    from nbqueue.settings import born

    return bool(born(pid))


def test_a_worker_needs_the_main_thread(session):
    raised = []

    def work():
        try:
            Worker().work(burst=True)
        except BadInput as why:
            raised.append(str(why))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "SimpleWorker" in raised[0]


def test_what_cannot_be_meant_is_said_at_once(session):
    for wrong in ({"queues": []}, {"slots": 0}, {"worker_ttl": "soon"}, {"worker_ttl": 0}):
        with pytest.raises(BadOption):
            Worker(**wrong)
    with pytest.raises(BadOption, match="function of a module"):
        Worker(exception_handlers=lambda *_: None).work(burst=True)


# ---------------------------------------------------------------- SimpleWorker


@pytest.fixture
def simple(session, monkeypatch):
    """Makes SimpleWorkers, in a process that cannot fork."""

    def refuse(*_, **__):
        raise AssertionError("a SimpleWorker needs no other process")

    for name in ("fork", "forkpty", "posix_spawn", "execve"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    return lambda **options: SimpleWorker(["default"], worker_ttl=5, **options)


def where(tag):
    job = current.get_current_job()
    job.meta["tag"] = tag
    job.save_meta()
    return os.getpid(), job.id, job.attempt, job.args


def test_a_simple_worker_makes_the_calls_right_here(session, simple):
    assert simple().work(burst=True) is False
    job = nbqueue.options(meta={"old": 1}).submit(where, "x")
    assert simple().work(burst=True) is True
    assert job.wait(5) == (os.getpid(), job.id, 1, ("x",))
    assert noted(session, job).meta == {"old": 1, "tag": "x"}
    assert current.get_current_job() is None


def fails():
    raise KeyError("gone")


def test_its_failures_retries_callbacks_and_handlers_are_any_workers(session, simple):
    told = []
    with listening(told):
        job = nbqueue.options(retry=Retry(1), on_failure=report, on_success=report).submit(fails)
        fine = nbqueue.options(on_success=report).submit(abs, -4)
        handlers = [lambda job, kind, value, traceback: told.append(("handler", kind, traceback is not None))]
        simple(exception_handlers=handlers).work(burst=True)
    assert fine.wait(5) == 4
    assert wait_until(lambda: job.outcome).state == "failed"
    assert [run.attempt for run in job.results()] == [2, 1]
    failures = [("report", 3, KeyError), ("handler", KeyError, True)]
    assert sorted(told, key=str) == sorted([*failures, *failures, ("report", 1, 4)], key=str)
    assert [echo.hook for echo in job.echoes] == ["failure", "handler"]


EARS = []


@contextlib.contextmanager
def listening(told):
    EARS.append(told)
    yield
    EARS.clear()


def report(job, connection, *facts):
    import test_workers_in_scripts as here

    here.EARS[0].append(("report", len(facts), facts[0]))


def endless():
    while True:
        time.sleep(0.01)


def test_its_time_limit_ends_python_code(session, simple):
    job = nbqueue.options(timeout=0.2).submit(endless)
    simple().work(max_jobs=1)
    assert "time limit of 0.2 s" in str(wait_until(lambda: job.outcome).failure)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_it_waits_for_a_retry_that_is_due_and_can_be_shut_down(session, simple):
    job = nbqueue.options(retry=Retry(1, interval=0.2)).submit(fails)

    def end():
        wait_until(lambda: job.status == "failed")
        Worker.all()[0].shutdown()

    thread = threading.Thread(target=end)
    thread.start()
    simple().work()
    thread.join()
    assert wait_until(lambda: job.outcome).attempt == 2
    assert [run.attempt for run in job.results()] == [2, 1]


# ---------------------------------------------------------------- subclasses, folders, modules

MODULE = """
import sys
from nbqueue.client.worker import Worker, SimpleWorker

class Mine(SimpleWorker):
    def work(self, *args, **kwargs):
        print("mine works", file=sys.stderr)
        return super().work(*args, **kwargs)
"""


def test_a_worker_has_its_name_before_it_works(session):
    worker = SimpleWorker("low")
    assert worker.name == worker.id
    assert worker.hostname == host()
    for _ in range(2):  # the second time under another id
        job = nbqueue.Queue("low").enqueue(abs, -1)
        assert worker.work(burst=True)
        assert job.worker_name == worker.name
    named = Worker("low", name="mine")
    assert (named.name, named.id.rpartition("-")[0]) == ("mine", "mine")


def test_what_rqs_workers_take_besides_is_answered(session):
    with pytest.warns(UserWarning, match="job_monitoring_interval=30.* changes nothing here"):
        Worker("low", job_monitoring_interval=30, serializer=None)
    with pytest.raises(BadOption, match="no option 'slot'"):
        Worker("low", slot=3)


def preloaded():
    return "colorsys" in sys.modules, os.environ["PATH"] != ""


def test_worker_class_path_and_preload(session, fleet, tmp_path):
    (tmp_path / "myworkers.py").write_text(MODULE)
    job = nbqueue.submit(os.getpid)
    mine = fleet.start("-P", str(tmp_path), "-w", "myworkers.Mine", "--burst")
    assert mine.process.wait(20) == 0
    assert "mine works" in mine.log
    assert job.wait(5) == mine.pid
    nbqueue.submit(preloaded)
    job = nbqueue.submit(preloaded)
    assert fleet.start("--preload", "colorsys", "--burst").process.wait(20) == 0
    assert job.wait(5)[0]
    wrong = fleet.start("-w", "os.path.join")
    assert wrong.process.wait(20) == 1
    assert "not a subclass of nbqueue.Worker" in wrong.log


LONE = """
import sys
from nbqueue.client.worker import SimpleWorker
print("ran", SimpleWorker("default", url=sys.argv[1], namespace=sys.argv[2], worker_ttl=5).work())
"""


def lingers(seconds):
    current.progress(0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    return "done"


@pytest.mark.parametrize("twice", [False, True])
def test_a_simple_worker_finishes_its_job_before_it_leaves_unless_asked_twice(session, home, server, twice):
    job = nbqueue.submit(lingers, 60 if twice else 0.5)
    words = [sys.executable, "-c", LONE, server.url, session.settings.namespace]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: noted(session, job))
            process.terminate()
            if twice:
                wait_until(lambda: process.terminate() or process.poll() is not None, 10, every=0.2)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    if twice:
        assert "Urgent" in err
        assert job.status == "queued"
    else:
        assert out == "ran True\n", err
        assert job.wait(5) == "done"
