"""`name=` after the server has forgotten it: what the spool has does not run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hands import Hands
from helpers import flush, wait_until
from test_spool import settled

import nbqueue
from nbqueue.client.panel.failures import FailureGroups
from nbqueue.client.spool import directory
from nbqueue.errors import Changed


def square(x):
    if x < 0:
        raise ValueError(x)
    return x * x


@pytest.fixture
def forgotten(server, session, request):
    """Flushes the server, and gives a new kernel's session."""
    found = []

    def forget(now):
        now.collector.stop()
        flush(session.broker)
        found.append(nbqueue.connect(server.url, namespace=session.settings.namespace))
        return found[-1]

    yield forget
    for each in found:
        each.collector.stop()
        each.disconnect()


def ran(session, hands, values, name="x", **options):
    batch = nbqueue.map(square, values, name=name, **options)
    hands.work()
    assert batch.wait(10)
    settled(batch)
    return batch


def on_server(session):
    return [view.id for view in session.broker.batches()]


def test_all_of_it_is_answered_from_the_spool_and_nothing_runs(session, hands, forgotten):
    one = ran(session, hands, [3, -1, 4])
    new = forgotten(session)
    two = nbqueue.map(square, [3, -1, 4], name="x")
    assert (two.id, two.name, two.seed) == (one.id, "x", one.seed)
    assert two.results(errors="skip") == [9, 16]
    assert [job.index for job in two.failed] == [1]
    assert "3 of 3 jobs reused from the spool" in two.ref.note
    assert two.to_frame()["status"].tolist() == ["finished", "failed", "finished"]
    assert on_server(new) == []
    # Fewer, in another order, and with labels of their own.
    import pandas as pd

    three = nbqueue.map(square, pd.Series([4, 3], index=["b", "a"]), name="x")
    assert three.to_frame()["result"].to_dict() == {"b": 16, "a": 9}
    assert (len(three), three.done, three.tally.finished) == (2, True, 2)
    assert on_server(new) == []


def test_what_has_no_outcome_runs_and_what_has_is_kept(session, hands, forgotten):
    batch = nbqueue.map(square, [1, 2, 3, 4], name="x")
    hands.work(2)
    wait_until(lambda: batch.ref.state.collected == 2)
    new = forgotten(session)
    again = nbqueue.map(square, [1, 2, 3, 4], name="x")
    assert (again.id, again.seed) == (batch.id, batch.seed)
    assert new.broker.view(batch.id).tally.queued == 2
    assert Hands(new).work() == 2
    assert again.results(timeout=10) == [1, 4, 9, 16]
    assert nbqueue.map(square, [1, 2, 3, 4], name="x").results(timeout=10) == [1, 4, 9, 16]
    assert nbqueue.attach("x").results(timeout=10) == [1, 4, 9, 16]
    # And once more, all of it by now.
    settled(again)
    last = forgotten(new)
    assert nbqueue.map(square, [1, 2, 3, 4], name="x").results() == [1, 4, 9, 16]
    assert on_server(last) == []


def test_new_arguments_run_alone(session, hands, forgotten):
    ran(session, hands, [1, 2, -3])
    new = forgotten(session)
    again = nbqueue.map(square, [5, 2, 1, 6], name="x")
    assert Hands(new).work() == 2
    assert again.results(timeout=10) == [25, 4, 1, 36]
    assert [job.index for job in again] == [3, 1, 0, 4]
    assert nbqueue.attach("x").wait(10)
    assert nbqueue.attach("x").tally.failed == 1


def test_what_has_changed_is_told_and_asked(session, hands, forgotten):
    ran(session, hands, [1, -2, 3])
    new = forgotten(session)

    def square(x):
        return x * x + 100

    with pytest.raises(Changed, match="update=True"):
        nbqueue.map(square, [1, -2, 3], name="x")
    assert on_server(new) == []
    updated = nbqueue.map(square, [1, -2, 3], name="x", update=True)
    assert Hands(new).work() == 1
    assert updated.results(timeout=10) == [1, 104, 9]
    settled(updated)
    # The function that it has now is the one that is compared from now on.
    last = forgotten(new)
    assert nbqueue.map(square, [1, -2, 3], name="x").results() == [1, 104, 9]
    fresh = nbqueue.map(square, [1, -2, 3], name="x", fresh=True)
    assert Hands(last).work() == 3
    assert fresh.results(timeout=10) == [101, 104, 109]


def test_update_runs_what_failed_again(session, hands, forgotten):
    ran(session, hands, [1, -2, 3])
    new = forgotten(session)
    again = nbqueue.map(square, [1, -2, 3], name="x", update=True)
    assert new.broker.view(again.id).tally.queued == 1
    assert again.ref.state.outcomes.state(1) is None
    assert nbqueue.attach("x").ref.state.outcomes.state(1) is None
    assert Hands(new).work() == 1
    assert again.wait(10)
    assert again.tally.failed == 1


