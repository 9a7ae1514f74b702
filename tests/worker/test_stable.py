"""A real stable over a real socketpair: calls, slices, tickets, and what is taken back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import wait_until
from stable_driver import Driver, alive_with

from nbqueue import wire
from nbqueue.model import Cause, State
from nbqueue.worker import frames, herd, slots, stable
from nbqueue.worker.channel import Channel
from nbqueue.worker.limits import fence_clock


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "gate"
    os.mkfifo(path)
    return str(path)


def open_gate(path):
    Path(path).write_text("go")


def test_a_map_comes_back_complete_and_in_any_number():
    with Driver(lambda x: x * 2) as driver:
        seqs = [seq for slot in (0, 1) for seq in driver.run(*range(500), slot=slot)]
        rides = driver.outcomes(seqs)
    assert [wire.loads(ride.value) for ride in rides] == [2 * x for x in range(500)] * 2


def test_a_fresh_stable_has_imported_the_standard_library_only():
    code = (
        "import sys, runpy\nsys.argv = ['x', '99']\n"
        "import nbqueue.worker.stable\n"
        "print([m for m in ('redis', 'msgspec', 'cloudpickle', 'pandas', 'numpy', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_short_calls_share_a_horse_and_isolated_ones_do_not():
    with Driver(lambda _: os.getpid()) as driver:
        shared = driver.values(*range(50))
        alone = driver.values(*range(5), isolate=True)
    assert len(set(shared)) < 10
    assert len(set(alone)) == 5


def test_reports_of_short_calls_add_up_as_long_as_no_horse_comes_to_wait():
    class Rides:
        busy = True

        def __init__(self, seconds):
            self.left = lambda: seconds

    def naps(*lefts, size=0, busy=True):
        found = herd.Herd(None, None)
        for number, seconds in enumerate(lefts):
            found.slots[number] = slots.Slot(number)
            found.slots[number].mount = Rides(seconds)
        found._busy, found._bulk = busy, size
        return found.nap()

    assert naps(1.0, 1.0) == herd.LONG_NAP
    assert naps(1.0, 0.004) == 0.002
    assert naps(1.0, 0.0) == herd.NAP  # not known yet, or its last call
    assert naps(1.0, size=1 << 20) == herd.NAP
    assert naps(1.0, busy=False) == 0.0


def test_a_long_call_gives_the_rest_back_and_says_that_it_has_begun(fifo):
    def f(path):
        return Path(path).read_text() if path else "short"

    with Driver(f) as driver:
        first, long, *rest = driver.run(None, fifo, None, None)
        driver.until(lambda: driver.begun and driver.back)
        assert driver.begun == [long]
        assert driver.back == rest
        assert first in driver.rides
        open_gate(fifo)
        assert driver.outcomes([long])[0].state is State.FINISHED


def test_calls_behind_an_old_horse_go_on_in_a_fresh_one():
    def f(_):
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            pass
        return os.getpid()

    with Driver(f) as driver:
        pids = driver.values(*range(40))
    assert 1 < len(set(pids)) < 40


def test_a_crash_among_shared_calls_harms_no_other(tmp_path):
    log = tmp_path / "log"

    def f(x):
        with log.open("a") as file:
            file.write(f"{x} {os.getpid()}\n")
        if x == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x

    with Driver(f) as driver:
        rides = driver.outcomes(driver.run(*range(6)))
    assert [ride.state for ride in rides].count(State.FINISHED) == 5
    assert (rides[3].cause, rides[3].code) == (Cause.CRASHED, -signal.SIGSEGV)
    assert "SIGSEGV" in rides[3].failure.message
    runs = [line.split() for line in log.read_text().splitlines()]
    assert len([run for run in runs if run[0] == "3"]) == 2  # once among others, once alone
    assert len(runs) == 7


def test_killed_jobs_are_gone_and_others_go_on(fifo):
    def f(path):
        return Path(path).read_text() if path else "short"

    with Driver(f) as driver:
        running, queued, other = driver.run(fifo, None, None)
        driver.kill(queued)
        driver.until(lambda: queued in driver.gone)
        wait_until(driver.horses)
        driver.kill(running)
        driver.until(lambda: running in driver.gone)
        driver.until(lambda: other in driver.rides or other in driver.back)
        assert other in driver.back or driver.rides[other].state is State.FINISHED
        assert not {running, queued} & set(driver.rides)


def test_drain_takes_back_what_has_not_begun(fifo):
    with Driver(lambda path: Path(path).read_text()) as driver:
        running, *rest = driver.run(*[fifo] * 4)
        wait_until(driver.horses)
        driver.until(lambda: driver.begun)
        driver.drain()
        later = driver.run(fifo)
        driver.until(lambda: set(driver.back) >= {*rest, *later})
        open_gate(fifo)
        assert driver.outcomes([running])[0].state is State.FINISHED


def test_the_parent_dies_and_all_under_it_ends():
    def f(_):
        subprocess.Popen(["sleep", "100"], start_new_session=True)
        time.sleep(100)

    driver = Driver(f)
    driver.run(0)
    wait_until(lambda: (driver.pump(), len(driver.alive()) == 3)[1])
    driver.close()


def test_a_stable_that_wakes_late_begins_nothing(monkeypatch):
    monkeypatch.setattr(stable.Stable, "_end", lambda _: None)  # it would end the children of this process

    def frozen_at_its_starts(*, fence=None, parent=None):
        ours, theirs = map(Channel, socket.socketpair())
        if fence is not None:
            ours.send(frames.FENCE, frames.pack_fence(fence_clock() + fence))
        if parent == "gone":
            ours.close()
        found, seen = stable.Stable(theirs), []
        found._parent = 1 if parent == "another" else found._parent

        found._start = lambda: seen.append(found._herd.clock.frozen)
        found._flush = ours.close  # which ends it, once it has gone on for the first time
        found.serve()
        theirs.close()
        return seen

    assert frozen_at_its_starts(fence=60) == [False]
    assert frozen_at_its_starts(fence=0) == [True]  # the lease was over before it came to read
    assert frozen_at_its_starts(parent="gone") == []
    assert frozen_at_its_starts(parent="another") == []


def test_the_stable_dies_and_its_horses_die():
    with Driver(lambda _: time.sleep(100)) as driver:
        driver.run(0)
        wait_until(lambda: (driver.pump(), driver.horses())[1])
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.process.wait()
        wait_until(lambda: not alive_with(driver.mark))


def test_sigterm_ends_neither_stable_nor_horse_and_no_child_inherits_that(fifo):
    def f(path):
        from multiprocessing import Pool

        from nbqueue import current

        with Pool(2) as pool:  # its end needs SIGTERM to work in forked children
            squares = pool.map(abs, [-1, -2])
        current.note(1, b"the pool is gone")
        return squares, Path(path).read_text()

    with Driver(f) as driver:
        seqs = driver.run(fifo)
        driver.until(lambda: driver.notes)
        for pid in (driver.process.pid, *driver.horses()):
            with suppress(ProcessLookupError):  # one of the pool's own, which has just ended
                os.kill(pid, signal.SIGTERM)
        open_gate(fifo)
        assert wire.loads(driver.outcomes(seqs)[0].value) == ([1, 2], "go")


def test_what_is_sent_to_a_process_that_a_job_has_just_forked_is_not_lost():
    def f(n):
        ends = []
        for _ in range(n):
            if not (pid := os.fork()):
                time.sleep(30)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)  # as a Pool that ends before its processes have begun
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return set(ends), signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with Driver(f) as driver:
        assert wire.loads(driver.outcome(50).value) == ({-signal.SIGTERM}, set())


def test_what_modules_do_after_a_fork_is_left_out_of_ours_and_done_in_those_of_jobs():
    script = """
