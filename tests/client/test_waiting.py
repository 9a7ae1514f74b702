"""Waiting and raising: what a Batch and a Job answer, and what they raise."""

from __future__ import annotations

import _thread
import asyncio
import gc
import threading
import time
import traceback

import pytest
from helpers import flush, wait_until

import nbqueue
from nbqueue import State
from nbqueue.client.batch import Batch
from nbqueue.client.lookup import find, waiting
from nbqueue.errors import (
    BadInput,
    BadOption,
    BadSignature,
    BatchFailed,
    CannotOpen,
    Expired,
    JobCanceled,
    JobFailed,
    LostByServer,
    NotDone,
)
from nbqueue.model import Cause, Failure, Outcome, encode
from nbqueue.store.records import Lease
from nbqueue.wire import OUTCOME


def square(x):
    if x == 3:
        raise ValueError("three")
    return x * x


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one}{two}")
        self.one = one


class StubbornError(OddError):
    def __setstate__(self, state):
        raise LookupError("no")


def odd(x):
    raise OddError(x, "!")


def stubborn(x):
    raise StubbornError(x, "!")


def leave(x):
    raise SystemExit(7)


def test_a_batch_is_a_sequence_of_jobs_and_iterating_never_waits(session):
    batch = nbqueue.map(square, [1, 2, 3])
    assert len(batch) == 3
    assert [job.index for job in batch] == [0, 1, 2]
    assert batch[-1] == batch[2]
    assert batch[0] in batch
    assert batch.index(batch[1]) == 1
    assert [job.id for job in batch[1:]] == [f"{batch.id}:1", f"{batch.id}:2"]
    with pytest.raises(IndexError):
        batch[3]
    assert repr(batch) == f"<Batch {batch.id}: 3 queued>"
    assert batch.cancel() == 3


def test_wait_says_yes_or_no_and_never_raises_for_failed_jobs(session, hands):
    batch = nbqueue.map(square, [1, 2, 3])
    assert batch.wait(0.05) is False
    assert batch.wait(0) is False
    hands.work()
    assert batch.wait(10) is True
    assert batch.done
    assert batch.tally.finished == 2
    assert batch.tally.failed == 1


def test_results_come_in_input_order_and_raise_what_failed(session, busy):
    batch = nbqueue.map(square, [4, 3, 5])
    with pytest.raises(BatchFailed, match=r"1 of 3 jobs .*:1: ValueError: three") as caught:
        batch.results(timeout=10)
    assert type(caught.value.__cause__) is ValueError
    assert batch.results(errors="skip") == [16, 25]
    returned = batch.results(errors="return")
    assert returned[0] == 16
    assert isinstance(returned[1], ValueError)
    with pytest.raises(BadOption, match="'raise', 'return' or 'skip'"):
        batch.results(errors="ignore")


def test_results_and_frames_say_when_they_are_not_done(session):
    batch = nbqueue.map(square, [1])
    for verb in (batch.results, batch.to_frame, batch[0].wait):
        with pytest.raises(NotDone, match=r"not done after 0\.01 s"):
            verb(timeout=0.01)
    with pytest.raises(NotDone):
        next(batch.as_completed(timeout=0.01))
    batch.cancel()


def test_as_completed_yields_what_ended_first(session, hands):
    batch = nbqueue.map(square, range(4))
    arrived = batch.as_completed(timeout=10)
    hands.work(1)
    assert next(arrived).index == 0
    hands.work()
    assert sorted(job.index for job in arrived) == [1, 2, 3]


def test_a_job_gives_its_value_or_raises_the_original(session, hands):
    batch = nbqueue.map(square, [2, 3])
    assert batch[0].result is None
    assert batch[0].status is State.QUEUED
    hands.work()
    assert batch[0].wait(10) == 4
    assert batch[0].result == 4
    assert batch[0].exception() is None
    assert batch[0].status is State.FINISHED
    assert batch[1].status is State.FAILED
    with pytest.raises(ValueError, match="three") as caught:
        batch[1].wait(10)
    told = "".join(traceback.format_exception(caught.value))
    assert "in square" in told
    assert isinstance(batch[1].exception(), ValueError)
    assert batch[1].error == "ValueError: three"
    assert batch[1].log == "said something\n"


