"""A server that lost its last second (the power went): what it forgot runs again, the notebook misses nothing."""

import pytest
from hands import Hands
from helpers import wait_until

import nbqueue
from nbqueue.errors import LostByServer


def snapshot(broker):
    keys = list(broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000))
    return {key: (broker.client.dump(key), max(0, broker.client.pttl(key))) for key in keys}


def go_back(broker, kept):
    """The namespace as it was then."""
    now = list(broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000))
    with broker.client.pipeline(transaction=True) as both:
        both.unlink(*now)
        for key, (value, left) in kept.items():
            both.restore(key, left, value)
        both.execute()


def test_a_log_that_was_written_anew_in_another_order_leaves_out_no_outcome(session, hands, monkeypatch):
    batch = nbqueue.map(lambda x: x * x, range(5))
    hands.work(1)
    kept = snapshot(session.broker)
    hands.work(1)
    wait_until(lambda: batch.ref.state.cursor.position == 2)
    go_back(session.broker, kept)
    run = hands._run
    monkeypatch.setattr(hands, "_run", lambda grant: run(grant)[::-1])
    hands.claims += 1  # another token than that which the server may remember
    hands.work()
    assert batch.wait(10)
    assert batch.results() == [0, 1, 4, 9, 16]
    assert sorted(job.index for job in batch.as_completed()) == list(range(5))
    assert list(batch.to_frame()["status"]) == ["finished"] * 5


def test_an_unfinished_batch_that_the_server_forgot_is_lost_and_not_expired(session, another_kernel):
    kept = snapshot(session.broker)
    batch = nbqueue.map(abs, range(3))
    wait_until(lambda: batch.ref.state.known)
    session.broker.epoch()
    kept |= {key: each for key, each in snapshot(session.broker).items() if key.endswith(b"epoch")}
    go_back(session.broker, kept)
    with pytest.raises(LostByServer):
        batch.wait(10)
    another_kernel()
    with pytest.raises(LostByServer):  # also in a kernel that knows it from the spool only
        nbqueue.attach(batch.id).wait(10)


def test_a_job_that_failed_again_after_the_server_went_back_can_be_retried(session, hands, tmp_path):
    mended = tmp_path / "mended"

    def works(x):
        if not mended.exists():
            raise LookupError(x)
        return x

    batch = nbqueue.map(works, [7])
    kept = snapshot(session.broker)
    hands.work()
    assert batch.wait(10)
    go_back(session.broker, kept)
    taken = session.broker.claim(hands.id, f"{hands.id}:99", hands.queues, free=1, want=1, fit=hands.fit)
    assert [job.attempt for grant in taken.grants for job in grant.jobs] == [1]
    session.broker.leave(hands.id)
    other = Hands(session)
    assert other.work() == 1  # it fails in its second run, of which this notebook knows nothing
    mended.touch()
    batch.retry()
    batch.retry()
    assert other.work() == 1
    assert batch.results(timeout=10) == [7]
    other.stop()
