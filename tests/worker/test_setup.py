"""What a call needs to get ready: learnt from the first horses, or kept in horses that live longer for it."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest
from helpers import wait_until
from stable_driver import Driver
from test_spare import state_of

from nbqueue import wire
from nbqueue.model import Cause, State
from nbqueue.worker import horse
from nbqueue.worker.clock import Clock
from nbqueue.worker.ledger import Pace
from nbqueue.worker.limits import Board, fence_clock

SLOW = 0.2  # seconds that the module takes to import: a horse that has done so lives for seconds


def pid_of(_):
    return os.getpid()


def dear(tmp_path, text=""):
    """A function whose module nobody may import ahead, and the log of those who did: it can be edited at any time."""
    log = tmp_path / "log"
    log.touch()
    lines = f"import os, time\ntime.sleep({SLOW})\nwith open({str(log)!r}, 'a') as file:\n"
    (tmp_path / "mine.py").write_text(lines + "    print(os.getpid(), file=file)\n" + textwrap.dedent(text))

    def f(x):
        import mine

        if callable(x):
            return x()
        if x == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while x == "hang":
            time.sleep(0.01)
        return os.getpid(), mine.os.getppid(), x

    return f, {"path": (str(tmp_path),)}, lambda: list(map(int, log.read_text().split()))


def at_rest(driver, pid):
    """Waits until the horse has made its calls, and waits for more."""
    wait_until(lambda: (driver.pump(), state_of(pid) == "S")[1])


# ---------------------------------------------------------------- learnt by the stable


def test_what_a_call_imports_the_next_horses_have(tmp_path):
    def f(_):
        import sys

        had = "colorsys" in sys.modules, "numpy.random" in sys.modules
        import colorsys  # noqa: F401

        import numpy as np

        return *had, os.getpid(), float(np.random.random())  # noqa: NPY002

    for isolate in (True, False):
        with Driver(f) as driver:
            assert driver.values(0, isolate=isolate, seed=1)[0][:2] == (False, False)
            driver.until(lambda: {"colorsys", "numpy"} <= set(driver.learnt))
            found = driver.values(*range(20), isolate=isolate, seed=1)
            assert {each[:2] for each in found[-10:]} == {(True, True)}
            assert driver.learnt.count("colorsys") == 1
            assert len({each[2] for each in found}) == (20 if isolate else len({each[2] for each in found}))


def test_an_own_module_is_learnt_if_the_function_knows_it(tmp_path):
    f, place, imported = dear(tmp_path)
    with Driver(f, modules={"mine": _digest(tmp_path / "mine.py")}, **place) as driver:
        driver.values(0, isolate=True)
        driver.until(lambda: "mine" in driver.learnt and driver.process.pid in imported())
        before = len(imported())
        driver.values(*range(20), isolate=True)
        assert len(imported()) == before
        assert driver.process.pid in imported()


def _digest(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_cannot_be_imported_again_is_tried_once(tmp_path):
    text = f"if os.getppid() == {os.getpid()}:\n    raise {{}}\n"  # only in the stable
    for error in ("RuntimeError('no')", "SystemExit(3)"):
        f, place, imported = dear(tmp_path, text.format(error))
        (tmp_path / "log").write_text("")
        with Driver(f, modules={"mine": _digest(tmp_path / "mine.py")}, **place) as driver:
            driver.values(0, isolate=True)
            driver.until(lambda: "mine" in driver.learnt)
            for x in range(3):
                assert driver.values(x, isolate=True)[0][2] == x
            assert imported().count(driver.process.pid) == 1


def test_a_module_that_starts_a_thread_makes_horses_load_for_themselves(tmp_path):
    text = f"""
        import threading
        if os.getppid() == {os.getpid()}:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    """
    f, place, imported = dear(tmp_path, text)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Driver(f, modules={"mine": _digest(tmp_path / "mine.py")}, **place) as driver:
        stable = driver.process.pid
        driver.until(lambda: driver.ready is not None)
        running = driver.run(gate.read_text)
        driver.until(lambda: driver.begun == running)
        driver.values(0, slot=1, isolate=True)
        driver.until(lambda: stable in imported())  # it must not fork from now on
        later = driver.run(1, slot=1)
        driver.ready = None
        gate.write_text("done")
        assert wire.loads(driver.outcomes(running)[0].value) == "done"
        driver.until(lambda: driver.ready is not None and (later[0] in driver.rides or later[0] in driver.back))
        assert driver.process.pid == stable
        assert driver.values(0, isolate=True)[0][2] == 0
        assert imported().count(stable) == 1


def test_it_is_not_imported_while_a_time_limit_or_the_fence_comes_near():
    class Rides:
        busy, errand = True, None

        def __init__(self, limit):
            board = Board()
            self.slot = type("Slot", (), {"board": board})
            self.calls = [type("Call", (), {"run": type("Run", (), {"timeout": limit})})]
            board.begin(0)

    clock = Clock(*[lambda _: None] * 3)
    assert clock.room([]) == clock.room([Rides(None)]) == float("inf")
    assert 90 < clock.room([Rides(None), Rides(100.0)]) <= 100
    clock.fence = fence_clock() + 5
    assert 0 < clock.room([Rides(100.0)]) <= 5
    still = Rides(1.0)
    still.slot.board.end()
    assert clock.room([still]) > 1


# ---------------------------------------------------------------- kept in a horse


def test_a_horse_that_was_dear_serves_many_calls_and_rests_between_them(tmp_path):
    for bare in (False, True):
        f, place, imported = dear(tmp_path)
        (tmp_path / "log").write_text("")
        with Driver(f, bare=bare, **place) as driver:
            first = driver.values(0, slice=0.0)[0][0]
            at_rest(driver, first)
            for x in range(1, 20):
                assert driver.values(x, slice=0.0) == [(first, driver.process.pid, x)]
            assert len(driver.values("x" * 8_000_000)[0][2]) == 8_000_000
            assert imported() == [first]
            assert driver.values(0, isolate=True)[0][0] != first
            wait_until(lambda pid=first: pid not in driver.alive())  # its place was needed


class Clocks:
    """Those of a horse, in seconds: the wall's, and that of its CPU."""

    def __init__(self, monkeypatch):
        self.wall = self.cpu = 0.0
        monkeypatch.setattr(horse, "time", self)

    def monotonic(self):
        return self.wall

    def process_time(self):
        return self.cpu


