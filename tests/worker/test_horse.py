"""What jobs do to their processes: each is one finished or failed job with a named cause, never a hang."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import wait_until
from stable_driver import Driver

from nbqueue import wire
from nbqueue.model import Cause, State
from nbqueue.worker import frames


def outcome_of(function, item=None, **limits):
    """The ride and tail of one job; the driver then asserts that no process is left."""
    with Driver(function) as driver:
        (seq,) = driver.run(item, **limits)
        (ride,) = driver.outcomes([seq])
        driver.channel.send(frames.DRAIN, b"")  # after a dear call its process waits for more
        wait_until(lambda: not driver.horses())
        return ride, driver.tails[seq]


def exits(_):
    os._exit(0)


def segfaults(_):
    ctypes.string_at(0)


def aborts(_):
    os.abort()


def overflows(_):
    sys.setrecursionlimit(10**8)
    nested = []
    for _ in range(10**6):
        nested = [nested]
    repr(nested)


def test_a_stack_overflow_ends_that_job_only():
    ride, _ = outcome_of(overflows)
    assert ride.state is State.FAILED
    if sys.version_info < (3, 12):
        assert (ride.cause, ride.code) == (Cause.CRASHED, -signal.SIGSEGV)
    else:  # from 3.12 on Python stops it in time
        assert ride.failure.type == "RecursionError"


def kills_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (exits, 0),
        (segfaults, -signal.SIGSEGV),
        (aborts, -signal.SIGABRT),
        (kills_itself, -signal.SIGKILL),
    ],
)
def test_the_end_of_the_process_is_a_crash_with_its_code(function, code):
    ride, _ = outcome_of(function)
    assert (ride.state, ride.cause, ride.code) == (State.FAILED, Cause.CRASHED, code)
    assert ride.max_rss_kb > 1000
    assert ride.failure.type == "Crashed"


def sys_exits(_):
    sys.exit(3)


def interrupts(_):
    raise KeyboardInterrupt


def generator_exit(_):
    raise GeneratorExit


@pytest.mark.parametrize(
    ("function", "name"),
    [(sys_exits, "SystemExit"), (interrupts, "KeyboardInterrupt"), (generator_exit, "GeneratorExit")],
)
def test_any_base_exception_is_an_error(function, name):
    ride, _ = outcome_of(function)
    assert (ride.cause, ride.failure.type) == (Cause.ERROR, name)


def test_a_fork_that_falls_through_does_not_report():
    def f(_):
        return os.fork() == 0

    with Driver(f) as driver:
        seqs = driver.run(*range(5))
        rides = driver.outcomes(seqs)
        assert [wire.loads(ride.value) for ride in rides] == [False] * 5
        wait_until(lambda: not driver.horses())


def test_closed_descriptors_are_survived():
    def f(x):
        os.closerange(3, 1000)
        print("still here")
        return x

    with Driver(f) as driver:
        seqs = driver.run(*range(3))
        assert [ride.state for ride in driver.outcomes(seqs)] == [State.FINISHED] * 3
        assert driver.tails[seqs[2]] == b"still here\n"


def test_all_descriptors_closed_is_a_named_crash():
    ride, _ = outcome_of(lambda _: os.closerange(0, 5000))
    assert ride.cause is Cause.CRASHED
    assert "descriptors" in ride.failure.message


def test_sigterm_ignored_or_sent_to_itself():
    def f(_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)
        return "lives"

    with Driver(f) as driver:
        assert driver.values(1, 2) == ["lives"] * 2


PLAIN = "subprocess.Popen(['sleep', '100'])"
SETSID = "subprocess.Popen(['sleep', '100'], start_new_session=True)"
DAEMON = "subprocess.run(['sh', '-c', '(setsid sleep 100 &) &'])"
HOLDING = "subprocess.Popen(['sleep', '100'], stdout=1, stderr=2)"
FLOODING = "subprocess.Popen(['sh', '-c', 'while :; do echo flood; done'])"


@pytest.mark.parametrize("deed", [PLAIN, SETSID, DAEMON, HOLDING, FLOODING])
def test_what_a_job_leaves_running_ends_with_it(deed):
    def f(_):
        exec(deed, {"subprocess": subprocess})
        return "done"

    ride, _ = outcome_of(f)
    assert wire.loads(ride.value) == "done"


def test_threads_left_behind_end_with_the_job():
    def f(_):
        threading.Thread(target=time.sleep, args=(100,)).start()
        return os.getpid()

    with Driver(f) as driver:
        assert len(set(driver.values(1, 2, 3))) == 3


def test_between_calls_the_scene_is_restored():
    def f(x):
        seen = str(Path.cwd()), os.environ.get("X"), os.umask(0), signal.getsignal(signal.SIGUSR1)
        os.umask(0o70)
        os.chdir("/")
        os.environ["X"] = "changed"
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        sys.stdout = None
        sys.path.append("/changed")
        os.close(1)
        return os.getpid(), str(seen), "/changed" in sys.path[:-1]

    with Driver(f) as driver:
        values = driver.values(*range(5))
    assert len({pid for pid, _, _ in values}) < 5
    assert len({seen for _, seen, _ in values}) == 1
    assert not any(changed for _, _, changed in values)


def test_random_numbers_belong_to_seed_and_index():
    def f(_):
        import random

        import numpy as np

        from nbqueue import current

        return random.random(), float(np.random.random()), float(current.rng().random())  # noqa: NPY002

    with Driver(f) as driver, Driver(f) as other:
        first, second = driver.values(0, 0, seed=7, slice=9.0)
        assert first[0] != second[0]
        assert first[2] != second[2]
        again = other.values(0, 0, seed=7, isolate=True, slice=9.0)
    assert [tuple(value) for value in again] == [tuple(first), tuple(second)]


def test_a_coroutine_function_is_run():
    async def f(x):
        import asyncio

        await asyncio.sleep(0)
        return x

    with Driver(f) as driver:
        assert driver.values(1, 2) == [1, 2]


def test_memory_is_told_only_of_a_process_that_was_not_shared():
    with Driver(lambda _: None) as driver:
        shared = driver.outcomes(driver.run(*range(3)))
        alone = driver.outcome(0, isolate=True)
    assert [ride.max_rss_kb for ride in shared] == [None] * 3
    assert alone.max_rss_kb > 1000


def test_garbage_in_the_report_is_blamed_on_the_call_that_wrote_it(tmp_path):
    """Those before it have finished, and do not run again."""

    def f(x):
        with (Path(folder) / str(x)).open("a") as file:
            file.write(".")
        if x == 19:
            for fd in range(1000, 1010):
                try:
                    os.write(fd, b"hello, world")
                except OSError:
                    continue
        return x

    folder = str(tmp_path)
    with Driver(f) as driver:
        rides = driver.outcomes(driver.run(*range(22), slice=60.0))
    assert [place for place, ride in enumerate(rides) if ride.state is not State.FINISHED] == [19]
    assert rides[19].cause is Cause.CRASHED
    ran = [len((tmp_path / str(x)).read_text()) for x in range(22)]
    assert ran[:19] == [1] * 19
