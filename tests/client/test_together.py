"""Two notebooks that follow one batch."""

import contextlib
from collections import Counter

import pytest
from hands import Hands

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.lookup import find
from nbqueue.client.session import session as sessions
from nbqueue.errors import BadInput
from nbqueue.store.broker import Broker


def fails_until(mended):
    from pathlib import Path

    def call(x):
        if not Path(mended).exists():
            raise ValueError(x)
        return x

    return call


def test_what_the_other_has_retried_is_heard_of(session, other, hands, tmp_path):
    mended = tmp_path / "mended"
    batch = nbqueue.map(fails_until(str(mended)), range(3))
    hands.work()
    assert batch.wait(10)
    assert batch.tally.failed == 3
    seen = Batch(find.attach(other, batch.id))
    assert seen.wait(10)
    mended.touch()
    seen.retry([0, 1])
    hands.work()
    assert seen.wait(10)
    assert batch.wait(10)
    assert (batch.tally.finished, batch.tally.failed) == (2, 1)
    assert batch.to_frame()["status"].tolist() == ["finished", "finished", "failed"]
    assert [job.index for job in batch.failed] == [2]


def test_who_cannot_ask_shows_what_is_known(session, hands, tmp_path):
    batch = nbqueue.map(fails_until(str(tmp_path / "never")), range(2))
    hands.work()
    assert batch.wait(10)
    session.asleep = True
    with contextlib.ExitStack() as after:
        after.callback(setattr, session, "asleep", False)
        assert batch.to_frame()["status"].tolist() == ["failed"] * 2


def add(x, y=1):
    return x + y


def test_gather_asks_each_server_for_its_own_jobs(session, hands):
    other = sessions.of(
        session.settings.url, f"{session.settings.namespace}x"
    )  # another namespace is as another server
    there = Hands(other)
    first = nbqueue.Queue("default").enqueue(add, 1, y=2)
    second = nbqueue.Queue("default", connection=session.settings.url, namespace=other.settings.namespace)
    job = second.enqueue(add, 3, y=4)
    hands.work()
    there.work()
    jobs = [
        nbqueue.Job.fetch(first.id),
        nbqueue.Job.fetch(job.id, session.settings.url, namespace=other.settings.namespace),
    ]
    frame = nbqueue.gather(jobs, meta=True, timeout=10)
    assert frame["x"].tolist() == [1, 3]
    assert frame["y"].tolist() == [2, 4]
    assert frame["result"].tolist() == [3, 7]
    assert frame["queued_at"].notna().all()
    job.delete()
    there.stop()
    other.collector.stop()
    other.disconnect()


def test_what_is_on_another_server_is_refused_as_a_dependency(session, hands):
    other = sessions.of(session.settings.url, f"{session.settings.namespace}y")
    there = nbqueue.Queue("default", connection=session.settings.url, namespace=other.settings.namespace)
    job = there.enqueue(add, 1, job_id="same")
    nbqueue.Queue("default").enqueue(add, 2, job_id="same")  # another one, which bears its id here
    with pytest.raises(BadInput, match="submit both to the same server"):
        nbqueue.Queue("default").enqueue(add, 3, depends_on=job)
    assert nbqueue.Queue("default").enqueue(add, 3, depends_on="same").dependency_ids == ["same"]
    hands.work()
    hands.work()
    job.delete()
    other.collector.stop()
    other.disconnect()


def test_handles_of_one_session_share_what_is_known_of_a_batch(session, hands, monkeypatch):
    """A cell that is run again adds no second poll, no second copy, and no second write of the spool."""
    asked, copied, written = Counter(), Counter(), Counter()
    follow, landed, keep = Broker.follow, Broker.landed, session.spool.write_outcomes

    def followed(broker, places, *rest):
        asked.update([max(Counter(name for name, _ in places).values())])
        return follow(broker, places, *rest)

    def read(broker, batch, indexes):
        copied.update(indexes)
        return landed(broker, batch, indexes)

    def kept(state, pairs, *said):
        written.update(index for index, _ in pairs)
        return keep(state, pairs, *said)

    monkeypatch.setattr(Broker, "follow", followed)
    monkeypatch.setattr(Broker, "landed", read)
    monkeypatch.setattr(session.spool, "write_outcomes", kept)
    first = nbqueue.map(abs, range(20), name="once")
    handles = [first, nbqueue.map(abs, range(20), name="once"), nbqueue.map(abs, range(20), name="once")]
    plain = nbqueue.map(abs, range(20, 30))
    handles += [plain, nbqueue.attach(plain.id), nbqueue.attach(plain.id), Batch(nbqueue.Job.fetch(plain[3].id).batch)]
    while hands.work():
        pass
    assert all(each.wait(10) for each in handles)
    assert [each.results() for each in handles] == [[*range(20)]] * 3 + [[*range(20, 30)]] * 4
    assert set(asked) == {1}
    jobs = Counter([*range(20), *range(10)])
    assert copied == written == jobs