def test_an_exception_with_an_init_of_its_own_is_caught_by_its_class(session, busy):
    with pytest.raises(OddError, match=r"^1!$") as caught:
        nbqueue.map(odd, [1])[0].wait(10)
    assert caught.value.one == 1
    assert "in odd" in str(caught.value.__cause__)


def test_exceptions_that_cannot_be_rebuilt_are_job_failed(session, busy):
    with pytest.raises(JobFailed, match=r"StubbornError: 1!") as caught:
        nbqueue.map(stubborn, [1])[0].wait(10)
    assert "in stubborn" in str(caught.value.__cause__)


def empty(x):
    raise (StopIteration if x else StopAsyncIteration)(x)


def test_a_job_that_raised_stop_iteration_does_not_look_like_the_end_of_the_batch(session, busy):
    batch = nbqueue.map(empty, [0, 1])
    for job, kind in zip(batch, (StopAsyncIteration, StopIteration), strict=True):
        with pytest.raises(RuntimeError, match=f"{job.id} raised {kind.__name__}") as caught:
            list(map(nbqueue.Job.wait, [job]))
        assert type(caught.value.__cause__) is kind
        assert "in empty" in str(caught.value.__cause__.__cause__)
        with pytest.raises(RuntimeError, match="raised Stop"):
            asyncio.run(awaited(job))
    assert [type(found) for found in batch.results("return")] == [RuntimeError, RuntimeError]


async def awaited(job):
    return await job


class Touchy:
    """Opens without a word in the job, and does this here."""

    deed = None

    def __setstate__(self, state):
        if Touchy.deed is not None:
            Touchy.deed()


def touchy(x):
    if x != 1:
        return x
    found = Touchy()
    found.x = x
    return found


@pytest.mark.parametrize(
    "kind", [ValueError, KeyboardInterrupt, GeneratorExit, SystemExit, MemoryError, RecursionError]
)
def test_whatever_a_result_raises_when_it_is_opened_here_costs_its_row_and_no_other(session, busy, monkeypatch, kind):
    def deed():
        raise kind("not here")

    batch = nbqueue.map(touchy, [0, 1, 2])
    assert batch.wait(10)
    monkeypatch.setattr(Touchy, "deed", deed)
    for frame in (batch.to_frame(), nbqueue.gather(batch)):
        assert frame["result"].tolist() == [0, f"<cannot be unpickled here: {kind.__name__}: not here>", 2]
    assert batch.results("skip") == [0, 2]
    first, error, last = batch.results("return")
    assert (first, last) == (0, 2)
    assert isinstance(error, CannotOpen)
    assert f"The result of {batch[1].id} cannot be unpickled here: {kind.__name__}: not here." in str(error)
    for ask in (batch.results, batch[1].wait, lambda: batch[1].result, lambda: batch[1].results()[0].return_value):
        with pytest.raises(CannotOpen, match=batch[1].id):
            ask()
    assert sorted(job.result for job in batch.as_completed(10) if job.index != 1) == [0, 2]
    monkeypatch.setattr(Touchy, "deed", None)
    assert batch.results()[::2] == [0, 2]


def test_the_users_interrupt_while_a_result_is_opened_is_the_users(session, busy, monkeypatch):
    batch = nbqueue.map(touchy, [0, 1, 2])
    assert batch.wait(10)
    monkeypatch.setattr(Touchy, "deed", lambda: (_thread.interrupt_main(), time.sleep(1)))
    for ask in (batch.to_frame, batch.results, batch[1].wait):
        with pytest.raises(KeyboardInterrupt):
            ask()


def test_a_job_that_left_the_interpreter_does_not_end_the_notebook(session, busy):
    with pytest.raises(JobFailed, match="SystemExit"):
        nbqueue.map(leave, [1])[0].wait(10)


def test_submit_gives_one_job_whose_id_is_the_batch(session, busy):
    jobs = [nbqueue.submit(square, number) for number in (2, 4, 5)]
    assert [job.wait(10) for job in jobs] == [4, 16, 25]
    assert jobs[0].id == jobs[0].batch.id
    assert nbqueue.submit(divmod, 7, 2).wait(10) == (3, 1)
    assert nbqueue.submit(lambda queue, timeout: (queue, timeout), queue=1, timeout=2).wait(10) == (1, 2)
    with pytest.raises(ValueError, match="three"):
        nbqueue.submit(square, 3).wait(10)


