"""Callbacks and exception handlers in a real stable: where they run, how they end, and what they never change."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from helpers import wait_until
from stable_driver import Driver, hook

from nbqueue import current, wire
from nbqueue.errors import InsideJob, JobFailed
from nbqueue.model import Cause, Failure, Hook, State
from nbqueue.worker import frames


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def written(log):
    return log.read_text().split() if log.exists() else []


def identity(_):
    return os.getpid()


def test_success_is_told_in_the_horse_that_made_the_call_with_result_meta_and_job(log):
    def f(x):
        current.get_current_job().meta["seen"] = x
        return {"pid": os.getpid()}

    def told(job, connection, result):
        log.write_text(f"{job.id} {job.args} {job.meta} {job.func_name} {connection} {result['pid'] == os.getpid()}")

    with Driver(f, hooks={"success": told}) as driver:
        (seq,) = driver.run(5, hooks=("success",))
        driver.outcomes([seq])
        assert not log.exists()
        assert [(echo.hook, echo.label, echo.failure) for echo in driver.echo(seq, "success")] == [
            ("success", "told", None)
        ]
        wait_until(lambda: not driver.horses())
    assert log.read_text() == "b:0 (5,) {'seen': 5} f None True"


def test_a_failure_is_told_with_the_exception_as_it_was_raised(log):
    def f(_):
        secret = "local"
        return {}[secret]

    def told(job, _connection, kind, value, tb):
        while tb.tb_next:
            tb = tb.tb_next
        log.write_text(f"{job.id} {kind.__name__} {value} {tb.tb_frame.f_locals['secret']}")

    with Driver(f, hooks={"failure": told}) as driver:
        (seq,) = driver.run(0, hooks=("failure", "success"))
        assert driver.outcomes([seq])[0].cause is Cause.ERROR
        assert driver.echo(seq, "failure")[0].failure is None
    assert log.read_text() == "b:0 KeyError 'local' local"


def test_a_crash_is_told_by_a_fresh_horse(log):
    def f(x):
        if x:
            os.kill(os.getpid(), signal.SIGSEGV)
        raise ValueError("known")

    def told(job, _connection, kind, value, tb):
        with log.open("a") as file:
            file.write(f"{job.attempt} {kind.__name__} {tb} ")

    with Driver(f, hooks={"failure": told}) as driver:
        (crashed,), (waited,) = (driver.run(bad, hooks=("failure",), slot=bad) for bad in (1, 0))
        assert driver.outcomes([crashed])[0].cause is Cause.CRASHED
        assert driver.echo(crashed, "failure")[0].failure is None
        driver.outcomes([waited])
        for pid in driver.horses():
            with suppress(ProcessLookupError):  # the one of the crash has just ended
                os.kill(pid, signal.SIGKILL)  # while it waits for the word
        wait_until(lambda: not driver.horses())
        assert driver.echo(waited, "failure")[0].failure is None
    assert written(log) == ["1", JobFailed.__name__, "None", "1", "ValueError", "None"]


def test_a_stopped_job_has_its_callback_too(log):
    with Driver(lambda _: time.sleep(100), hooks={"stopped": lambda job, _: log.write_text(job.id)}) as driver:
        (seq,) = driver.run(0, hooks=("stopped",))
        wait_until(driver.horses)
        driver.kill(seq)
        driver.until(lambda: driver.gone)
        assert driver.echo(seq, "stopped")[0].failure is None
    assert log.read_text() == "b:0"


def test_nothing_to_do_ends_the_horse_and_the_slot_goes_on():
    with Driver(identity, hooks={"success": print}) as driver:
        first, second = driver.run(0, 0, hooks=("success",))
        driver.outcomes([first])
        driver.after(first)
        driver.outcomes([second])
        driver.after(second)
        wait_until(lambda: not driver.horses())
        assert not driver.echoes
        assert driver.echo(first, "failure") == []  # what the function does not have is answered all the same
    assert {ride.state for ride in driver.rides.values()} == {State.FINISHED}


def raises(*_):
    raise RuntimeError("no")


def exits(*_):
    os._exit(3)


def hangs(*_):
    sum(range(1 << 40))  # C code, which no signal interrupts


def sleeps(*_):
    time.sleep(100)


def forks(*_):
    if os.fork() == 0:
        return
    os.fork()


def submits(*_):
    import nbqueue

    nbqueue.submit(print, 1)


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (raises, "RuntimeError", "no"),
        (exits, "Crashed", "success callback exits's process ended itself with exit code 3"),
        (hook(hangs, 0.2), "nbqueue.errors.JobTimeout", "killed"),
        (hook(sleeps, 0.2), "nbqueue.errors.JobTimeout", "time limit of 0.2 s"),
        (Hook(b"garbage", "g"), "UnpicklingError", ""),
        (Hook(wire.dumps("no.such.thing", 1 << 20), "n"), "ModuleNotFoundError", "no"),
        (Hook(wire.dumps(5, 1 << 20), "n"), "TypeError", "must be a function"),
        (submits, InsideJob.__module__ + ".InsideJob", "cannot submit"),
        (forks, None, None),
    ],
    ids=["raises", "exits", "hangs", "sleeps", "garbage", "missing", "number", "submits", "forks"],
)
def test_a_bad_callback_is_told_and_harms_nothing(bad, kind, says):
    with Driver(identity, hooks={"success": bad}) as driver:
        (seq,) = driver.run(0, hooks=("success",))
        driver.outcomes([seq])
        (echo,) = driver.echo(seq, "success")
        if kind is None:
            assert echo.failure is None
        else:
            assert echo.failure.type.rpartition(".")[2] == kind.rpartition(".")[2]
            assert says in echo.failure.message
            assert "worker/hooks.py" not in echo.failure.traceback
        assert driver.values(0)
        wait_until(lambda: not driver.horses())


def test_handlers_follow_the_callback_until_one_says_false(tmp_path, log):
    (tmp_path / "watchers.py").write_text(
        "import os\n"
        f"def say(word): open({str(log)!r}, 'a').write(word + ' ')\n"
        "def first(job, kind, value, tb): say(f'first:{job.id}:{kind.__name__}:{tb is not None}')\n"
        "def dies(job, *_): say('dies'); os._exit(1)\n"
        "def ends(job, *_): say(f'ends:{value_of(_)}'); return False\n"
        "def value_of(facts): return facts[1]\n"
        "def never(*_): say('never')\n"
    )
    names = [f"watchers.{name}" for name in ("missing", "first", "dies", "ends", "never")]
    with Driver(lambda x: 1 / x, setup=frames.Setup(paths=(str(tmp_path),), handlers=tuple(names))) as driver:
        fine, bad, *rest = driver.run(1, 0, *[1] * 20)
        driver.outcomes([bad])
        driver.until(lambda: set(driver.back) | set(driver.rides) >= {fine, *rest})
        echoes = driver.echo(bad, handlers=True)
        assert [echo.label for echo in echoes] == names[:4]
        assert [echo.failure.type if echo.failure else None for echo in echoes] == [
            "AttributeError",
            None,
            "Crashed",
            None,
        ]
    assert written(log) == ["first:b:1:ZeroDivisionError:True", "dies", "ends:division", "by", "zero"]


def test_preload_comes_first_and_its_failure_names_the_module(tmp_path):
    (tmp_path / "early.py").write_text("import sys; sys.modules['early_mark'] = sys\n")
    with Driver(
        lambda name: name in sys.modules, setup=frames.Setup(paths=(str(tmp_path),), preload=("early",))
    ) as driver:
        assert driver.values("early_mark") == [True]
    with Driver(identity, setup=frames.Setup(preload=("no_such_module",))) as driver:
        assert "no_such_module" in driver.until(lambda: driver.unfit).message


def test_a_bare_stable_does_all_of_it_too(tmp_path, log):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
    )
    setup = frames.Setup(paths=(str(tmp_path),), preload=("threaded",), handlers=("builtins.print",))

    def told(job, *_):
        log.write_text(f"{job.id} {'threaded' in sys.modules}")

    with Driver(lambda _: os._exit(1), setup=setup, hooks={"failure": told}) as driver:
        (seq,) = driver.run(0, hooks=("failure",))
        assert driver.outcomes([seq])[0].cause is Cause.CRASHED
        assert [echo.failure for echo in driver.echo(seq, "failure", handlers=True)] == [None, None]
    assert log.read_text() == "b:0 True"


def test_a_waiting_horse_blocks_no_call_for_long():
    with Driver(identity, hooks={"success": print}) as driver:
        (seq,) = driver.run(0, hooks=("success",))
        driver.outcomes([seq])
        later = driver.run(0, 0)
        driver.until(lambda: driver.back == later)
        assert driver.values(0, slot=7)
        assert driver.horses()
        assert driver.echo(seq, "success")[0].failure is None


def test_the_wait_for_the_word_has_an_end(tmp_path, log):
    (tmp_path / "hasty.py").write_text("from nbqueue.worker import clock\nclock.WAIT = 0.2\n")
    setup = frames.Setup(paths=(str(tmp_path),), preload=("hasty",))
    with Driver(identity, setup=setup, hooks={"success": lambda *facts: log.write_text(f"{facts[2]}")}) as driver:
        (seq,) = driver.run(0, hooks=("success",))
        (ride,) = driver.outcomes([seq])
        wait_until(lambda: not driver.horses())
        assert driver.echo(seq, "success")[0].failure is None
    assert log.read_text() == str(wire.loads(ride.value))


def test_killed_and_drained_while_a_callback_runs(tmp_path, log):
    gates = [tmp_path / f"gate{index}" for index in range(3)]
    for gate in gates:
        os.mkfifo(gate)

    def told(job, *_):
        with log.open("a") as file:
            file.write(f"{job.id} ")
        gates[job.index].read_text()

    with Driver(identity, hooks={"success": told}) as driver:
        (killed,) = driver.run(0, hooks=("success",))
        (waiting,) = driver.run(0, hooks=("success",), slot=1)
        (drained,) = driver.run(0, hooks=("success",), slot=2)
        driver.outcomes([killed, waiting, drained])
        driver.after(killed, "success")
        wait_until(lambda: written(log) == ["b:0"])
        driver.kill(killed, waiting)
        driver.until(lambda: {*driver.gone} == {killed, waiting})
        driver.drain()
        driver.after(drained, "success")
        driver.after(waiting, "success", slot=3)  # by a fresh horse: what has ended is brought to its end
        wait_until(lambda: sorted(written(log)) == ["b:0", "b:1", "b:2"])
        for index in (waiting, drained):
            gates[index].write_text("go")
        driver.until(lambda: len(driver.echoes) == 2)
        assert set(driver.echoes) == {waiting, drained}


def test_a_fence_freezes_a_callback_and_its_clock(log):
    def told(_job, *_):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            log.write_text(str(time.monotonic()))

    with Driver(identity, hooks={"success": hook(told, 0.8)}) as driver:
        (seq,) = driver.run(0, hooks=("success",))
        driver.outcomes([seq])
        driver.after(seq, "success")
        wait_until(log.exists)
        driver.fence(0.0)
        wait_until(lambda: all(_stopped(pid) for pid in driver.horses()))
        driver.thaw()
        assert driver.until(lambda: driver.echoes)[seq][0].failure is None


def _stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_meta_and_progress_come_in_order_and_the_latest_of_many_is_enough():
    def f(_):
        job = current.get_current_job()
        job.meta["n"] = job.meta["n"] + 1
        job.save_meta()
        for done in range(1, 1001):
            current.progress(done, 1000, "rows")
        return job.queue, job.description, job.attempt, current.get_current_job() is job

    with Driver(f) as driver:
        jobs = [frames.Job(0, 0, 2, b"1" + wire.dumps(None, 100), msgspec.msgpack.encode({"n": 1}))]
        run = frames.Run(0, "b", "f", False, None, 0.3, 0.1, 1 << 20, None, jobs, queue="low", description="words")
        driver.channel.send(frames.RUN, frames.encode(run))
        (ride,) = driver.outcomes([0])
        meta, *progress = [(note.kind, msgspec.msgpack.decode(note.payload)) for note in driver.notes]
    assert wire.loads(ride.value) == ("low", "words", 2, True)
    assert meta == (frames.META, {"n": 2})
    assert progress[-1] == (frames.PROGRESS, [1000, 1000, "rows"])
    assert len(progress) < 1000


def test_a_failure_without_a_pickle_is_told_as_one_of_ours():
    from nbqueue.worker import hooks

    _, error, _ = hooks._raised(hooks.Ending(failure=Failure("Crashed", "gone", "text")))
    assert isinstance(error, JobFailed)
    assert "text" in str(error.__cause__)