import os, threading
from nbqueue.worker import tree

calls = []
with tree.lean_forks():
    os.register_at_fork(after_in_child=lambda: calls.append(1))

def child_calls(lean):
    tree.is_lean(lean=lean)
    if not (pid := os.fork()):
        os._exit(len(calls))
    tree.is_lean(lean=False)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(child_calls(True), child_calls(False))
gate = threading.Event()
threading.Thread(target=gate.wait).start()
print(child_calls(True))  # another thread may hold a lock
gate.set()
"""
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "0 1\n1\n"

    def threads_after_a_fork(_):
        import threading

        gate = threading.Event()
        threading.Thread(target=gate.wait).start()
        if not (pid := os.fork()):
            os._exit(threading.active_count())
        gate.set()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with Driver(threads_after_a_fork) as driver:
        assert driver.values(0) == [1]


def test_a_note_travels_while_the_job_runs(fifo):
    def f(path):
        from nbqueue import current

        current.note(1, b"half way")
        return current.current(), Path(path).read_text()

    with Driver(f) as driver:
        (seq,) = driver.run(fifo)
        driver.until(lambda: driver.notes)
        assert driver.notes[0] == (seq, 1, b"half way")
        open_gate(fifo)
        assert wire.loads(driver.outcomes([seq])[0].value) == ("b:0", "go")


def test_a_worker_of_another_nbqueue_is_told_which():
    with Driver() as driver:
        driver.channel.send(frames.HELLO, b"999 9.9.9")
        driver.until(lambda: driver.unfit)
        assert "the worker 9.9.9: install the same version" in driver.unfit.message
