"""What jobs wrote and said, and their earlier runs, are in the spool too. And a disk that does not answer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from helpers import flush, wait_until

import nbqueue
from nbqueue import Retry
from nbqueue.client.batch import Batch
from nbqueue.client.lookup import job_meta
from nbqueue.client.session import archive
from nbqueue.client.spool import directory, spool
from nbqueue.client.spool.reader import SpoolFile


def work(x):
    if x == 1:
        raise ValueError(x)
    return x


def copied(batch, n):
    """Waits until the spool has the outcomes of a batch, and what came with them."""
    folder = Path(batch.ref.session.spool.folder)
    wait_until(lambda: any(len(outcomes(each, batch.id)) == n for each in directory.files_of(folder, batch.id)), 20)


def outcomes(file, batch):
    entry = SpoolFile(file).entries.get(batch)
    return {} if entry is None else entry.outcomes


def test_logs_and_meta_are_there_after_the_server_forgot(session, hands, another_kernel):
    batch = nbqueue.map(work, range(3))
    for index in range(2):
        blob = job_meta.sealed(session.sealer, batch.id, index, {"step": index}, (1.0, 2.0, "half"))
        session.broker.save(batch.id, index, blob)
    hands.work()
    assert batch.wait(10)
    copied(batch, 3)
    flush(session.broker)
    wait_until(lambda: batch[0].log == "said something\n")
    another_kernel()
    again = nbqueue.attach(batch.id)
    assert [job.log for job in again] == ["said something\n"] * 3
    assert [job.meta for job in again] == [{"step": 0}, {"step": 1}, {}]
    assert again[1].progress == (1.0, 2.0, "half")
    assert again.to_frame(meta=True)["meta"].tolist() == [{"step": 0}, {"step": 1}, None]


def test_earlier_runs_are_there_too_also_of_single_jobs(session, hands, another_kernel):
    batch = nbqueue.map(work, range(2), retry=Retry(max=1))
    job = nbqueue.options(retry=Retry(max=1)).submit(work, 1)
    job.meta["told"] = 5
    job.save_meta()
    for _ in range(2):
        hands.work()
    assert batch.wait(10)
    wait_until(lambda: job.batch.state.on_disk.has_outcome)
    batch.retry([1], func=lambda x: x * 7)
    hands.work()
    assert batch.results(timeout=10) == [0, 7]
    copied(batch, 2)
    flush(session.broker)
    another_kernel()
    runs = nbqueue.attach(batch.id)[1].results()
    assert [(run.status, run.attempt) for run in runs] == [("finished", 3), ("failed", 2), ("failed", 1)]
    assert runs[0].return_value == 7
    assert "ValueError: 1" in runs[2].exc_info
    found = nbqueue.Job.fetch(job.id)
    assert [run.attempt for run in found.results()] == [2, 1]
    assert (found.meta, found.log) == ({"told": 5}, "said something\n")


def test_a_replay_after_all_is_gone_has_the_function_as_it_was_sent(session, hands, another_kernel):
    shift = 40
    batch = nbqueue.map(lambda x: x + shift, [1, 2])
    hands.work()
    assert batch.wait(10)
    copied(batch, 2)
    flush(session.broker)
    another_kernel()
    assert nbqueue.attach(batch.id)[1].replay() == 42


def test_a_single_job_read_before_the_collector_came_is_copied_all_the_same(session, hands, another_kernel):
    session.asleep = True  # the collector is late
    folder = session.spool.folder
    job = nbqueue.submit(work, 7)
    hands.work()
    assert job.result == 7
    session.asleep = False
    wait_until(lambda: directory.single_files(folder))
    wait_until(lambda: outcomes(directory.single_files(folder)[0], job.id), 20)
    new = another_kernel()
    flush(new.broker)
    assert nbqueue.Job.fetch(job.id).result == 7


def test_the_bytes_of_a_forgotten_single_job_go_with_prune(server, session, hands, monkeypatch):
    from click.testing import CliRunner

    from nbqueue.cli.main import cli

    job = nbqueue.submit(work, 7)
    hands.work()
    assert job.wait(10) == 7
    wait_until(lambda: job.batch.state.on_disk.has_outcome)
    Batch(job.batch).forget()
    assert [file.stat().st_size > 100 for file in directory.single_files(session.spool.folder)] == [True]
    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    monkeypatch.setenv("NBQUEUE_NAMESPACE", session.settings.namespace)
    told = CliRunner().invoke(cli, ["prune", "--older", "0s"], prog_name="nbqueue").output
    assert "spool   single jobs" in told
    assert "removed 0 on the server, 1 in the spool" in told
    assert directory.single_files(session.spool.folder) == []
    more = nbqueue.submit(work, 8)  # the session goes on, with another file
    hands.work()
    assert more.wait(10) == 8
    found = wait_until(lambda: directory.single_files(session.spool.folder))
    wait_until(lambda: more.batch.state.on_disk.has_outcome and list(SpoolFile(found[0]).entries) == [more.id])


def big(x):
    return bytes(50_000) + bytes([x])


def test_big_results_of_single_jobs_lie_on_disk_and_so_do_all_once_memory_holds_enough(session, hands, monkeypatch):
    jobs = [nbqueue.submit(big, x) for x in range(5)]
    hands.work()
    wait_until(lambda: all(job.batch.state.on_disk.has_outcome and job.batch.state.settled for job in jobs))
    assert [type(job.batch.state.outcomes.get(0)) for job in jobs] == [int] * 5
    assert [job.result for job in jobs] == [big(x) for x in range(5)]
    monkeypatch.setattr(spool, "HELD", 2_000)
    batch = nbqueue.map(work, range(2, 200))
    hands.work(100)
    wait_until(lambda: batch.ref.state.collected == 100)
    hands.work()
    assert batch.results(timeout=10) == list(range(2, 200))
    assert batch.ref.state.outcomes.weight < 98 * 300  # those of the second half are on disk


def test_memory_that_is_over_its_bound_is_told_where_there_is_no_disk(server, session, hands, monkeypatch, capsys):
    monkeypatch.setattr(spool, "HELD", 2_000)
    session.spool.read_only("it is a test")
    batches = []
    for _ in range(3):
        batches.append(nbqueue.map(work, range(2, 100)))
        hands.work()
        assert batches[-1].wait(10)
    assert capsys.readouterr().err.count("of results are in memory only, because it is a test") == 1


# ---------------------------------------------------------------- a disk that does not answer


@pytest.fixture
def hang(session, monkeypatch):
    """Makes the next record of a batch hang, as on a dead network mount: its file is a pipe that nobody reads."""
    made = []
    session.spool.io.timeout = 0.5

    def hang_it(batch):
        file = wait_until(lambda: directory.files_of(session.spool.folder, batch.id))[0]
        wait_until(lambda: not session.spool._waiting)
        session.spool.io.run(session.spool._writer.close)
        file.unlink()
        os.mkfifo(file)
        made.append(file)

    yield hang_it
    for each in made:
        os.close(os.open(each, os.O_RDWR | os.O_NONBLOCK))  # whoever hangs in it goes on


def test_a_disk_that_hangs_is_told_once_and_the_notebook_goes_on(session, hands, hang, capsys):
    batch = nbqueue.map(work, range(2, 8))
    hang(batch)
    hands.work()
    assert batch.results(timeout=20) == list(range(2, 8))
    more = nbqueue.map(work, range(2, 5))
    hands.work()
    assert more.results(timeout=10) == [2, 3, 4]
    assert nbqueue.map(work, [2], name="x") == nbqueue.map(work, [2], name="x")
    hands.work()
    told = capsys.readouterr().err
    assert told.count("the disk has not answered") == 1
    assert "stopped writing results to the spool" in told
    assert batch.to_frame()["result"].tolist() == list(range(2, 8))
    session.collector.stop()  # returns, too


def test_nobody_sees_what_is_not_on_disk_while_the_disk_may_still_answer(session, hands, hang):
    batch = nbqueue.map(work, range(2, 8))
    session.spool.io.timeout = 60
    hang(batch)
    file = directory.files_of(session.spool.folder, batch.id)[0]
    reader = threading.Thread(target=lambda: os.close(os.open(file, os.O_RDONLY)))
    hands.work()
    assert not batch.wait(0.5)  # nobody sees what is not on disk, while the disk may still answer
    reader.start()
    reader.join(20)
    assert batch.results(timeout=20) == list(range(2, 8))


def test_a_forked_child_writes_files_of_its_own(session):
    before = session.spool
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, b"1" if session.spool is not before and session.spool._session != before._session else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"1"


def test_a_disk_that_does_not_answer_holds_up_no_listing(session, hands, monkeypatch):
    batch = nbqueue.map(work, [2])
    hands.work()
    assert batch.wait(10)
    copied(batch, 1)
    folder, free, real = session.spool.folder, threading.Event(), Path.exists
    monkeypatch.setattr(Path, "exists", lambda self, **how: free.wait(30) if self == folder else real(self, **how))
    monkeypatch.setattr(directory, "list_batches", lambda _: pytest.fail("the disk was read by who asked"))
    session.spool.io.timeout = 0.2
    assert list(nbqueue.batches()["id"]) == [batch.id]
    assert archive.tale(session.spool, batch.ref.state.on_disk.header) is None
    free.set()