def test_cancel_ends_what_waits(session, hands):
    batch = nbqueue.map(square, range(5))
    assert batch[1].cancel() is True
    with pytest.raises(JobCanceled, match="user"):
        batch[1].wait(10)
    hands.work(1)
    assert batch.cancel() == 3
    assert batch.wait(10)
    assert batch.tally.canceled == 4
    assert [job.status for job in batch] == [State.FINISHED] + [State.CANCELED] * 4
    with pytest.raises(BatchFailed, match=r"4 of 5 .* were canceled"):
        batch.results()
    assert list(batch.to_frame()["status"]) == ["finished"] + ["canceled"] * 4
    assert batch.cancel() == 0


def test_a_canceled_batch_can_be_retried(session, hands):
    batch = nbqueue.map(square, range(3))
    batch.cancel()
    assert batch.wait(10)
    batch.retry(range(2))
    assert not batch.done
    hands.start()
    assert batch[1].wait(10) == 1
    assert batch.wait(10)
    assert batch.tally.finished == 2
    assert batch[2].status is State.CANCELED


def test_max_failed_cancels_the_rest(session, hands):
    batch = nbqueue.map(square, [3, 3, 3, 3, 3, 3], max_failed=1)
    hands.work(2)
    assert batch.wait(10)
    assert batch.tally.failed == 2
    assert batch.tally.canceled == 4


def test_max_failed_may_be_a_fraction(session, hands):
    batch = nbqueue.map(square, [3, 1, 1, 3, 3, 1, 1, 1, 1, 1], max_failed=0.2)
    hands.work(4)
    assert not batch.wait(0.4)
    hands.work(1)
    assert batch.wait(10)
    assert batch.tally.canceled == 5


def test_forget_removes_a_done_batch_only(session, hands):
    batch = nbqueue.map(square, [1, 2])
    with pytest.raises(BadInput, match="still running"):
        batch.forget()
    hands.work()
    assert batch.wait(10)
    batch.forget()
    assert session.broker.view(batch.id) is None
    assert batch.results() == [1, 4]
    assert "forgotten" in repr(batch)
    with pytest.raises(nbqueue.errors.NotThere):
        nbqueue.attach(batch.id)


def test_a_server_that_forgot_is_named_and_nobody_waits_for_ever(session):
    batch = nbqueue.map(square, [1, 2])
    wait_until(lambda: batch.ref.state.known)
    broker = session.broker
    flush(broker)
    with pytest.raises(LostByServer, match="has lost"):
        batch.wait(20)
    with pytest.raises(LostByServer):
        batch[0].wait(1)
    frame = batch.to_frame(wait=False, meta=True)
    assert list(frame["status"]) == ["failed", "failed"]
    assert list(frame["cause"]) == ["lost_by_server"] * 2


def test_results_that_expired_say_so(session, hands, other):
    session.spool.folder, session.spool.why = None, "off"
    batch = nbqueue.map(square, [1, 2], result_ttl=1, failure_ttl=1)
    hands.work()
    assert batch.results(timeout=10) == [1, 4]
    attached = Batch(find.handle(other, session.broker.view(batch.id)))  # nobody follows it yet
    wait_until(lambda: session.broker.promote() is None or session.broker.view(batch.id) is None, 15)
    with pytest.raises(Expired):
        attached.wait(10)
    assert batch.results() == [1, 4]


def test_a_job_that_is_gone_says_so_and_never_that_it_waits(session, hands):
    q = nbqueue.Queue()
    kept, deleted = q.enqueue_in(60, square, 2), q.enqueue(square, 2)
    seen = q.fetch_job(deleted.id)
    session.collector.drop(deleted.batch.state)  # that it was canceled first is not heard of
    deleted.delete()
    deleted.delete()  # what is gone is gone
    for ask in (lambda: seen.status, lambda: seen.is_finished, lambda: seen.result, seen.requeue, deleted.requeue):
        with pytest.raises(Expired, match="or it was deleted"):
            ask()
    assert (seen.cancel(), seen.stop()) == (False, False)
    q.fetch_job(kept.id).delete()
    with pytest.raises((Expired, JobCanceled)):  # whether its end was heard of before, or not
        kept.wait(5)
    over = q.enqueue(square, 3)
    over.cancel()
    with pytest.raises(JobCanceled, match=r"requeue\(\)"):
        over.wait(5)


