"""Two notebooks that follow one batch."""

import contextlib

import pytest

import nbqueue
from nbqueue.client import listing
from nbqueue.client.session import Session


@pytest.fixture
def other(session):
    found = Session(session.settings)
    yield found
    found.collector.stop()
    found.disconnect()


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
    seen = listing.attach(other, batch.id)
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