def test_what_runs_on_its_results_is_found_too(session, hands, forgotten):
    first = ran(session, hands, [1, 2])
    second = first.then(str, name="y")
    hands.work()
    assert second.results(timeout=10) == ["1", "4"]
    settled(second)
    wait_until(lambda: len([each for each in directory.list_batches(session.spool.folder) if each.done]) == 2)
    new = forgotten(session)
    again = nbqueue.map(square, [1, 2], name="x").then(str, name="y")
    assert again.results() == ["1", "4"]
    assert on_server(new) == []


def test_a_single_job_with_a_name(session, hands, forgotten):
    job = nbqueue.options(name="one").submit(square, 7)
    hands.work()
    assert job.wait(10) == 49
    wait_until(lambda: job.batch.state.on_disk.has_outcome)
    new = forgotten(session)
    again = nbqueue.options(name="one").submit(square, 7)
    assert (again.id, again.wait(5)) == (job.id, 49)
    assert on_server(new) == []
    with pytest.raises(Changed):
        nbqueue.options(name="one").submit(square, 8)


def test_what_was_forgotten_on_purpose_runs_again(session, hands, forgotten):
    ran(session, hands, [1, 2]).forget()
    assert list(Path(session.spool.folder).iterdir()) == []
    new = forgotten(session)
    again = nbqueue.map(square, [1, 2], name="x")
    assert Hands(new).work() == 2
    assert again.results(timeout=10) == [1, 4]


def failing(x):
    if x % 2:
        raise ValueError(x)
    return x


def test_a_retry_brings_back_what_the_server_has_no_more(session, hands, forgotten):
    batch = nbqueue.map(failing, range(6))
    hands.work(4)
    wait_until(lambda: batch.ref.state.collected == 4)
    flush(session.broker)
    wait_until(lambda: batch.ref.state.gone == "lost")
    assert batch.to_frame(wait=False)["status"].tolist() == ["finished", "failed"] * 2 + ["failed"] * 2
    batch.retry()  # what failed, and what was lost
    assert session.broker.view(batch.id).tally.queued == 4
    hands = Hands(session)
    assert hands.work() == 4
    assert batch.wait(10)
    assert batch.to_frame()["status"].tolist() == ["finished", "failed"] * 3
    batch.retry(func=lambda x: x + 100)
    hands.work()
    assert batch.results(timeout=10) == [0, 101, 2, 103, 4, 105]
    settled(batch)
    new = forgotten(session)
    again = nbqueue.attach(batch.id)
    assert again.results() == [0, 101, 2, 103, 4, 105]
    again.retry([1], func=lambda x: -x)
    assert Hands(new).work() == 1
    assert again.results(timeout=10) == [0, -1, 2, 103, 4, 105]


def test_what_is_brought_back_says_how_much_has_still_to_run(session, hands, forgotten):
    ran(session, hands, [1, 2])
    again = forgotten(session)
    nbqueue.map(square, [1, 2, 3], name="x")
    assert again is not session
    two = nbqueue.map(square, [1, 2, 3], name="x")
    assert two.ref.note == "3 of 3 jobs reused; nothing new runs; 1 of them not ended yet"


def test_failures_of_a_batch_that_was_brought_back_are_those_that_it_has_now(server, session, hands, tmp_path):
    mended = tmp_path / "mended"

    def inverse(x, mended=str(mended)):
        return 1 // (x + Path(mended).exists())

    batch = nbqueue.map(inverse, [0, 1, 0])
    hands.work()
    assert batch.wait(10)
    groups = FailureGroups(str)
    groups.add(batch.ref)
    assert groups.update()
    assert len(groups) == 2
    for left in (2, 0):
        settled(batch)
        flush(session.broker)
        with batch.ref.state.changed:
            batch.ref.state.over = False
        session.collector.follow(batch.ref.state)
        wait_until(lambda: batch.ref.state.gone, 20)
        batch.retry()
        if not left:
            mended.touch()
        own = Hands(session)
        own.work()
        own.stop()
        assert batch.wait(10)
        assert groups.update()
        assert (len(groups), batch.tally.failed) == (left, left)


def test_update_of_a_batch_that_was_brought_back_goes_on_from_its_newest_log(session, hands, forgotten):
    ran(session, hands, [1, -2, 3])
    forgotten(session)

    def square(x):
        return x * x + 100

    updated = nbqueue.map(square, [1, -2, 3], name="x", update=True)
    assert updated.ref.spec.restored == 1