def test_the_advice_names_the_server_of_a_queue_with_a_connection_of_its_own(server, monkeypatch, capsys):
    import redis

    monkeypatch.setattr(waiting, "ADVISE", 0.1)
    job = nbqueue.Queue("typo", redis.Redis.from_url(server.url), namespace="advice").enqueue(square, 1)
    with pytest.raises(NotDone):
        job.wait(1)
    job.delete()
    assert f"nbqueue worker --url {server.url} typo" in capsys.readouterr().err


def test_a_forged_outcome_is_never_opened(session, hands):
    batch = nbqueue.map(square, [1, 2])
    hands.work()
    assert batch.wait(10)
    bad = session.sealer.seal(OUTCOME, batch.id, 1, encode(Outcome(State.FINISHED, None, 1, 1, 1, value=b"x")), 1)
    with batch.ref.state.changed:
        batch.ref.state.outcomes.put(0, b"F\x00\x01" + bad)
    with pytest.raises(BadSignature):
        batch[0].wait()
    frame = batch.to_frame(meta=True)
    assert list(frame["status"]) == ["failed", "finished"]
    assert frame["cause"][0] == "signature"


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.CRASHED])
def test_limits_and_crashes_are_job_failed(session, cause):
    from nbqueue.client.lookup.results import error_of

    failure = Failure("nbqueue.errors.JobTimeout", "after 3 s") if cause is Cause.TIMEOUT else None
    found = error_of(Outcome(State.FAILED, cause, 1, 1, 1, code=-11, failure=failure), "x:1")
    assert isinstance(found, JobFailed)
    assert str(cause) in str(found)


def test_a_wait_says_once_which_command_to_run(session, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "ADVISE", 0.05)
    batch = nbqueue.options(queue="gpu").map(square, [1])
    assert batch.wait(1.2) is False
    told = capsys.readouterr().err
    assert told.count("no live worker serves the queue 'gpu'") == 1
    assert f"nbqueue worker --url {session.server} gpu" in told
    batch.cancel()


def test_ctrl_c_leaves_the_batch_running_and_says_how_to_attach(session, hands, capsys):
    batch = nbqueue.map(square, [1, 2])
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        batch.wait(20)
    assert f"nbqueue.attach('{batch.id}') opens it again" in capsys.readouterr().err
    hands.work()
    assert nbqueue.attach(batch.id).results(timeout=10) == [1, 4]


def test_one_batch_may_be_watched_twice(session, hands):
    batch = nbqueue.map(square, [1, 2])
    again = nbqueue.attach(batch.id)
    hands.work()
    assert again.results(timeout=10) == batch.results(timeout=10) == [1, 4]


def test_many_batches_at_once_are_all_collected(session, hands, monkeypatch):
    monkeypatch.setattr("nbqueue.client.session.collector.LOGS", 3)
    batches = [nbqueue.map(square, [number]) for number in range(10)]
    for number in (7, 9):
        batches[number].cancel()
        assert batches[number].wait(10)
    for batch in batches:
        batch.cancel()


def test_an_empty_batch_is_done_at_once(session):
    batch = nbqueue.map(square, [])
    assert batch.wait(10)
    assert batch.results() == []
    frame = batch.to_frame()
    assert list(frame.columns) == ["x", "result", "status", "error", "runtime_s", "job_id"]
    assert len(frame) == 0
    assert len(batch.failed) == 0


def test_jobs_that_nobody_holds_cost_no_memory(session, hands):
    kept = nbqueue.submit(square, 2)
    for number in range(20):
        nbqueue.submit(square, number)
    followed = session.collector._singles
    wait_until(lambda: gc.collect() is not None and [*followed] == [kept.batch.state])
    hands.work()
    assert kept.wait(5) == 4
    wait_until(lambda: not len(followed))


