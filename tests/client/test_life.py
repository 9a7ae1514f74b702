"""The life of a job, with a real worker: meta, progress, retries, repeats, callbacks, stop, and the decorator."""

from __future__ import annotations

import time

import pandas as pd
import pytest
from helpers import wait_until

import nbqueue
from nbqueue import Callback, Queue, Repeat, Retry, get_current_job, job
from nbqueue.client.batch import Batch
from nbqueue.errors import BadInput, BadOption, InsideJob, NoSuchJob
from nbqueue.model import Cause


@pytest.fixture
def q(fleet):
    fleet.start("low").up()
    return Queue("low")


def add(x, y=1):
    return x + y


def told(path):
    return path.read_text().split() if path.exists() else []


def test_meta_and_progress_travel_both_ways(q, tmp_path):
    def work(gate):
        here = get_current_job()
        here.meta["seen"] = here.meta["user"]
        here.save_meta()
        here.progress(1, 2, "half")
        while not gate.exists():
            time.sleep(0.01)
        return here.id, here.description

    sent = q.enqueue(work, tmp_path / "gate", meta={"user": "anna"}, description="a wait")
    many = nbqueue.map(lambda x: get_current_job().meta["user"], [1], queue="low", meta={"user": "bert"})
    wait_until(lambda: sent.get_meta().get("seen") and sent.progress)
    assert (sent.meta, sent.progress) == ({"user": "anna", "seen": "anna"}, (1, 2, "half"))
    assert sent.is_started
    assert sent.started_at is not None
    assert sent.worker_name
    (tmp_path / "gate").touch()
    assert sent.wait(10) == (sent.id, "a wait")
    sent.meta["more"] = [1, {"b": None}]
    sent.save_meta()
    assert q.fetch_job(sent.id).meta == {"user": "anna", "seen": "anna", "more": [1, {"b": None}]}
    sent.meta["odd"] = object()
    with pytest.raises(BadInput, match=r"meta\['odd'\]"):
        sent.save_meta()
    assert many.results(timeout=10) == ["bert"]
    assert many[0].meta == {"user": "bert"}
    frame = nbqueue.gather([sent, many[0]], meta=True)
    assert frame["progress"].tolist() == [(1, 2, "half"), None]
    assert frame["meta"][1] == {"user": "bert"}


def test_retries_repeats_and_earlier_runs(q, tmp_path):
    def count(path, good=False):
        with path.open("a") as file:
            file.write("run\n")
        n = len(path.read_text().split())
        if n < 3 and not good:
            raise ValueError(n)
        return n

    def ask(path):
        n = count(path, good=True)
        return n if n > 1 else Retry(1)

    third = q.enqueue(count, tmp_path / "a", retries=2)
    assert third.wait(20) == 3
    assert [run.attempt for run in third.results()] == [3, 2, 1]
    assert [run.status for run in third.results()] == ["finished", "failed", "failed"]
    assert third.latest_result().return_value == 3
    assert "ValueError: 1" in third.results()[-1].exc_info
    again = q.enqueue(count, tmp_path / "b", good=True, repeat=Repeat(2))
    wait_until(lambda: len(told(tmp_path / "b")) == 3)
    assert again.wait(10) == 3
    assert q.enqueue(ask, tmp_path / "c").wait(10) == 2
    spent = q.enqueue(lambda: Retry(1), retry=Retry(1, interval=0.1))
    assert spent.exception(10) is not None
    assert (spent.cause, spent.attempt) == (Cause.RETRY, 2)
    many = nbqueue.map(count, [tmp_path / "d"], queue="low", retries=2)
    assert many.results(timeout=10) == [3]


def test_callbacks_run_after_the_end_by_value_and_by_name(q, tmp_path):
    path = tmp_path / "said"

    def say(job, connection, result):
        with path.open("a") as file:
            file.write(f"{job.id}:{result}:{connection}\n")

    def cry(job, connection, kind, value, traceback):
        with path.open("a") as file:
            file.write(f"{job.id}:{kind.__name__}:{value}\n")

    good = q.enqueue(add, 1, on_success=say, on_failure=cry)
    bad = q.enqueue(add, "x", on_success=say, on_failure=Callback(cry, timeout=5))
    named = q.enqueue(add, 2, on_success="os.path.join")  # which takes no job: its error changes nothing
    assert (good.wait(10), named.wait(10)) == (2, 3)
    assert isinstance(bad.exception(10), TypeError)
    wait_until(lambda: len(path.read_text().splitlines()) == 2 if path.exists() else False)
    assert f"{good.id}:2:None" in path.read_text()
    assert f"{bad.id}:TypeError:" in path.read_text()
    Batch(bad.batch).retry(func=lambda x: x * 2)
    assert bad.wait(10) == "xx"
    wait_until(lambda: f"{bad.id}:xx:None" in path.read_text())
    wait_until(lambda: named.echoes)
    assert [(echo.hook, echo.label, echo.failure.type) for echo in named.echoes] == [("success", "join", "TypeError")]
    wait_until(lambda: good.echoes)
    assert good.echoes[0].failure is None
    assert named.status == "finished"