def test_an_old_horse_makes_way(monkeypatch):
    clocks = Clocks(monkeypatch)

    def calls_of(first, later, known=None):
        clocks.wall, life = 0.0, horse.Life(known)
        life.begins()
        number = 0
        while life.left(0.1) or not number:
            number += 1
            life.lived(first if number == 1 else later)
            clocks.wall += first if number == 1 else later
        return number

    assert calls_of(0.05, 0.05) == 2
    assert calls_of(1.0, 1.0) == 2  # whether the first is the dearer one a second has to tell
    assert calls_of(1.0, 1.0, known=0.0) == 1  # who outlasts the slice at once has a process for itself
    assert calls_of(1.0, 1.0, known=0.5) == 10  # by chance as fast as the second
    assert 150 <= calls_of(0.03, 0.01) // 0.25 <= 170  # 20 ms more than the others: 0.4 s


def test_forking_a_horse_and_all_that_it_does_before_its_first_call_are_part_of_getting_ready(monkeypatch):
    clocks = Clocks(monkeypatch)
    for forking, before, slice_, lives in ((0.0, 0.0, 0.1, 0.1), (0.002, 0.003, 0.1, 0.1), (0.005, 0.01, 0.1, 0.3)):
        clocks.wall, clocks.cpu, life = 0.0, before, horse.Life(0.0, forking)
        assert life.begins()
        assert not life.begins()
        assert life.left(slice_) == pytest.approx(lives)
        clocks.wall = clocks.cpu = lives - 0.001
        assert not life.over(slice_)
        clocks.wall = clocks.cpu = lives + 0.001
        assert life.over(slice_)


