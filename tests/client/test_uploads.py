from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
from helpers import wait_until

import nbqueue
from nbqueue.client.submit import upload
from nbqueue.errors import NotPicklable


def square(x):
    return x * x


def scripts_run(session):
    return session.broker.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


def test_a_hundred_thousand_small_items_are_sent_in_few_requests(session):
    before = scripts_run(session)
    batch = nbqueue.map(square, range(100_000))
    assert scripts_run(session) - before < 250
    assert len(batch) == 100_000
    wait_until(lambda: not batch.ref.state.open and session.broker.view(batch.id).n == 100_000)
    assert batch.cancel() == 100_000
    assert batch.wait(10)
    assert batch.tally.canceled == 100_000


def test_sized_items_are_sealed_before_map_returns(session, hands, monkeypatch):
    monkeypatch.setattr(upload, "AT_ONCE", 0.0)
    source = [[number] for number in range(2_500)]
    batch = nbqueue.map(sum, source)
    for item in source:
        item[0] = -1
    wait_until(lambda: not session.broker.view(batch.id).open)
    hands.start()
    assert batch.results(timeout=20) == list(range(2_500))
    assert batch.to_frame()["iterable"].tolist() == [[n] for n in range(2_500)]


def test_first_jobs_run_before_the_last_item_is_read(session, busy):
    more = threading.Event()

    def source():
        yield 1
        yield 2
        assert more.wait(20)
        yield 3

    batch = nbqueue.map(square, source())
    arrived = batch.as_completed(timeout=10)
    assert {next(arrived).index, next(arrived).index} == {0, 1}
    assert not batch.wait(0.05)
    more.set()
    assert next(arrived).wait() == 9
    assert batch.results(timeout=10) == [1, 4, 9]


def test_a_slow_first_item_does_not_hold_map(session, busy, monkeypatch):
    monkeypatch.setattr("nbqueue.client.submit.submission.FIRST", 0.05)
    first = threading.Event()

    def source():
        assert first.wait(20)
        yield 4

    batch = nbqueue.map(square, source())
    assert len(batch) == 0
    first.set()
    assert batch.results(timeout=10) == [16]


def test_an_empty_iterator_is_an_empty_batch(session):
    batch = nbqueue.map(square, iter([]))
    assert batch.wait(10)
    assert batch.results() == []


def test_a_fault_of_the_iterator_surfaces_in_every_wait(session, busy):
    def source():
        yield 1
        raise OSError("the disk is gone")

    batch = nbqueue.map(square, source())
    with pytest.raises(OSError, match="the disk is gone"):
        batch.wait(10)
    with pytest.raises(OSError, match="the disk is gone"):
        batch.results(timeout=10)
    assert batch[0].wait(10) == 1


def test_an_input_that_breaks_off_is_the_same_at_first_and_later(session, busy):
    def source():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    batch = nbqueue.map(square, source())
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 items from before reading its input failed"):
            assert batch.to_frame(timeout=20)["result"].tolist() == [1, 4]
        for errors in ("skip", "return"):
            with pytest.warns(UserWarning, match=r"OSError: the disk is gone"):
                assert batch.results(errors, timeout=20) == [1, 4]
        for ask in (batch.wait, batch.results):
            with pytest.raises(OSError, match="the disk is gone"):
                ask(timeout=20)
        arrived = []
        with pytest.raises(OSError, match="the disk is gone"):
            arrived.extend(job.wait() for job in batch.as_completed(20))
        assert sorted(arrived) == [1, 4]
        wait_until(lambda: batch.done)


def test_an_input_that_breaks_off_before_its_first_item_is_the_same_at_first_and_later(session, busy, monkeypatch):
    monkeypatch.setattr("nbqueue.client.submit.submission.FIRST", 0.01)
    gate = threading.Event()

    def source():
        assert gate.wait(20)
        raise OSError("the disk is gone")
        yield

    batch = nbqueue.map(square, source())
    gate.set()
    for _ in range(2):
        with pytest.warns(UserWarning, match="0 items from before reading its input failed"):
            assert len(batch.to_frame(timeout=20)) == 0
        wait_until(lambda: batch.done)


def test_an_item_of_a_stream_that_does_not_pickle_surfaces_too(session, busy):
    batch = nbqueue.map(square, iter([1, threading.Lock(), 3]))
    with pytest.raises(NotPicklable, match="Item 1 of square"):
        batch.wait(10)


def test_cancel_stops_an_endless_iterator(session):
    read = []

    def source():
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    batch = nbqueue.map(square, source())
    wait_until(lambda: len(read) > 2_000)
    batch.cancel()
    wait_until(lambda: not any(thread.name == "nbqueue reader" for thread in threading.enumerate()))
    assert batch.wait(20)


def test_an_upload_outlives_a_pause_by_signs_of_life(session, hands, monkeypatch):
    monkeypatch.setattr(upload, "BEAT", 0.05)
    seen = []
    more = threading.Event()
    real = upload.Upload._send
    monkeypatch.setattr(upload.Upload, "_send", lambda self, **how: (seen.append(how), real(self, **how))[1])

    def source():
        yield 1
        assert more.wait(20)

    batch = nbqueue.map(square, source())
    wait_until(lambda: len(seen) > 3)
    more.set()
    hands.start()
    assert batch.results(timeout=10) == [1]


def test_a_script_that_ends_after_map_has_sent_everything_and_prints_no_traceback(server, session, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import nbqueue
        from nbqueue.client.submit import upload as uploader
        uploader.AT_ONCE = 0.0
        nbqueue.connect({server.url!r}, namespace={session.settings.namespace!r})
        nbqueue.map(abs, range(5_000), name="sized")
        nbqueue.map(abs, (n for n in range(2_000)), name="stream")
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stderr == ""
    for name, n in (("sized", 5_000), ("stream", 2_000)):
        view = session.broker.view(session.broker.named(name))
        assert (view.n, view.open) == (n, False)
        session.broker.cancel(view.id)


def test_many_single_jobs_are_collected_through_one_log(session, hands):
    jobs = [nbqueue.submit(square, number) for number in range(120)]
    hands.start()
    assert [job.wait(20) for job in jobs] == [number**2 for number in range(120)]
    wait_until(lambda: not session.collector._followed)