# ------------------------------------------------------------ after a cancel, and other ends


def test_what_was_canceled_is_told_how_to_run_again(session, hands, capsys):
    batch = nbqueue.map(square, [1, 2])
    batch.cancel()
    assert batch.wait(5)
    with pytest.raises(
        BatchFailed, match=rf"^2 of 2 jobs of {batch.id} were canceled\. .*`batch\.retry\(list\(batch\)\)`"
    ):
        batch.results()
    assert batch.retry() is batch
    told = f"nothing to retry: no job of {batch.id} has failed, 2 were canceled. `batch.retry(list(batch))` runs them."
    assert told in capsys.readouterr().err
    batch.retry(list(batch))
    assert str(batch.tally) == "2 queued"
    hands.work()
    assert batch.results(timeout=5) == [1, 4]
    batch.retry()
    assert f"no job of {batch.id} has failed (2 finished)" in capsys.readouterr().err


def test_what_was_canceled_beside_results_is_named_alone(session, hands):
    batch = nbqueue.map(square, [1, 2, 3])
    hands.work(want=1)
    batch.cancel()
    assert batch.wait(5)
    with pytest.raises(BatchFailed) as why:
        batch.results()
    call = str(why.value).partition("`")[2].partition("`")[0]
    eval(call, {"batch": batch})
    assert hands.work() == 2
    assert batch.results("skip", timeout=5) == [1, 4]


def test_a_retry_of_nothing_changes_nothing(session, hands):
    batch = nbqueue.map(abs, [1, 2])
    hands.work()
    assert batch.wait(5)
    expires, generation = batch.ref.state.expires_us, batch.ref.state.cursor.generation
    batch.retry()
    batch.retry([])
    assert batch.done
    assert (batch.ref.state.expires_us, batch.ref.state.cursor.generation) == (expires, generation)
    assert str(batch.tally) == "2 finished"


def test_arguments_that_have_expired_say_so(session, hands):
    job = nbqueue.submit(abs, 1)
    hands.work()
    assert job.wait(5) == 1
    job.batch.state.arguments.sent, job.batch.state.on_disk.header = None, None
    session.broker.forget(job.id)
    with pytest.raises(Expired, match="arguments"):
        _ = job.args


def test_a_job_that_ended_twice_is_counted_once(session, hands):
    """As one canceled alone, and then with a range of others, while another one still runs."""
    batch = nbqueue.map(square, range(4))
    held = hands.broker.claim(hands.id, f"{hands.id}:1", ("default",), free=1, want=1, fit=hands.fit)
    hands.claims += 1
    batch[2].cancel()
    assert batch.cancel(running=False) == 2
    wait_until(lambda: batch.tally.canceled == 3 and 1 in batch.ref.state.outcomes and 2 in batch.ref.state.outcomes)
    assert (batch.ref.state.collected, batch.ref.state.whole, batch.done) == (3, False, False)
    hands.broker.release(hands.id, [Lease(batch.id, 0, held.grants[0].token)])
    hands.work()
    assert batch.wait(5)
    assert (batch.ref.state.collected, batch.ref.state.whole) == (4, True)


def test_what_is_mended_is_followed_again(session, hands):
    batch = nbqueue.map(square, [1, 2])
    keys, client = session.broker.keys, session.broker.client
    n = client.hget(keys.at("b", batch.id), "n")
    client.hset(keys.at("b", batch.id), "n", "nonsense")
    with pytest.raises(BadSignature):
        batch.wait(20)
    with pytest.raises(BadSignature):
        batch.wait(20)
    client.hset(keys.at("b", batch.id), "n", n)
    hands.work()
    assert batch.results(timeout=20) == [1, 4]


def test_a_display_that_fails_is_no_fault_of_the_batch(session, hands, caplog):
    batch, told = nbqueue.map(square, [1, 2]), []

    class Broken:
        def update(self, state):
            told.append(state.tally.over)
            raise RuntimeError("no display")

    batch.ref.state.bars.append(Broken())
    hands.work()
    assert batch.results(timeout=10) == [1, 4]
    assert (bool(told), batch.ref.state.bars, batch.ref.state.fault) == (True, [], None)
    assert "no display" in caplog.text
