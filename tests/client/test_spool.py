"""The spool: what was collected outlives results, server and kernel, and a disk that fails costs nobody a result."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import flush, wait_until

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.lookup import spooled
from nbqueue.client.panel import model
from nbqueue.client.session import session as session_module
from nbqueue.client.spool import directory, records, spool, writer
from nbqueue.client.spool.reader import SpoolFile
from nbqueue.client.spool.records import Block, Checkpoint, RecordType
from nbqueue.errors import Expired, LostByServer, NotThere
from nbqueue.model import Cause

BIG = "x" * 50_000


def work(x):
    if x == 3:
        raise ValueError(x)
    return BIG if x == 4 else x * x


def files(session):
    return sorted(Path(session.spool.folder).iterdir())


def same(one, other):
    drop = ["result"] if "result" in one else []
    assert one["result"].tolist() == other["result"].tolist()
    assert one.drop(columns=drop).equals(other.drop(columns=drop))


def settled(batch):
    """Waits for the note of the end, which follows the last outcome."""
    wait_until(lambda: any(each.done for each in directory.list_batches(batch.ref.session.spool.folder)))


def test_a_frame_is_whole_after_the_server_forgot_and_the_kernel_was_restarted(server, session, hands, another_kernel):
    batch = nbqueue.map(work, range(6), name="six")
    hands.work()
    before = batch.to_frame(meta=True)
    settled(batch)
    flush(session.broker)
    assert batch.to_frame().shape[0] == 6
    new = another_kernel()
    again = nbqueue.attach("six")
    assert again == batch
    assert again.ref.session is new
    assert again.done
    same(again.to_frame(), before[again.to_frame().columns])
    assert again[4].result == BIG
    assert again.results(errors="skip") == [0, 1, 4, BIG, 25]
    assert [job.index for job in again.failed] == [3]
    assert again[2].args == (2,)
    assert model.retention_note(again.ref.state, 0) == "All results saved; no longer on the server"
    assert nbqueue.attach(batch.id) == nbqueue.attach() == batch
    again.forget()
    assert files(new) == []
    with pytest.raises(NotThere):
        nbqueue.attach("six")


def test_results_outlive_their_time_to_live_and_big_ones_lie_on_disk(session, hands):
    batch = nbqueue.map(work, range(6), result_ttl=1, failure_ttl=1)
    hands.work()
    assert batch.wait(10)
    assert isinstance(batch.ref.state.outcomes.get(4), int)
    assert batch.ref.state.outcomes.weight < 5 * spool.SMALL
    wait_until(lambda: session.broker.promote() is None or session.broker.view(batch.id) is None, 15)
    assert batch[4].result == BIG
    assert nbqueue.attach(batch.id).results(errors="skip") == [0, 1, 4, BIG, 25]
    assert nbqueue.batches()["spooled"].tolist() == [sum(each.stat().st_size for each in files(session))]
    single = nbqueue.options(result_ttl=1, failure_ttl=1).submit(work, 3)
    hands.work()
    assert isinstance(single.exception(10), ValueError)
    wait_until(lambda: session.broker.promote() is None or session.broker.view(single.id) is None, 15)
    with pytest.raises(Expired):
        single.requeue()


def test_what_one_session_had_copied_another_need_not_copy_again(session, hands, another_kernel):
    batch = nbqueue.map(work, range(6), name="half")
    hands.work(4)
    wait_until(lambda: batch.ref.state.collected == 4)

    def positions():
        stands = [SpoolFile(each).entries[batch.id].checkpoint for each in files(session)]
        return [stand and stand.position for stand in stands]

    wait_until(lambda: positions() == [4])
    new = another_kernel()
    attached = nbqueue.attach("half")
    assert attached.ref.state.on_disk.recalled
    assert attached.ref.state.collected == 4
    hands.work()
    assert attached.results(errors="skip", timeout=10) == [0, 1, 4, BIG, 25]
    own = [SpoolFile(each).entries[batch.id] for each in files(new)]
    assert [sorted(each.outcomes) for each in own] in ([[0, 1, 2, 3], [4, 5]], [[4, 5], [0, 1, 2, 3]])
    before = files(new)
    assert nbqueue.attach("half").wait(10)
    assert files(new) == before  # nothing was new
    flush(new.broker)
    another_kernel()
    assert nbqueue.attach("half").results(errors="skip") == [0, 1, 4, BIG, 25]


def test_two_notebooks_follow_one_batch_and_a_retry(server, session, hands, another_kernel):
    batch = nbqueue.map(work, range(4))
    other = nbqueue.connect(server.url, namespace=session.settings.namespace)
    follower = nbqueue.attach(batch.id)
    hands.work()
    assert batch.wait(10)
    assert follower.wait(10)
    batch.retry(func=lambda x: x + 100)
    hands.work()
    assert batch.wait(10)
    other.collector.follow(follower.ref.state)
    wait_until(lambda: follower.done and follower.ref.state.outcomes.state(3) == "finished")
    assert len(files(session)) == 2
    flush(session.broker)
    other.collector.stop()
    another_kernel()
    assert nbqueue.attach(batch.id).results() == [0, 1, 4, 103]


def test_another_machine_copies_arguments_too(session, hands, tmp_path, monkeypatch, another_kernel):
    batch = nbqueue.map(work, range(120))
    hands.work()
    assert batch.wait(10)
    monkeypatch.setenv("NBQUEUE_SPOOL", str(tmp_path / "elsewhere"))
    other = another_kernel()
    assert nbqueue.attach(batch.id).wait(10)
    wait_until(lambda: not other.collector._followed)
    flush(other.broker)
    another_kernel()
    assert nbqueue.attach(batch.id).to_frame()["x"].tolist() == list(range(120))


def test_a_withdrawn_outcome_is_not_brought_back_by_a_file_that_lags(session, hands, another_kernel):
    batch = nbqueue.map(work, range(4))
    hands.work()
    assert batch.wait(10)
    settled(batch)
    lagging = files(session)[0]
    copy = lagging.with_name(lagging.name.replace(session.spool._session, "feedbeef"))
    copy.write_bytes(lagging.read_bytes())
    batch.retry()
    wait_until(lambda: any(3 in SpoolFile(each).entries[batch.id].withdrawn for each in files(session)))
    flush(session.broker)
    another_kernel()
    again = nbqueue.attach(batch.id)
    assert again.to_frame(wait=False)["status"].tolist()[:3] == ["finished"] * 3
    assert again.ref.state.outcomes.state(3) is None
    with pytest.raises(LostByServer):
        again.wait(5)


def test_many_single_jobs_make_one_file_and_come_back(session, hands, another_kernel):
    q = nbqueue.Queue("default", connection=None)
    jobs = q.enqueue_many([nbqueue.Queue.prepare_data(work, (n,)) for n in range(5, 505)])
    hands.start()
    frame = nbqueue.gather(jobs)
    hands.stop()
    assert len(files(session)) == 1
    flush(session.broker)
    another_kernel()
    found = nbqueue.Job.fetch_many([job.id for job in jobs])
    same(nbqueue.gather(found), frame)
    assert nbqueue.attach(jobs[0].id)[0].result == 25
    Batch(found[0].batch).forget()
    another_kernel()
    assert nbqueue.Job.fetch_many([job.id for job in jobs[:2]])[0] is None


@pytest.mark.parametrize("harm", ["torn", "head", "blob", "noise"])
def test_a_damaged_file_costs_what_was_damaged_and_no_more(server, session, hands, harm, another_kernel):
    batch = nbqueue.map(work, range(6), name="hurt")
    hands.work(4)
    wait_until(lambda: batch.ref.state.collected == 4)
    hands.work()
    assert batch.wait(10)
    settled(batch)
    session.collector.stop()
    file = files(session)[0]
    data = bytearray(file.read_bytes())
    found = [each for each in records.RecordReader(file) if each.record_type == records.RecordType.OUTCOMES][-1]
    if harm == "torn":
        data = data[: found.offset + found.size - 10]
    elif harm == "head":
        data[found.offset - len(found.table) - 10] ^= 1
    elif harm == "blob":
        data[found.offset + 40] ^= 1
    else:
        data += random.Random(1).randbytes(5_000)
    file.write_bytes(data)
    new = another_kernel()
    assert nbqueue.attach("hurt").results(errors="skip", timeout=10) == [0, 1, 4, BIG, 25]  # asked from the server
    new.collector.stop()
    for each in set(files(new)) - {file}:
        each.unlink()
    flush(new.broker)
    third = another_kernel()
    states = nbqueue.attach("hurt").to_frame(wait=False)
    whole = 6 if harm == "noise" else 5 if harm == "blob" else 4
    good = states["status"].isin(["finished"]).sum() + (states["error"] == "ValueError: 3").sum()
    assert good == whole
    if harm == "blob":
        assert states["error"].str.contains("signature does not fit").sum() == 1
    third.collector.stop()


SCRIPT = """
    import resource, signal, sys
    sys.path.insert(0, {tests!r})
    import nbqueue
    from hands import Hands
    session = nbqueue.connect({url!r}, namespace={namespace!r})
    hands = Hands(session)
    def big(x):
        return bytes(20_000)
    nbqueue.map(big, range(3))
    hands.work()
    {limit}
    batch = nbqueue.map(big, range(40))
    hands.work()
    print(len(batch.results(timeout=20)), bool(session.spool.why))
    more = nbqueue.map(big, range(5))
    hands.work()
    print(len(more.results(timeout=20)))
    hands.stop()
