"""Time limits from outside, and the fence of a lease."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import wait_until
from stable_driver import Driver

from nbqueue import wire
from nbqueue.errors import JobTimeout
from nbqueue.model import Cause, State
from nbqueue.worker import limits


def test_a_job_over_its_limit_gets_a_timeout_that_names_it():
    with Driver(time.sleep) as driver:
        ok, late = driver.outcomes(driver.run(0, 50, timeout=0.2))
    assert ok.state is State.FINISHED
    assert late.cause is Cause.TIMEOUT
    assert late.failure.type == "nbqueue.errors.JobTimeout"
    assert "b:1" in late.failure.message
    assert "0.2 s" in late.failure.message
    assert isinstance(wire.loads(late.failure.pickled), JobTimeout)
    assert late.ended - late.started < 5
    assert "in ring" not in late.failure.traceback


def test_except_exception_does_not_swallow_it_and_cleaning_up_is_possible():
    def f(_):
        try:
            time.sleep(50)
        except Exception:
            return "swallowed"
        except BaseException as why:
            return type(why).__name__

    with Driver(f) as driver:
        assert driver.values(0, timeout=0.1) == ["JobTimeout"]


def test_what_never_returns_to_python_is_killed_after_the_grace():
    def f(_):
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        subprocess.Popen(["sleep", "100"], start_new_session=True)
        time.sleep(50)

    with Driver(f) as driver:
        began = time.monotonic()
        ride = driver.outcome(0, timeout=0.2, grace=0.3)
        assert time.monotonic() - began < 5
        assert (ride.state, ride.cause, ride.code) == (State.FAILED, Cause.TIMEOUT, -signal.SIGKILL)
        assert "killed" in ride.failure.message
        wait_until(lambda: not driver.horses())


def test_the_limit_of_one_call_never_strikes_the_next():
    def f(x):
        end = time.monotonic() + x
        while time.monotonic() < end:
            pass
        return x

    with Driver(f) as driver:
        items = [0.001, 0.03] * 20
        assert driver.values(*items, timeout=0.2) == items


def test_a_loop_in_pickling_the_result_is_under_the_limit_too():
    class Loops:
        def __reduce__(self):
            while True:
                pass

    with Driver(lambda _: Loops()) as driver:
        assert driver.outcome(0, timeout=0.2).cause is Cause.TIMEOUT


def test_at_the_fence_all_freeze_and_the_standing_go_on_with_their_clocks(tmp_path):
    beat = tmp_path / "beat"

    def f(name):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            beat.with_name(name).write_text(str(time.monotonic()))
        return name

    with Driver(f) as driver:
        (a,), (b,) = driver.run("a", slot=0, timeout=60), driver.run("b", slot=1, timeout=60)
        wait_until(lambda: (driver.pump(), len(driver.horses()) == 2)[1])
        driver.fence(limits.fence_clock())
        wait_until(lambda: (driver.pump(), [state_of(pid) for pid in driver.horses()] == ["T", "T"])[1])
        driver.thaw(a)
        driver.until(lambda: b in driver.gone)
        (ride,) = driver.outcomes([a])
        assert ride.state is State.FINISHED, ride
        assert wire.loads(ride.value) == "a"
        assert b not in driver.rides


def test_nothing_starts_behind_the_fence():
    with Driver(lambda _: 1) as driver:
        driver.until(lambda: driver.ready is not None)
        driver.fence(limits.fence_clock() - 1)
        (seq,) = driver.run(0)
        driver.pump(0.2)
        assert not driver.rides
        driver.thaw(seq)
        assert driver.outcomes([seq])[0].state is State.FINISHED


def test_a_frozen_slot_has_its_limit_clock_stand_still():
    with Driver(lambda _: time.sleep(0.5)) as driver:
        (seq,) = driver.run(0, timeout=1.0)
        wait_until(lambda: (driver.pump(), driver.horses())[1])
        driver.fence(limits.fence_clock())
        wait_until(lambda: [state_of(pid) for pid in driver.horses()] == ["T"])
        time.sleep(1.2)  # longer than the limit, which is what this is about
        driver.thaw(seq)
        assert driver.outcomes([seq])[0].state is State.FINISHED


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_the_fence_clock_counts_suspend():
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("no CLOCK_BOOTTIME here")
    assert limits._FENCE_CLOCK == time.CLOCK_BOOTTIME  # a machine that was never suspended tells no other way


def test_the_board_keeps_a_clock_that_can_be_set_back():
    board = limits.Board()
    assert board.read() is None
    since = board.begin(3)
    assert board.read() == (3, since)
    board.froze(10.0)
    assert board.now() - since < -9
    board.end()
    assert board.read() is None
