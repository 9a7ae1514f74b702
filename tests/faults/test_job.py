"""What jobs do to themselves, their workers and their neighbours, through whole fleets."""

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from faults.test_worker import victims
from helpers import eventually
from witness import noting

import nbqueue
from nbqueue.model import Cause, State


def above(levels):
    """The process that is this many levels above."""
    pid = os.getpid()
    for _ in range(levels):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def bound(what, soft, hard, then):
    resource.setrlimit(what, (soft, hard))
    then()


def spins():
    while True:
        pass


def overflows():
    sys.setrecursionlimit(10**8)
    nested = []
    for _ in range(10**5):
        nested = [nested]
    repr(nested)


def kills_parent():
    os.kill(above(1), signal.SIGKILL)
    time.sleep(30)


def stops_parent():
    os.kill(above(1), signal.SIGSTOP)
    time.sleep(600)


class OwnEnd(BaseException):
    pass


def ends_own_way():
    raise OwnEnd("of its own")


def interrupted():
    raise KeyboardInterrupt


OVERFLOW = (Cause.CRASHED, "SIGSEGV") if sys.version_info < (3, 12) else (Cause.ERROR, "RecursionError")
POISONS = {  # kind -> what it does, how many of it, the cause, a word of its error
    "segfault": (lambda: ctypes.string_at(0), 16, Cause.CRASHED, "SIGSEGV"),
    "abort": (os.abort, 16, Cause.CRASHED, "SIGABRT"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), 10, Cause.CRASHED, "SIGKILL"),
    "exit 0": (lambda: os._exit(0), 16, Cause.CRASHED, "exit code 0"),
    "sys.exit": (lambda: sys.exit(3), 10, Cause.ERROR, "SystemExit"),
    "interrupt": (interrupted, 10, Cause.ERROR, "KeyboardInterrupt"),
    "own end": (ends_own_way, 10, Cause.ERROR, "OwnEnd"),
    "mute": (lambda: os.closerange(0, 5000), 5, Cause.CRASHED, "descriptors"),
    "memory": (
        lambda: bound(resource.RLIMIT_AS, 1 << 30, 1 << 30, lambda: bytes(2 << 30)),
        3,
        Cause.ERROR,
        "MemoryError",
    ),
    "cpu": (lambda: bound(resource.RLIMIT_CPU, 1, 9, spins), 1, Cause.CRASHED, "SIGXCPU"),
    "overflow": (overflows, 2, *OVERFLOW),
    "parent": (kills_parent, 1, Cause.CRASHED, "SIGKILL"),
}
GOOD, MANY = 1000, 1200


def deed(kind, number, path):
    if kind in POISONS:
        print("the last words of", kind, number)
        POISONS[kind][0]()
    with noting(path):
        return number