def test_a_horse_that_gets_little_of_the_cpu_lasts_longer_but_not_for_ever(monkeypatch):
    clocks = Clocks(monkeypatch)
    life = horse.Life(0.0, 0.01)
    life.begins()
    clocks.wall, clocks.cpu = 0.3, 0.05
    assert not life.over(0.1)
    assert life.left(0.1) == 0.0  # it does not wait for calls, though
    clocks.wall, clocks.cpu = 0.8, 0.21
    assert life.over(0.1)
    clocks.wall, clocks.cpu = 2.1, 0.05
    assert life.over(0.1)


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_where_first_calls_are_dear_and_longer_than_the_slice_horses_last(tmp_path):
    def dear(_):
        import fnmatch

        missed = fnmatch._compile_pattern.cache_info().misses
        fnmatch.fnmatch("a", "only here")
        burn(0.6 if fnmatch._compile_pattern.cache_info().misses > missed else 0.001)
        return os.getpid()

    with Driver(dear, imports=["fnmatch"]) as driver:
        for _ in range(2):  # the second horse knows by the first
            pid = driver.values(0, slice=0.0)[0]
            at_rest(driver, pid)
            for x in range(4):
                assert driver.values(x, slice=0.0) == [pid]
            assert driver.values(0, isolate=True)[0] != pid


def test_where_all_calls_are_as_dear_each_has_a_process_once_that_is_known(tmp_path):
    def even(_):
        burn(0.2)
        return os.getpid()

    with Driver(even) as driver:
        found = [driver.values(x, slice=0.0)[0] for x in range(8)]
        assert found[0] == found[1]
        assert len(set(found[-3:])) == 3  # a spare one may have been there before


def test_killed_while_it_waits_it_takes_no_call_with_it(tmp_path):
    f, place, _ = dear(tmp_path)
    with Driver(f, **place) as driver:
        first = driver.values(0)[0][0]
        at_rest(driver, first)
        os.kill(first, signal.SIGKILL)
        assert driver.values(0)[0][0] != first
        assert {ride.state for ride in driver.rides.values()} == {State.FINISHED}


def test_stopped_it_gives_back_what_it_has_not_begun_and_goes_on(tmp_path):
    f, place, _ = dear(tmp_path)
    with Driver(f, **place) as driver:
        first = driver.values(0)[0][0]
        at_rest(driver, first)
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: state_of(first) == "T")
        seqs = driver.run(1, 2)
        driver.values(0, slot=1)  # the stable comes to this later
        driver.kill(seqs[0])
        driver.until(lambda: driver.gone == seqs[:1])
        assert wire.loads(driver.outcomes(seqs[1:])[0].value)[2] == 2


def test_a_crash_a_time_limit_and_a_kill_are_those_of_the_call(tmp_path):
    f, place, _ = dear(tmp_path)
    with Driver(f, **place) as driver:
        first = driver.values(0)[0][0]
        at_rest(driver, first)
        ride = driver.outcome("crash")  # twice: in its process, and alone
        assert (ride.cause, ride.code) == (Cause.CRASHED, -signal.SIGSEGV)
        second = driver.values(0)[0][0]
        at_rest(driver, second)
        ride = driver.outcome("hang", timeout=SLOW)
        assert ride.cause is Cause.TIMEOUT
        assert ride.max_rss_kb is None  # others had the process, too
        assert driver.values(0)[0][0] == second  # it was told in time, and is as good as before
        seqs = driver.run("hang", 7)
        driver.until(lambda: driver.begun and driver.begun[-1] == seqs[0])
        driver.kill(seqs[0])
        driver.until(lambda: seqs[0] in driver.gone)
        assert second not in driver.alive()


def test_it_ends_with_a_drain_and_at_a_fence_it_waits(tmp_path):
    f, place, _ = dear(tmp_path)
    with Driver(f, **place) as driver:
        first = driver.values(0)[0][0]
        at_rest(driver, first)
        driver.fence(fence_clock() - 1)
        seqs = driver.run(1)
        wait_until(lambda: (driver.pump(), state_of(first) == "T")[1])
        assert not set(seqs) & set(driver.rides)
        driver.fence(fence_clock() + 60)
        driver.thaw(*seqs)
        assert wire.loads(driver.outcomes(seqs)[0].value)[0] == first
        at_rest(driver, first)
        driver.drain()
        wait_until(lambda: (driver.pump(), not driver.horses())[1])
        later = driver.run(2)
        driver.until(lambda: driver.back == later)


def test_a_pace_forgets_a_first_call_that_was_dear():
    pace = Pace()
    pace.saw(2.0)
    for _ in range(20):
        pace.saw(0.001)
    assert pace.chunk() > 50
