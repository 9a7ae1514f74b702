"""What follows a job: callbacks, exception handlers, and that they never touch its outcome."""

from __future__ import annotations

import os
import signal
import time

from helpers import wait_until

import nbqueue
from nbqueue.policies import Callback, Retry


def said_last():
    here = nbqueue.get_current_job()
    here.meta["last"] = "word"
    here.save_meta()


def test_what_a_job_said_last_is_kept_where_no_callback_follows(session, fleet, tmp_path):
    fleet.start(slots=1).up()
    job = nbqueue.options(on_failure=Told(tmp_path / "told").failure).submit(said_last)
    job.wait(20)
    assert job.get_meta() == {"last": "word"}


def note_down(path, *words):
    with path.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Told:
    """Callbacks that append a line to a file: what was called, in which process, with what."""

    def __init__(self, path):
        self.path = path

    def success(self, job, connection, result):
        note_down(self.path, "success", os.getpid(), job.id, result, connection)

    def failure(self, job, _connection, kind, value, _traceback):
        note_down(self.path, "failure", os.getpid(), job.attempt, kind.__name__, value)

    def stopped(self, job, _connection):
        note_down(self.path, "stopped", os.getpid(), job.id)

    def slow(self, *_):
        time.sleep(0.5)
        note_down(self.path, "slow", os.getpid())


def its_pid():
    return os.getpid()


def broken():
    raise ValueError("no")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_success_is_told_in_the_horse_that_made_the_call(session, fleet, diary):
    fleet.start().up()
    job = nbqueue.options(on_success=Told(diary.path).success).submit(its_pid)
    pid = job.wait(20)
    wait_until(lambda: diary.lines)
    assert diary.lines == [f"success {pid} {job.id} {pid} None"]


def test_an_outcome_does_not_wait_for_its_callback(session, fleet, diary):
    fleet.start(slots=1).up()
    job = nbqueue.options(on_success=Told(diary.path).slow).submit(its_pid)
    pid = job.wait(20)
    assert not diary.lines
    other = nbqueue.submit(its_pid)
    assert other.wait(20) != pid  # its slot is free when the callback is over, not before
    assert diary.lines == [f"slow {pid}"]


def test_every_failure_is_told_also_one_that_is_retried(session, fleet, diary):
    fleet.start().up()
    job = nbqueue.options(retry=Retry(1), on_failure=Told(diary.path).failure).submit(broken)
    assert isinstance(job_error(job), ValueError)
    wait_until(lambda: len(diary.lines) == 2)
    assert [line.split()[2:] for line in diary.lines] == [["1", "ValueError", "no"], ["2", "ValueError", "no"]]


def job_error(job):
    try:
        job.wait(20)
    except Exception as why:
        return why
    return None


def test_a_fresh_horse_tells_of_one_that_died(session, fleet, diary):
    fleet.start().up()
    job = nbqueue.options(on_failure=Told(diary.path).failure).submit(killed)
    assert "SIGKILL" in str(job_error(job))
    wait_until(lambda: diary.lines)
    assert diary.lines[0].split()[0] == "failure"


def crash(job, connection, result):
    raise KeyError(job.id)


def test_an_error_in_a_callback_is_recorded_and_changes_nothing(session, fleet):
    worker = fleet.start().up()
    job = nbqueue.options(on_success=crash).submit(abs, -3)
    assert job.wait(20) == 3
    wait_until(lambda: job.echoes)
    assert [(echo.hook, echo.failure.type) for echo in job.echoes] == [("success", "KeyError")]
    assert job.status == "finished"
    wait_until(lambda: "callback" in worker.log)
    assert f"{job.id} is over, but its callback (success" in worker.log


def forever(job, connection, result):
    time.sleep(60)


def test_a_callback_has_its_own_time_limit(session, fleet):
    fleet.start().up()
    job = nbqueue.options(on_success=Callback(forever, timeout=0.3)).submit(abs, -3)
    assert job.wait(20) == 3
    wait_until(lambda: job.echoes)
    assert "JobTimeout" in job.echoes[0].failure.type


def test_a_worker_that_is_asked_to_stop_lets_callbacks_end(session, fleet, diary):
    worker = fleet.start("--grace", "20").up()
    job = nbqueue.options(on_success=Told(diary.path).slow).submit(its_pid)
    job.wait(20)
    assert worker.stop() == 0
    assert len(diary.lines) == 1, worker.log


def test_a_callback_that_outlasts_the_grace_is_ended_and_recorded(session, fleet):
    worker = fleet.start("--grace", "0.1").up()
    job = nbqueue.options(on_success=forever).submit(its_pid)
    job.wait(20)
    assert worker.stop() == 0
    assert [(echo.hook, echo.failure.type) for echo in job.echoes] == [("success", "Crashed")]
    assert job.status == "finished"


def test_a_burst_waits_for_callbacks(session, fleet, diary):
    nbqueue.options(on_success=Told(diary.path).slow).submit(its_pid)
    assert fleet.start("--burst").process.wait(20) == 0
    assert len(diary.lines) == 1


# ---------------------------------------------------------------- stopped


def test_a_stopped_job_is_canceled_and_told(session, fleet, diary):
    worker = fleet.start(beat=25, lease=80).up()
    job = nbqueue.options(on_stopped=Told(diary.path).stopped).submit(time.sleep, 60)
    wait_until(lambda: job.status == "started")
    began = time.monotonic()
    assert job.stop()
    wait_until(lambda: job.status == "canceled")
    wait_until(lambda: diary.lines)
    assert time.monotonic() - began < 20, worker.log  # long before the next beat
    assert diary.lines[0].endswith(job.id)
    assert nbqueue.submit(abs, -1).wait(10) == 1


def test_a_job_that_is_canceled_while_it_runs_is_told(session, fleet, diary):
    fleet.start(beat=5, lease=30).up()
    job = nbqueue.options(on_stopped=Told(diary.path).stopped).submit(time.sleep, 60)
    wait_until(lambda: job.status == "started")
    assert job.cancel()
    wait_until(lambda: diary.lines)
    assert diary.lines[0].endswith(job.id)


# ---------------------------------------------------------------- exception handlers

HANDLERS = """
def first(job, kind, value, traceback):
    with open(PATH, "a") as file:
        file.write(f"first {job.id} {kind.__name__} {value}\\n")

def last(job, kind, value, traceback):
    with open(PATH, "a") as file:
        file.write("last\\n")
    return False

def never(job, kind, value, traceback):
    with open(PATH, "a") as file:
        file.write("never\\n")
"""


def test_exception_handlers_are_called_for_every_failure(session, fleet, diary, tmp_path):
    (tmp_path / "handlers.py").write_text(f"PATH = {str(diary.path)!r}\n{HANDLERS}")
    named = [word for name in ("first", "last", "never") for word in ("--exception-handler", f"handlers.{name}")]
    fleet.start("-P", str(tmp_path), *named).up()
    assert nbqueue.map(abs, [-1, -2]).results() == [1, 2]
    job = nbqueue.submit(broken)
    job_error(job)
    wait_until(lambda: len(diary.lines) == 2)
    assert diary.lines == [f"first {job.id} ValueError no", "last"]
    assert nbqueue.submit(abs, -3).wait(10) == 3