def test_a_hundred_poisons_among_a_thousand(session, fleet, witness):
    worker = fleet.start(slots=4, lease=10).up()
    calls = [(kind, 0) for kind, (_, count, _, _) in POISONS.items() for _ in range(count)]
    assert len(calls) == 100
    for number in range(GOOD):
        calls.insert(number * 11 // 10, ("good", number))
    batch = nbqueue.starmap(deed, [(*call, str(witness.path)) for call in calls])
    witness.watch(batch.id)
    assert batch.wait(120), worker.log
    for (kind, number), job in zip(calls, batch, strict=True):
        outcome = job.outcome
        if kind == "good":
            assert (outcome.state, job.result) == (State.FINISHED, number), (job, outcome)
            continue
        _, _, cause, word = POISONS[kind]
        assert (outcome.cause, word in job.error) == (cause, True), (kind, outcome)
        assert (outcome.attempt, outcome.host != "") == (1, True)
        if kind != "parent":  # the one that knew of its output and memory is dead
            assert outcome.cpu_us > 0, (kind, outcome)
    causes = Counter(str(POISONS[kind][2]) for kind, _ in calls if kind != "good")
    assert batch.failed.causes == causes
    assert repr(batch.failed).endswith(f"in all: {causes['crashed']} crashed, {causes['error']} error")
    witness.check(batch.id)
    assert worker.stop() == 0
    witness.check_gone(batch, marks=[worker.mark])


def fatal(x, path):
    """Number 777 kills the worker."""
    if x == 777:
        with noting(path):
            os.kill(above(2), signal.SIGKILL)
            time.sleep(30)
    return x


def test_a_job_that_kills_its_worker_while_that_holds_hundreds(session, fleet, witness):
    workers = [fleet.start(lease=1.0, beat=0.2).up()]
    session.broker.suspend()  # so that all is there when the first one begins
    batch = nbqueue.starmap(fatal, [(x, str(witness.path)) for x in range(MANY)])
    eventually(lambda: batch.tally.queued == MANY)
    session.broker.resume()
    witness.watch(batch.id)

    eventually(lambda: workers[0].process.poll() is not None)
    held = next(session.broker.client.scan_iter(match=session.broker.keys.prefix + "held:*"))
    assert session.broker.client.scard(held) > 300

    def replaced():
        if workers[-1].process.poll() is not None:
            workers.append(fleet.start(lease=1.0, beat=0.2))
        return batch.wait(0.05)

    eventually(replaced, 120)
    failed = batch.failed
    assert [job.index for job in failed] == [777], failed
    last = failed[0].outcome
    assert (last.cause, last.attempt >= 3, last.host != "") == (Cause.LOST, True, True)
    assert f"lost 3 times while it ran only this job; the last one was {last.worker} on {last.host}" in failed[0].error
    assert failed[0].error.endswith(f"in attempt {last.attempt}")
    assert batch.results(errors="skip") == [x for x in range(MANY) if x != 777]
    witness.check(batch.id)


def leads(path):
    """Waits for children that wait, and has failed if they ended otherwise."""
    job = nbqueue.get_current_job()
    children = [subprocess.Popen(["sleep", "1.5"]) for _ in range(2)]
    with Path(path).open("a") as file:
        file.write(f"{job.attempt} {' '.join(str(child.pid) for child in children)}\n")
    codes = [child.wait() for child in children]
    assert codes == [0, 0], codes
    return job.attempt


def test_a_scheduler_that_ends_the_jobs_children_before_the_worker_charges_nobody(session, fleet, diary):
    first = fleet.start("--grace", "5").up()
    job = nbqueue.submit(leads, str(diary.path))
    eventually(lambda: diary.lines)
    children = [int(pid) for pid in diary.lines[0].split()[1:]]
    for pid in [*children, first.pid]:
        os.kill(pid, signal.SIGTERM)
    assert first.process.wait(60) == 0
    assert job.status == "queued", first.log
    fleet.start().up()
    assert job.wait(60) == 2
    assert len(job.results()) == 1


def floods(size):
    block = b"x" * 1023 + b"\n"
    for _ in range(size // (len(block) << 10)):
        os.write(1, block * 1024)
    return "done"


def test_a_gigabyte_on_stdout_is_drained_and_its_end_is_kept(session, fleet):
    worker = fleet.start(slots=1).up()
    job = nbqueue.submit(floods, 1 << 30)
    assert job.wait(60) == "done"
    assert 3000 < len(job.log) <= 4096
    for pid in [worker.pid, *victims(worker, "stable")]:
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 200_000, peak


def test_what_a_job_leaves_ends_with_it_and_not_before_the_outcome(session, fleet, witness, tmp_path):
    worker = fleet.start().up()
    batch = nbqueue.map(daemonises, [str(tmp_path / name) for name in ("plain", "setsid", "twice", "holds")])
    assert batch.wait(120), worker.log
    pids = [int(Path(pid).read_text()) for pid in batch.results()]
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    witness.check(batch.id)


def daemonises(path):
    kind = Path(path).name
    words = ["sh", "-c", f"echo $$ > {path}.part; mv {path}.part {path}; exec sleep 100"]
    if kind == "twice":
        subprocess.run(["sh", "-c", f"(setsid sh -c '{words[2]}' &) &"])
    else:
        quiet = {} if kind == "holds" else {"stdout": subprocess.DEVNULL}
        subprocess.Popen(words, start_new_session=kind == "setsid", **quiet)
    eventually(Path(path).exists)
    return path


def test_a_job_that_stops_the_process_that_keeps_its_clock(session, fleet):
    worker = fleet.start(slots=1).up()
    job = nbqueue.options(timeout=1).submit(stops_parent)
    eventually(lambda: job.is_failed)
    assert nbqueue.submit(abs, -3).wait(30) == 3, worker.log


def imports_late(x):
    met_again = importlib.import_module("met_again")  # not as a statement: such modules are imported first of all
    while x == "long":
        time.sleep(0.01)
    return met_again.PID, x


def may_import():
    import met_again  # noqa: F401 - so that it is among the modules that functions here may reach


# The process that forks calls finds there that one of them has been here, and does not come back.
MET_AGAIN = """
import os, pathlib, time
PID = os.getpid()
seen = pathlib.Path(__file__).with_suffix(".seen")
with seen.open("a") as file:
    print(os.getppid(), file=file)
while str(PID) in seen.read_text().split():
    time.sleep(0.01)
"""


def test_an_import_from_which_the_process_that_forks_calls_does_not_come_back(session, fleet, tmp_path, monkeypatch):
    """It hears nobody then: calls are canceled, end by their limits and begin all the same, and are charged nothing."""
    module, seen = tmp_path / "met_again.py", tmp_path / "met_again.seen"
    module.write_text(MET_AGAIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = fleet.start(slots=3).up()
    long = nbqueue.submit(imports_late, "long")
    limited = nbqueue.options(timeout=5).submit(imports_late, "long")
    eventually(lambda: long.is_started and limited.is_started)
    first = nbqueue.submit(imports_late, 1)
    assert first.wait(60)[1] == 1, worker.log
    eventually(lambda: len(set(seen.read_text().split())) == 2)
    assert long.cancel()
    again = nbqueue.map(imports_late, range(5))
    assert [x for _, x in again.results(timeout=120)] == [0, 1, 2, 3, 4], worker.log
    eventually(lambda: not long.is_started and limited.is_failed, 120)
    assert limited.outcome.cause is Cause.TIMEOUT
    assert "hangs in an import" in worker.log
    assert worker.log.count("hangs in an import") == 1
    assert {job.attempt for job in again} == {1}


def has_at_once(name):
    had = name in sys.modules
    importlib.import_module(name)
    return had, os.getppid()


def test_a_process_that_forks_calls_and_was_killed_begins_with_what_it_had_learnt(session, fleet):
    worker = fleet.start(slots=1).up()

    def call():
        return nbqueue.submit(has_at_once, "xmlrpc.client").wait(60)

    assert call()[0] is False
    _, first = eventually(lambda: (found := call())[0] and found)
    os.kill(first, signal.SIGKILL)
    found = eventually(lambda: (found := call())[1] != first and found)
    assert found[0], worker.log
