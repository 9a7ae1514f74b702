"""A server that forgot: whoever asks is told, nobody waits for ever, and what was collected stays."""

from __future__ import annotations

import asyncio

import pytest
from helpers import flush, wait_until

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.panel import model
from nbqueue.client.session.singles import SingleJobIndex
from nbqueue.errors import LostByServer
from nbqueue.model import Tally


def work(x):
    return x * x


@pytest.fixture(params=["spool", "no spool"])
def lost(request, server, session, hands):
    """A batch of five, of which the server forgot three before they ran, and a single job that it forgot."""
    if request.param == "no spool":
        session.spool.folder, session.spool.why = None, "off"
    batch = nbqueue.map(work, range(5))
    hands.work(2)
    wait_until(lambda: batch.ref.state.collected == 2)
    single = nbqueue.submit(work, 9)
    wait_until(lambda: single.batch.state.known)
    broker = session.broker
    flush(broker)
    wait_until(lambda: batch.ref.state.gone and single.batch.state.gone, 20)
    return batch, single


def test_everyone_who_waits_is_told(lost):
    batch, single = lost

    async def awaited(what):
        return await what

    asked = [
        lambda: batch.wait(20),
        lambda: batch.results(timeout=20),
        lambda: asyncio.run(awaited(batch)),
        lambda: asyncio.run(awaited(batch[4])),
        lambda: asyncio.run(awaited(single)),
        lambda: batch[4].result,
        lambda: batch[4].wait(20),
        lambda: batch[4].exception(20),
        lambda: single.result,
        lambda: single.wait(20),
        lambda: nbqueue.gather([single, batch[4]]),
    ]
    for ask in asked:
        with pytest.raises(LostByServer, match="has lost"):
            ask()
    assert "lost this batch; 3 jobs of it must run again" in model.problem(batch.ref.state)
    assert "lost by the server" in repr(batch)


def test_what_was_collected_stays(lost):
    batch, single = lost
    assert [batch[0].result, batch[1].result] == [0, 1]
    with pytest.warns(UserWarning, match="has lost"):
        frame = batch.to_frame(timeout=20, meta=True)
    assert frame["status"].tolist() == ["finished"] * 2 + ["failed"] * 3
    assert frame["cause"].tolist()[2:] == ["lost_by_server"] * 3
    assert frame["result"].tolist()[:2] == [0, 1]
    assert batch.results("skip", timeout=20) == [0, 1]
    assert [type(each) for each in batch.results("return", timeout=20)] == [int, int, *[LostByServer] * 3]
    assert [job.index for job in batch.failed] == [2, 3, 4]
    assert batch.failed.causes == {"lost_by_server": 3}
    assert (batch[2].error, single.error) == ("lost_by_server", "lost_by_server")
    seen = []
    with pytest.raises(LostByServer):
        seen.extend(job.index for job in batch.as_completed(timeout=20))
    with pytest.warns(UserWarning, match="has lost"):
        assert Batch(single.batch).to_frame(timeout=20)["error"].tolist() == ["lost_by_server"]


def test_a_retry_says_why_it_cannot_be_and_where_this_disk_has_a_copy_it_can(lost, request):
    batch, _ = lost
    if batch.ref.session.spool.folder is None:
        with pytest.raises(LostByServer):
            batch.retry([0])
    else:
        batch.retry([0])
        wait_until(lambda: (batch.tally.queued, batch.tally.finished) == (1, 1))
        assert batch.cancel() == 1


def test_a_batch_that_is_gone_is_counted_by_what_is_here(session, hands):
    """The tally was told before the log, and may know of fewer ends than were copied."""
    batch = nbqueue.map(work, range(3))
    hands.work()
    wait_until(lambda: batch.ref.state.collected == 3)
    assert batch.wait(10)
    broker = session.broker
    flush(broker)
    with batch.ref.state.changed:
        batch.ref.state.over, batch.ref.state.tally = False, Tally(n=3, finished=2, queued=1)
    session.collector.follow(batch.ref.state)
    wait_until(lambda: batch.ref.state.gone, 20)
    assert batch.tally == Tally(n=3, finished=3)
    assert batch.results() == [0, 1, 4]


def test_ends_of_single_jobs_are_heard_of_after_the_log_was_begun_anew(session, hands, monkeypatch):
    monkeypatch.setattr(SingleJobIndex, "some", lambda *_, **__: [])  # none is looked at without being named
    first = [nbqueue.submit(work, n) for n in range(5)]
    hands.work()
    assert [job.wait(10) for job in first] == [0, 1, 4, 9, 16]
    broker = session.broker
    broker.client.unlink(broker.keys.at("log", session.id))
    late = nbqueue.submit(work, 7)
    hands.work()
    assert late.wait(20) == 49
