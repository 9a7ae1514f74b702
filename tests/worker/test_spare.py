"""The spare horse of a real stable: what it makes faster, and all that it must not change."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import wait_until
from stable_driver import Driver, alive_with

from nbqueue import wire
from nbqueue.model import Cause, State
from nbqueue.worker.certificate import Obituary
from nbqueue.worker.limits import fence_clock
from nbqueue.worker.slots import Mount


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def spare_of(driver, *, but=None):
    """The spare horse that follows a call, once it waits, and no other does; not the one named."""
    if not driver.rides:
        driver.values(0)
    driver.until(lambda: driver.spare() not in (None, but) and state_of(driver.spare()) == "S")
    driver.until(lambda: not driver.horses())
    return driver.spare()


def given_to_a_stopped_one(driver, *, but=None):
    """A spare horse that cannot go on, and the call that it has got but not begun."""
    pid = spare_of(driver, but=but)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T")
    seqs = driver.run(0, isolate=True)
    driver.values(0, slot=1)  # the stable comes to this later
    return pid, seqs


def pid_of(_):
    return os.getpid()


def test_the_next_call_is_made_by_the_horse_that_waits_for_it():
    with Driver(pid_of) as driver:
        first = spare_of(driver)
        assert driver.values(0, isolate=True) == [first]
        second = spare_of(driver, but=first)
        assert driver.values(0, slot=3) == [second]
        third = spare_of(driver, but=second)
        mine, *others = driver.values(*range(5), isolate=True)
        assert mine == third
        assert len({first, second, third, *others}) == 7


def test_it_is_there_only_while_nothing_else_is_to_be_done(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Driver(lambda path: path and Path(path).read_text()) as driver:
        wait_until(lambda: (driver.pump(), driver.ready is not None)[1])
        assert driver.spare() is None
        long = driver.run(str(gate), slot=1, isolate=True)
        driver.until(lambda: driver.begun == long)
        driver.values(*[None] * 20, isolate=True)
        assert driver.spare() is None
        gate.write_text("go")
        driver.outcomes(long)
        assert spare_of(driver)


def test_a_bare_stable_has_none():
    with Driver(pid_of, bare=True) as driver:
        pids = driver.values(*range(3), isolate=True)
        wait_until(lambda: not driver.horses())
        driver.values(0)
        assert driver.spare() is None
        assert len(set(pids)) == 3


def test_many_or_large_calls_go_to_a_fresh_horse_which_holds_nothing_of_it():
    def f(_):
        return os.getpid(), [fd for fd in range(3, 1100) if Path(f"/proc/self/fd/{fd}").exists()]

    with Driver(f) as driver:
        driver.until(lambda: driver.ready is not None)
        (_, before), _ = driver.values(0, 0)
        spare = spare_of(driver)
        (pid, behind), (same, _) = driver.values(0, 0)
        (large, _) = driver.values("x" * (1 << 17))[0]
        assert before == behind
        assert pid == same
        assert spare not in (pid, large)
        assert driver.spare() == spare


def test_its_call_is_as_any_other():
    def f(x):
        print("out", x)
        os.write(2, b"err\n")
        if x == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while x == "hang":
            pass
        return x

    with Driver(f) as driver:
        pid = spare_of(driver)
        rides = [driver.outcome("fine", isolate=True)]
        for x in ("crash", "hang"):
            pid = spare_of(driver, but=pid)
            rides.append(driver.outcome(x, isolate=True, timeout=0.1))
    assert [ride.cause for ride in rides] == [None, Cause.CRASHED, Cause.TIMEOUT]
    assert "SIGSEGV" in rides[1].failure.message
    assert [driver.tails[seq] for seq in (1, 2)] == [b"out fine\nerr\n", b"out crash\nerr\n"]
    assert rides[0].max_rss_kb > 0


def test_it_runs_the_callbacks_of_its_call(tmp_path):
    log = tmp_path / "log"

    def done(job, connection, result):
        log.write_text(f"{job.id} {result} {os.getpid()}")

    with Driver(pid_of, hooks={"success": done}) as driver:
        spare = spare_of(driver)
        seq = driver.run(0, isolate=True, hooks=("success",))[0]
        assert wire.loads(driver.outcomes([seq])[0].value) == spare
        assert [echo.failure for echo in driver.echo(seq, "success")] == [None]
        assert log.read_text() == f"b:{seq} {spare} {spare}"
        assert spare_of(driver, but=spare)


def test_killed_it_is_followed_by_another_and_no_call_is_blamed():
    with Driver(pid_of) as driver:
        pid, seqs = given_to_a_stopped_one(driver)
        os.kill(pid, signal.SIGKILL)
        assert wire.loads(driver.outcomes(seqs)[0].value) != pid
        pid = spare_of(driver, but=pid)
        os.kill(pid, signal.SIGKILL)
        assert driver.outcome(isolate=True).state is State.FINISHED
        assert spare_of(driver, but=pid)


def test_a_call_that_it_has_not_begun_is_killed_or_given_back():
    with Driver(pid_of) as driver:
        pid, seqs = given_to_a_stopped_one(driver)
        driver.kill(*seqs)
        driver.until(lambda: driver.gone == seqs)
        _, later = given_to_a_stopped_one(driver, but=pid)
        driver.drain()
        driver.until(lambda: driver.back == later)
        wait_until(lambda: not driver.horses() and driver.spare() is None)  # while a stable drains there is none
        assert not {*seqs, *later} & set(driver.rides)


def test_at_the_fence_it_gets_no_call_until_what_stands_is_known():
    with Driver(pid_of) as driver:
        pid = spare_of(driver)
        driver.fence(fence_clock() - 1)
        seqs = driver.run(0, 0, isolate=True)
        for _ in range(3):
            driver.pump()
        assert not set(seqs) & set(driver.rides)
        driver.fence(fence_clock() + 60)
        driver.thaw(seqs[1])
        assert wire.loads(driver.outcomes(seqs[1:])[0].value) == pid
        assert driver.gone == seqs[:1]


def test_it_ends_with_its_stable():
    with Driver(pid_of) as driver:
        assert spare_of(driver)
    with Driver(pid_of) as driver:
        assert spare_of(driver)
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.process.wait()
        wait_until(lambda: not alive_with(driver.mark))


def test_schedulers_signals_leave_it_alone():
    with Driver(pid_of) as driver:
        pid = spare_of(driver)
        for signum in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, signum)
        assert driver.values(0, isolate=True) == [pid]


def test_a_death_in_no_call_hides_no_later_kill_for_memory(monkeypatch):
    found = Obituary()
    before = killed = found._kills
    monkeypatch.setattr(found, "kills", lambda: killed)
    found.pass_over(signal.SIGKILL)
    assert found._kills == before  # the kernel has killed nobody
    killed += 2  # now it has, twice: a spare horse, and a job
    found.pass_over(signal.SIGKILL)
    assert found._kills == before + 1


@pytest.mark.parametrize(
    ("over", "busy", "eof"), [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]
)
def test_a_horse_that_has_closed_its_end_gets_no_call(over, busy, eof):
    """Its socket ends before its process does: what is given to it then would go nowhere, and end the stable."""
    mount = SimpleNamespace(lasts=True, busy=busy, leaving=over, channel=SimpleNamespace(eof=eof))
    assert Mount.waits.fget(mount) == (not (over or busy or eof))