"""


@pytest.mark.parametrize("where", ["limit", "tmpfs"])
def test_a_full_disk_is_told_once_and_all_goes_on_in_memory(server, session, tmp_path, where):
    folder = tmp_path / "full"
    folder.mkdir()
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    if where == "tmpfs":
        words = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        limit = ""
    try:
        facts = {"tests": str(Path(__file__).parent), "url": server.url, "namespace": session.settings.namespace}
        code = textwrap.dedent(SCRIPT).format(limit=limit, **facts)
        env = os.environ | {"NBQUEUE_SPOOL": str(folder / "spool")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
        assert done.stdout.split() == ["40", "True", "5"], done.stderr
        assert done.stderr.count("stopped writing results to the spool") == 1
        for each in (folder / "spool").iterdir():
            book = SpoolFile(each)
            assert not book.damaged
            assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "spool").stat().st_mode) == 0o700
    finally:
        if where == "tmpfs":
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_oldest_done_batches_are_dropped_over_the_cap(session, hands, capsys):
    session.spool.cap = 400_000
    batches = []
    for _ in range(8):
        batches.append(nbqueue.map(lambda x: BIG, range(2)))
        hands.work()
        assert batches[-1].wait(10)
        settled(batches[-1])
        wait_until(lambda: (stood := session.spool._checkpoints.get(batches[-1].id)) and stood.over)
    left = {each.batch for each in directory.list_batches(session.spool.folder)}
    assert batches[0].id not in left
    assert batches[-1].id in left
    assert sum(each.stat().st_size for each in files(session)) < 500_000
    assert f"copies were removed: {batches[0].id}" in capsys.readouterr().err
    assert batches[0].results() == [BIG, BIG]  # the server still has them
    session.spool.cap = 1_000
    huge = nbqueue.map(lambda x: BIG, range(3))
    hands.work()
    assert huge.results(timeout=10) == [BIG] * 3


def test_without_a_spool_nothing_is_written(server, session, hands, monkeypatch, tmp_path):
    monkeypatch.setenv("NBQUEUE_SPOOL", "off")
    new = nbqueue.connect(server.url, namespace=session.settings.namespace)
    batch = nbqueue.map(work, [1, 4])
    hands.work()
    assert batch.results(timeout=10) == [1, BIG]
    assert not (tmp_path / "home" / "spool").exists()
    assert "in memory here only (the spool is switched off)" in model.retention_note(batch.ref.state, 0, new.spool.why)
    flush(new.broker)
    new.collector.stop()
    last = nbqueue.connect(server.url, namespace=session.settings.namespace)
    with pytest.raises(NotThere):
        nbqueue.attach(batch.id)
    session_module.use(session)
    last.collector.stop()


def test_a_kernel_killed_and_a_server_flushed_leave_the_frame(server, session, tmp_path):
    facts = {"tests": str(Path(__file__).parent), "url": server.url, "namespace": session.settings.namespace}
    first = textwrap.dedent(SCRIPT).format(limit="", **facts).partition("nbqueue.map(big")[0]
    first += "import os, signal\nbatch = nbqueue.map(lambda x: x + 1, [1, 2], name='next day')\n".replace(
        " day", "_day"
    )
    first += "hands.work()\nbatch.wait(20)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    killed = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    flush(session.broker)
    second = first.partition("hands = ")[0] + "print(nbqueue.attach('next_day').to_frame()[['x', 'result']].values)"
    done = subprocess.run([sys.executable, "-c", second], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["[[1", "2]", "[2", "3]]"], done.stderr
    assert "from the spool, because" in done.stderr


def test_prune_lists_and_removes_what_is_old(session, hands, monkeypatch):
    from click.testing import CliRunner

    from nbqueue.cli.main import cli

    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    monkeypatch.setenv("NBQUEUE_NAMESPACE", session.settings.namespace)

    def prune(*words):
        done = CliRunner().invoke(cli, ["prune", *words], prog_name="nbqueue")
        assert done.exit_code == 0, done.output
        return done.output

    done = nbqueue.map(work, range(3), name="done")
    hands.work()
    assert done.wait(10)
    settled(done)
    running = nbqueue.map(work, range(3))
    wait_until(lambda: len(files(session)) == 2)
    for each in files(session):
        os.utime(each, (1, 1))
    assert "would remove 0 on the server, 1 in the spool" in prune("--dry-run")
    told = prune("--older", "0s", "-n")
    assert re.search(rf"server  {done.id} \(done\)  3 jobs, done \d+ s ago", told)
    assert f"spool   {done.id} (done)" in told
    assert running.id not in told
    assert "would remove 1 on the server, 1 in the spool" in told
    assert "removed 1 on the server, 1 in the spool" in prune("--older", "0s")
    frame = nbqueue.batches()
    assert frame["id"].tolist() == [running.id]
    assert list(frame)[:8] == ["id", "name", "function", "n", "finished", "failed", "started", "queued"]
    assert len(set(frame)) == 17
    assert frame["bytes"][0] > 500
    assert frame["spooled"][0] == files(session)[0].stat().st_size
    running.cancel()
    monkeypatch.setenv("NBQUEUE_URL", "redis://127.0.0.1:1")
    assert "removed 0 on the server, 1 in the spool" in prune("--older", "0s")


def test_prune_takes_no_bare_number_and_asks_a_terminal(session, hands, monkeypatch):
    from click.testing import CliRunner

    from nbqueue.cli.main import cli

    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    monkeypatch.setenv("NBQUEUE_NAMESPACE", session.settings.namespace)
    for bare in ("5", "0", "1.5"):
        refused = CliRunner().invoke(cli, ["prune", "--older", bare], prog_name="nbqueue")
        assert f"--older {bare}: give a unit, as {bare}d for days" in str(refused.exception)
    first = nbqueue.map(work, range(3), name="longsim")
    hands.work()
    assert first.wait(10)
    settled(first)
    second = nbqueue.map(work, range(2), name="longsim", fresh=True)
    hands.work()
    assert second.wait(10)
    settled(second)

    def typed(answer, *words):
        terminal, end = pty.openpty()
        os.write(terminal, f"{answer}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "nbqueue", "prune", "--older", "0s", *words],
            stdin=end,
            capture_output=True,
            text=True,
            timeout=60,
        )
        os.close(terminal)
        os.close(end)
        return done.stdout

    told = typed("n")
    assert re.search(rf"spool   {first.id} \(longsim@1\)", told), told  # as on the server
    assert "remove 2 on the server, 2 in the spool" in told
    assert len(nbqueue.batches()) == 2
    assert "removed 2 on the server" in typed("", "--yes")
    assert not len(nbqueue.batches())


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (RecordType.LOGS, Block([0], [1, 2])),
        (RecordType.METAS, Block([-1], [4])),
        (RecordType.EARLIER_RUNS, Block([0], [1 << 40])),
        (RecordType.FUNCTION, Block([], [])),
        (RecordType.FUNCTION, Block([1], [4])),
        (RecordType.FUNCTION, Block([1, 1], [4, 1 << 40])),
        (RecordType.HASHES, Block([], [])),
        (RecordType.HASHES, Block([-3], [4])),
        (RecordType.HASHES, Block([1 << 60], [4])),
        (RecordType.CHECKPOINT, Checkpoint(1.0, 0, 1 << 60, False, False, True, None, [], [])),
        (RecordType.CHECKPOINT, Checkpoint(1.0, 0, 2, False, False, True, None, [(0, 1 << 60, Cause.USER)], [])),
    ],
)
def test_a_record_of_another_shape_damages_the_file_and_nothing_else(session, hands, kind, table, another_kernel):
    batch = nbqueue.map(work, range(3), name="odd")
    hands.work()
    before = batch.to_frame()
    settled(batch)
    (file,) = directory.files_of(Path(session.spool.folder), batch.id)
    end = writer.Appender(file)
    end.size = file.stat().st_size
    end.append(kind, table, [b"data"])
    end.close()
    assert SpoolFile(file).damaged
    another_kernel()
    assert nbqueue.attach("odd").to_frame(timeout=10).equals(before)
    flush(session.broker)
    assert nbqueue.attach("odd").to_frame(timeout=10)["status"].tolist() == before["status"].tolist()


def test_what_a_file_says_first_is_read_once(server, session, hands, monkeypatch):
    """A job that is not there is looked for in all files of the spool, which may be thousands."""
    batches = [nbqueue.map(work, range(2), name=f"b{n}") for n in range(5)]
    hands.work()
    assert all(batch.wait(10) for batch in batches)
    wait_until(lambda: sum(each.done for each in directory.list_batches(session.spool.folder)) == 5)
    scanned = []
    real = records.RecordReader.__iter__
    monkeypatch.setattr(records.RecordReader, "__iter__", lambda self: (scanned.append(self.path), real(self))[1])
    for _ in range(3):
        assert not nbqueue.Job.exists("nobody")
    assert sorted(scanned) == sorted(set(scanned))
    monkeypatch.undo()
    directory.files_of(Path(session.spool.folder), batches[0].id)[0].write_bytes(b"")
    assert spooled.find(session, "b0") is None
    assert spooled.find(session, "b1").header.batch == batches[1].id