def test_stop_cancel_delete(q, tmp_path):
    path = tmp_path / "stopped"

    def last(job, connection):
        path.write_text(job.id)

    long = q.enqueue(time.sleep, 60, on_stopped=last)
    wait_until(lambda: long.is_started)
    with pytest.raises(BadInput, match="not ended"):
        long.requeue()
    assert long.stop()
    wait_until(lambda: long.is_canceled, 10)
    assert (long.cause, long.is_stopped, long.stop()) == ("user", True, False)
    wait_until(lambda: told(path) == [long.id])
    row = nbqueue.map(time.sleep, [60], queue="low")[0]
    wait_until(row.stop)
    wait_until(lambda: row.is_canceled)
    done = q.enqueue(add, 1)
    assert done.wait(10) == 2
    done.delete()
    with pytest.raises(NoSuchJob):
        nbqueue.Job.fetch(done.id)
    with pytest.raises(BadInput, match=r"forget\(\)"):
        nbqueue.map(add, [1], queue="low")[0].delete()


def test_the_decorator(q, session):
    @job("low", timeout=5, meta={"by": "decorator"})
    def total(x, y, *, scale=1):
        """Adds."""
        return (x + y) * scale

    @job(Queue("low"))
    async def later(x):
        return x, get_current_job().timeout

    @job("low")
    def inside():
        return total.delay(1, 2)

    assert total(1, 2) == 3
    assert total.__doc__ == "Adds."
    sent = total.delay(1, y=2, scale=3)
    assert (sent.wait(10), sent.origin, sent.timeout, sent.meta) == (9, "low", 5, {"by": "decorator"})
    assert total.enqueue(1, 1, job_id="two", depends_on=sent, at_front=True).wait(10) == 2
    assert later.delay(1).wait(10) == (1, 180)
    assert isinstance(inside.delay().exception(10), InsideJob)

    @job("low")
    def taken(job_id):
        return job_id

    with pytest.raises(BadOption, match=r"q.options\(job_id=1\).enqueue"):
        taken.delay(job_id=1)
    assert taken.delay(1).wait(10) == 1
    with pytest.raises(BadOption, match="Call the decorator"):
        job(add)


def test_gather_gives_the_frame_of_a_batch(q, session):
    def divide(x, y=2):
        return {"quotient": x / y, "x": x}

    items = [(4,), (6,), (1, 0), (9, 3)]
    batch = nbqueue.starmap(divide, items, queue="low")
    jobs = [q.enqueue(divide, *item) for item in items]
    frame = nbqueue.gather(jobs, timeout=20)
    assert frame["job_id"].tolist() == [one.id for one in jobs]
    alone = ["job_id", "runtime_s"]
    pd.testing.assert_frame_equal(frame.drop(columns=alone), batch.to_frame(timeout=20).drop(columns=alone))
    wide = nbqueue.gather(reversed(jobs), meta=True)
    assert wide.columns.tolist() == batch.to_frame(meta=True).columns.tolist()
    assert wide["cause"].tolist()[1] == "error"
    mixed = nbqueue.gather([jobs[0], q.enqueue(add, 1, y=5), batch[1]], timeout=20)
    assert mixed["job_id"].tolist()[2] == batch[1].id
    assert mixed["x"].tolist() == [4, 1, 6]
    assert nbqueue.gather([]).empty
    with pytest.raises(BadInput, match="takes Jobs"):
        nbqueue.gather(["x"])
    later = q.enqueue_in(60, add, 1)
    with pytest.raises(nbqueue.NotDone, match="1 of 2 jobs"):
        nbqueue.gather([later, jobs[0]], timeout=0.05)
    later.cancel()
