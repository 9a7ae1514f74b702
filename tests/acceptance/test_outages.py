"""The server pauses, dies or forgets; answers are lost; and what a worker holds is neither stuck nor run twice."""

import os
import secrets
import signal
import time
from pathlib import Path

import pytest
from fleet import Fleet
from helpers import wait_until

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.store import server as program


def slow(diary, number, seconds):
    with Path(diary).open("a") as file:
        file.write(f"begin {number}\n")
        file.flush()
        time.sleep(seconds)
        file.write(f"end {number}\n")
    return number


@pytest.fixture
def own(short_folder, home):
    """A server that may be hurt, a session on it, and its fleet."""
    running = program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    session = nbqueue.connect(running.url, namespace=f"t{secrets.token_hex(4)}")
    fleet = Fleet(running.url, session.settings.namespace, home)
    yield running, session, fleet
    if (now := program.status(short_folder)) is not None:
        os.kill(now.pid, signal.SIGCONT)
    fleet.close()
    session.collector.stop()
    sessions._current = None


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_a_pause_of_the_server_freezes_what_runs_and_then_lets_it_go_on(own, diary):
    running, _, fleet = own
    worker = fleet.start(slots=1, lease=1.5, beat=0.3).up()
    batch = nbqueue.starmap(slow, [(str(diary.path), 0, 2.5)])
    wait_until(lambda: diary.lines)
    os.kill(running.pid, signal.SIGSTOP)
    wait_until(lambda: any(state(pid) == "T" for pid in worker.tree()), 10)
    os.kill(running.pid, signal.SIGCONT)
    assert batch.wait(20), worker.log
    assert batch.results() == [0]
    assert diary.lines == ["begin 0", "end 0"]  # an outage that hits everybody charges nobody
    assert batch[0].outcome.attempt == 1


def test_a_server_killed_while_jobs_run_comes_back_and_nothing_is_lost(own, short_folder, diary):
    running, _, fleet = own
    worker = fleet.start(lease=5, beat=0.5).up()
    batch = nbqueue.starmap(slow, [(str(diary.path), i, 0.2) for i in range(20)])
    wait_until(lambda: batch.tally.finished >= 2)
    os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: "trying again" in worker.log)
    program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    assert batch.wait(40), worker.log
    assert batch.results() == list(range(20))
    assert "the server is back" in worker.log


def tell(path, seconds):
    def told(_job, _connection, result):
        time.sleep(seconds)
        Path(path).write_text(str(result))

    return told


def test_a_callback_runs_through_an_outage_and_is_recorded(own, short_folder, diary):
    running, _, fleet = own
    worker = fleet.start(lease=5, beat=0.3).up()
    job = nbqueue.options(on_success=tell(diary.path, 1)).submit(abs, -7)
    assert job.wait(20) == 7
    os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: "trying again" in worker.log)
    wait_until(lambda: diary.lines == ["7"])
    program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    (echo,) = wait_until(lambda: job.echoes)
    assert (echo.hook, echo.failure) == ("success", None)


def test_jobs_that_a_lost_answer_left_in_a_workers_name_run(own):
    _, session, fleet = own
    worker = fleet.start(slots=1, lease=2, beat=0.3).up()
    name = session.broker.workers()[0]
    batch = nbqueue.map(abs, [-1])
    assert batch.wait(20)
    # As if the answer of a claim had never come: the store says the worker holds the job, and the worker does not know.
    worker.process.send_signal(signal.SIGSTOP)
    late = nbqueue.map(abs, [-2])
    taken = claim_for(session, name)
    worker.process.send_signal(signal.SIGCONT)
    assert taken == 1
    assert late.wait(30), worker.log
    assert late.results() == [2]


def claim_for(session, view):
    from nbqueue.model import WorkerInfo, decode
    from nbqueue.store.records import Fitness

    info = decode(WorkerInfo, view.info)
    fit = Fitness(keys=info.keys, python=info.python, host=info.host)
    claimed = session.broker.claim(info.id, f"{info.id}:999999", info.queues, free=1, want=1, fit=fit)
    return sum(len(grant.jobs) for grant in claimed.grants)


def test_canceled_jobs_that_are_held_ahead_never_begin(session, fleet, diary):
    fleet.start(lease=30, beat=10).up()
    assert nbqueue.map(abs, range(3000)).wait(30)  # from here on the worker holds jobs ahead
    batch = nbqueue.starmap(slow, [(str(diary.path), i, 30) for i in range(40)])
    wait_until(lambda: len(diary.lines) >= 2)
    batch.cancel()
    begun = len(diary.lines)
    assert nbqueue.submit(abs, -1).wait(9) == 1
    assert len(diary.lines) == begun


def test_a_ttl_holds_while_the_workers_are_busy(session, fleet):
    fleet.start(slots=1).up()
    batch = nbqueue.map(time.sleep, [1.5] * 3, ttl=0.5)
    assert batch.wait(20)
    assert (batch.tally.finished, batch.tally.canceled) == (1, 2)
    assert {job.outcome.cause for job in batch if job.status == "canceled"} == {"expired"}


LOADS_FOR_EVER = "import threading\nthreading.Event().wait()\ndef f(x):\n    return x\n"


@pytest.mark.parametrize("way", ["cancel", "timeout"])
def test_a_load_that_hangs_can_be_ended(session, fleet, tmp_path, monkeypatch, way):
    (tmp_path / "hangs.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import hangs

    (tmp_path / "hangs.py").write_text(LOADS_FOR_EVER)
    limit = {"timeout": 0.5, "grace": 0.1} if way == "timeout" else {}
    batch = nbqueue.options(**limit).map(hangs.f, [1])
    fleet.start(slots=1).up()
    wait_until(lambda: batch.tally.started == 1)
    if way == "cancel":
        batch.cancel()
    assert batch.wait(15)
    assert batch[0].outcome.cause == ("user" if way == "cancel" else "timeout")
    assert nbqueue.submit(abs, -1).wait(15) == 1


def test_a_function_that_one_worker_cannot_load_runs_on_another(session, fleet, tmp_path):
    def fits(_):
        if not os.environ.get("FITS"):
            raise ImportError("no such thing here")
        return os.environ["FITS"]

    class Picky:
        def __reduce__(self):
            return fits, (None,)

    picky = Picky()
    fleet.start().up()
    fleet.start(env={"FITS": "yes"}).up()
    batch = nbqueue.map(lambda x: (picky, x)[1], range(6))
    assert batch.wait(30)
    assert batch.results() == list(range(6))


def test_a_module_that_comes_after_a_failed_load_is_found(session, fleet, tmp_path, monkeypatch):
    (tmp_path / "later.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import later

    source = (tmp_path / "later.py").read_text()
    batch = nbqueue.map(later.f, [1])
    (tmp_path / "later.py").unlink()
    worker = fleet.start("--name", "patient").up()
    wait_until(lambda: "cannot be loaded here" in worker.log, 30)
    assert not batch.wait(0)  # it waits for its module, or for a worker that has it
    (tmp_path / "later.py").write_text(source)
    assert batch.wait(40)
    assert batch.results() == [1]
