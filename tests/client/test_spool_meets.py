"""Where the spool meets damaged keys, retries on their way, busy disks, forks, and workers that are quick."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hands import Hands
from helpers import flush, wait_until
from test_spool import files, settled

import nbqueue
from nbqueue.client.spool import records
from nbqueue.client.spool.io_thread import IoThread, IoTimeout
from nbqueue.client.spool.reader import SpoolFile
from nbqueue.client.submit import restore as restoring
from nbqueue.store.broker import Broker


@pytest.fixture
def unheard(session):
    """Ends what begins within, before anything of it is copied: the collector stands still until `go()`."""
    session.collector._pause.set()
    spoiled = []

    def go(keys):
        client = session.broker.client
        for key in keys:
            client.delete(key)
            client.set(key, "x")
        spoiled.extend(keys)
        wait_until(lambda: session.collector._thread is None or not session.collector._thread.is_alive())
        session.collector._pause.clear()

    yield go
    session.broker.client.delete(*spoiled)


@pytest.mark.parametrize("part", ["out", "tail", "meta", "past"])
def test_damaged_keys_of_one_batch_do_not_keep_others_from_being_copied(session, hands, unheard, part):
    many, one = nbqueue.map(abs, range(2)), nbqueue.submit(abs, -2)
    hands.work()
    unheard([session.broker.keys.part(batch, part) for batch in (many.id, one.id)])
    good, single = nbqueue.map(abs, range(3)), nbqueue.submit(abs, -3)
    hands.work()
    assert good.results(timeout=20) == [0, 1, 2]
    assert single.wait(20) == 3
    if part != "out":
        assert many.results(timeout=20) == [0, 1]
        assert one.wait(20) == 2


def test_a_refreshed_job_is_still_in_the_spool(session, hands, another_kernel):
    batch = nbqueue.map(abs, range(4))
    hands.work(2)
    wait_until(lambda: batch.ref.state.collected == 2)
    batch[0].refresh()
    assert batch[0].result == 0
    hands.work()
    assert batch.wait(20)
    settled(batch)
    flush(session.broker)
    another_kernel()
    assert nbqueue.attach(batch.id).results(errors="return") == [0, 1, 2, 3]


def test_a_single_outcome_that_was_read_while_the_collector_looked_is_in_the_spool_too(session, hands, monkeypatch):
    follow, jobs, read = Broker.follow, [], []

    def ends_meanwhile(self, *args):
        if not read:  # the collector has asked for outcomes, and there was none; now for how it stands
            wait_until(lambda: jobs)
            hands.work()
            read.append(jobs[0].result)
        return follow(self, *args)

    monkeypatch.setattr(Broker, "follow", ends_meanwhile)
    jobs.append(job := nbqueue.submit(abs, -2))
    assert job.wait(20) == 2
    wait_until(lambda: job.batch.state.on_disk.has_outcome)
    session.collector.stop()
    session.collector._thread.join(20)
    assert read == [2]
    assert list(SpoolFile(files(session)[0]).entries[job.id].outcomes) == [0]


def test_an_outcome_that_a_retry_withdrew_on_its_way_is_withdrawn_in_the_spool(session, hands):
    job = nbqueue.submit(abs, -2)
    hands.work()
    assert job.wait(20) == 2
    state = job.batch.state
    wait_until(lambda: state.on_disk.has_outcome)
    session.collector.stop()
    session.collector._thread.join(20)
    blob, generation = state.outcomes.stored(0), state.cursor.generation
    with state.changed:
        state.withdraw(0)
        state.on_disk.withdrawn.clear()
        state.reopen()
        assert not state.put_single(blob, generation)
    session.spool.write_outcomes(state, ())
    entry = SpoolFile(files(session)[0]).entries[job.id]
    assert (entry.outcomes, state.on_disk.has_outcome) == ({}, False)
    session.spool.write_single_outcomes([(state, blob, ())])  # it stands after all
    assert list(SpoolFile(files(session)[0]).entries[job.id].outcomes) == [0]


def test_a_disk_that_is_busy_is_not_taken_for_one_that_hangs():
    io, free = IoThread(timeout=1.0), threading.Event()
    begun, answers = threading.Event(), []

    def write():
        begun.set()
        return free.wait(20)

    writer = threading.Thread(target=lambda: answers.append(io.run(write, size=60 << 20)))
    writer.start()
    assert begun.wait(20)
    threading.Timer(2.5, free.set).start()
    assert io.run(lambda: 2) == 2
    writer.join(20)
    assert answers == [True]
    free.clear()
    with pytest.raises(IoTimeout):
        io.run(write)
    free.set()
    io.stop()


def test_a_child_reads_the_spool_where_a_thread_of_its_parent_was_reading(session, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    with records._reading:
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            os._exit(records.read(file, 0, 3) != b"abc")
    assert os.waitpid(pid, 0)[1] == 0


def test_what_ends_while_a_batch_is_brought_back_is_copied_by_those_who_attach(server, session, hands, monkeypatch):
    batch = nbqueue.map(abs, range(6), name="x")
    hands.work(5)
    wait_until(lambda: batch.ref.state.collected == 5)
    session.collector.stop()
    book = SpoolFile(files(session)[0])
    found = book.entries[batch.id].outcomes[0]
    with session.spool._lock:
        session.spool._writer.note(
            batch.ref.state.on_disk.header,
            records.RecordType.WITHDRAWALS,
            records.Withdrawals([0], [book.check(found)]),
        )
    flush(session.broker)
    new = nbqueue.connect(server.url, namespace=session.settings.namespace)
    quick, restore = Hands(new), Broker.restore

    def restore_slowly(*args, **facts):
        restore(*args, **facts)
        if not facts["start"]:
            assert quick.work(1) == 1  # job 0, which ends before the server has heard of job 2

    with monkeypatch.context() as slow:
        slow.setattr(restoring, "PART", 2)
        slow.setattr(Broker, "restore", restore_slowly)
        nbqueue.map(abs, range(6), name="x")
    new.collector.stop()
    nbqueue.connect(server.url, namespace=session.settings.namespace)
    state = nbqueue.attach("x").ref.state
    wait_until(lambda: state.collected == 5)
    assert 0 in state.outcomes
    quick.work()
