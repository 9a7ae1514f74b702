"""Large results in a folder that the notebook and its workers share."""

import os
import secrets
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import wait_until

import nbqueue
from nbqueue.checks import DAY
from nbqueue.cli.main import cli
from nbqueue.errors import BadSignature, SpillLost
from nbqueue.model import Cause
from nbqueue.spill import Spilled

MB = 1 << 20


@pytest.fixture
def root(tmp_path):
    return tmp_path / "spill"


def files(root):
    return sorted(path for path in Path(root).rglob("*") if path.is_file())


def peak_mb(pid):
    """The most memory that a process ever had."""
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def make(mb):
    return bytes(mb * MB)


def test_a_large_result_never_passes_through_the_worker(session, fleet, root):
    worker = fleet.start(slots=1).up()
    assert nbqueue.map(make, [0, 2], spill=root).wait(30)  # whatever it imports is imported by now
    before = peak_mb(worker.pid)
    batch = nbqueue.map(make, [200], spill=root)
    assert batch.wait(60), worker.log
    assert peak_mb(worker.pid) - before < 40
    outcome = batch[0].outcome
    assert outcome.value is None
    assert (outcome.spilled.size // MB, outcome.spilled.root) == (200, str(root))
    assert session.broker.outcomes(batch.id, [0])[0].__sizeof__() < 1000
    assert len(batch[0].result) == 200 * MB


def test_every_way_to_a_value_leads_there(session, fleet, root):
    fleet.start().up()
    batch = nbqueue.map(make, [0, 3], spill=root)
    assert [len(job.wait(30)) for job in batch] == [0, 3 * MB]
    assert [len(value) for value in batch.results()] == [0, 3 * MB]
    assert [len(value) for value in batch.to_frame().result] == [0, 3 * MB]
    assert sorted(len(job.result) for job in batch.as_completed()) == [0, 3 * MB]
    assert len(batch[1].latest_result().return_value) == 3 * MB
    again = nbqueue.attach(batch.id)
    assert len(again[1].result) == 3 * MB


def test_a_result_that_was_spilled_is_an_argument_of_the_next(session, fleet, root):
    fleet.start().up()
    first = nbqueue.map(make, [1, 3], spill=root)
    sizes = first.then(len)
    assert sizes.wait(30)
    assert sizes.results() == [MB, 3 * MB]
    frame = sizes.to_frame()
    assert frame.obj[1] == f"<3.0 MB in {root}>"
    assert sizes[1].replay() == 3 * MB
    assert len(sizes[1].args[0]) == 3 * MB


def test_callbacks_get_it(session, fleet, root, diary):
    path = str(diary.path)

    def told(_job, _connection, result):
        Path(path).write_text(str(len(result)))

    fleet.start().up()
    nbqueue.options(spill=root, on_success=told).submit(make, 3).wait(30)
    wait_until(lambda: diary.lines == [str(3 * MB)], 20)


def test_a_damaged_or_missing_file_costs_one_row(session, fleet, root):
    fleet.start().up()
    batch = nbqueue.map(make, [2, 0, 2, 3], spill=root)
    assert batch.wait(30)
    damaged, missing = (root / batch[index].outcome.spilled.name for index in (0, 2))
    with damaged.open("r+b") as file:
        file.seek(MB)
        file.write(b"\x01")
    missing.unlink()
    with pytest.raises(BadSignature, match=damaged.name):
        batch[0].wait()
    with pytest.raises(SpillLost, match=missing.name):
        batch.results(errors="raise") if damaged.unlink() else batch[2].wait()
    found = batch.results(errors="return")
    assert [type(value) for value in found] == [SpillLost, bytes, SpillLost, bytes]
    assert len(batch.results(errors="skip")) == 2
    frame = batch.to_frame()
    assert missing.name in frame.result[2]
    assert len(frame.result[3]) == 3 * MB
    assert batch.retry([0, 2]).wait(30)
    assert len(batch.results()) == 4


def test_a_full_folder_fails_the_job_and_a_retry_elsewhere_mends_it(session, fleet, root, tmp_path):
    (tmp_path / "file").touch()
    fleet.start().up()
    batch = nbqueue.map(make, [65, 2], spill=tmp_path / "file")
    assert batch.wait(30)
    assert (batch[0].cause, str(batch[1].status)) == (Cause.TOO_LARGE, "finished")
    assert str(tmp_path / "file") in batch[0].error
    assert "was stored on the server" in batch[1].log
    assert batch.retry(spill=root).wait(30)
    assert len(batch[0].result) == 65 * MB


def test_the_workers_own_setting_serves_batches_that_name_none(session, fleet, root):
    fleet.start(env={"NBQUEUE_SPILL": str(root)}).up()
    batch, off = nbqueue.map(make, [2]), nbqueue.map(make, [2], spill="off")
    assert batch.wait(30)
    assert off.wait(30)
    assert isinstance(batch[0].outcome.spilled, Spilled)
    assert off[0].outcome.spilled is None
    assert len(batch[0].result) == 2 * MB
    batch.forget()
    assert files(root) == []


def test_the_sessions_setting_holds_for_all_it_submits(server, home, root, monkeypatch):
    monkeypatch.setenv("NBQUEUE_SPILL", str(root))
    opened = nbqueue.connect(server.url, namespace=f"t{secrets.token_hex(4)}")
    assert nbqueue.submit(abs, -1).batch.spec.spill == str(root)
    opened.collector.stop()


def test_forget_removes_the_files_of_all_runs(session, fleet, root):
    fleet.start().up()
    batch = nbqueue.map(make, [2, 2], spill=root)
    other = nbqueue.map(make, [2], spill=root)
    assert batch.wait(30)
    assert other.wait(30)
    assert batch.retry([0]).wait(30)
    assert len(files(root)) == 4
    batch.forget()
    assert len(files(root)) == 1
    assert len(other[0].result) == 2 * MB


def prune(session, *words):
    server = ["--url", session.settings.url, "--namespace", session.settings.namespace]
    done = CliRunner().invoke(cli, ["prune", *words, *server], prog_name="nbqueue")
    assert done.exit_code == 0, done.output
    return done.output


def aged(root, days):
    then = time.time() - days * DAY
    for path in Path(root).rglob("*"):
        os.utime(path, (then, then))


def test_prune_removes_what_nobody_has_any_more(session, fleet, root, monkeypatch):
    fleet.start().up()
    batch, kept = nbqueue.map(make, [2], spill=root), nbqueue.map(make, [3], spill=root)
    assert batch.wait(30)
    assert kept.wait(30)
    monkeypatch.setenv("NBQUEUE_SPILL", str(root))
    aged(root, 40)
    assert "the spill" not in prune(session)  # server and spool have both
    session.broker.forget(batch.id)
    assert "the spill" not in prune(session)  # the spool has it
    session.spool.forget(batch.ref.state.on_disk.header)
    assert f"spill   {batch.id}  2.0 MB in {root}, written 40 days ago" in prune(session, "--dry-run")
    assert len(files(root)) == 2
    assert "the spill" not in prune(session, "--older", "50d")
    assert "1 in the spill (2.0 MB)" in prune(session)
    (left,) = files(root)
    assert left.parent.name == kept.id


def test_forget_of_some_rows_of_a_named_batch_finds_their_files_too(session, fleet, root):
    fleet.start(env={"NBQUEUE_SPILL": str(root)}).up()
    first = nbqueue.map(make, [0, 2], name="some")
    assert first.wait(30)
    some = nbqueue.map(make, [2], name="some")
    assert (some.wait(30), some[0].index) == (True, 1)
    assert len(files(root)) == 1
    some.forget()
    assert files(root) == []
