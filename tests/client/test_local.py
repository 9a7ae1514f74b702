"""Local mode, with the real server and the real worker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import wait_until

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.session import local_mode as home_module
from nbqueue.client.session import session as session_module
from nbqueue.errors import BadOption, NoServerProgram
from nbqueue.launch import local
from nbqueue.store import server


def square(x):
    return x * x


@pytest.fixture
def home(monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="nbq-"))
    monkeypatch.setenv("NBQUEUE_HOME", str(folder))
    monkeypatch.setenv("NBQUEUE_SLOTS", "1")
    session_module.use(None)
    yield folder
    nbqueue.local().stop()
    shutil.rmtree(folder, ignore_errors=True)


def workers(found):
    return [view for view in found.broker.workers() if view.left > 0]


def pids(found):
    return [info.pid for info in local._local(found.broker.workers())]


def test_the_first_map_starts_all_and_says_so_once(home, capfd):
    assert nbqueue.map(square, [1, 2]).results(timeout=30) == [1, 4]
    assert nbqueue.submit(square, 3).wait(30) == 9
    found = session_module.current()
    assert len(workers(found)) == 1
    told = capfd.readouterr().err
    assert told.count("started a local server and worker") == 1
    assert "nbqueue.local().stop()" in told
    assert "1 at a time" in told
    again = session_module.Session(found.settings)
    again.attend()  # a second notebook
    assert len(workers(found)) == 1
    assert again.broker.epoch() == found.broker.epoch()
    again.disconnect()


def test_a_killed_server_and_a_killed_worker_are_started_again_on_the_same_data(home):
    first = nbqueue.map(square, [5])
    assert first.results(timeout=30) == [25]
    found = session_module.current()
    wait_until(lambda: workers(found))
    (pid,) = pids(found)
    os.kill(server.status(found.settings.local).pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not local.alive(pid))
    assert nbqueue.map(square, [6]).results(timeout=30) == [36]
    assert nbqueue.attach(first.id).results(timeout=30) == [25]


def test_a_server_killed_under_a_waiting_batch_comes_back(home):
    assert nbqueue.map(square, [5]).results(timeout=30) == [25]
    batch = nbqueue.map(__import__("time").sleep, [0.6])
    os.kill(server.status(session_module.current().settings.local).pid, signal.SIGKILL)
    assert batch.results(timeout=30) == [None]


def test_stop_ends_worker_and_server_and_the_data_stays(home):
    batch = nbqueue.map(square, [5])
    assert batch.results(timeout=30) == [25]
    found = session_module.current()
    before = pids(found)
    handle = nbqueue.local()
    assert handle.session is found
    handle.stop()
    assert server.status(found.settings.local) is None
    assert not any(local.alive(pid) for pid in before)
    handle.stop()
    assert nbqueue.attach(batch.id).results(timeout=30) == [25]


def test_what_was_stopped_on_purpose_stays_stopped_though_a_batch_is_watched(home):
    assert nbqueue.map(square, [5]).results(timeout=30) == [25]
    nbqueue.map(__import__("time").sleep, [60])
    found = session_module.current()
    nbqueue.local().stop()
    assert not found.collector._pause.wait(1.2)  # time enough for the collector to notice
    assert server.status(found.settings.local) is None


def held(folder, x):
    (folder / str(x)).touch()
    wait_until((folder / "go").exists, 60)
    return x


def test_other_slots_and_memory_hold_from_now_on_and_what_runs_goes_on(home, tmp_path, capfd):
    first = nbqueue.map(held, [tmp_path] * 4, range(4))
    wait_until((tmp_path / "0").exists, 30)
    found, before = session_module.current(), pids(session_module.current())
    assert len(before) == 1
    capfd.readouterr()
    nbqueue.local(slots=3, memory="300MB")
    assert "a local worker with 3 slots replaces the one with 1" in capfd.readouterr().err
    assert found.broker.client.config_get("maxmemory")["maxmemory"] == str(300 << 20)
    for x in range(1, 4):
        wait_until((tmp_path / str(x)).exists, 30)  # three at a time, while the first still runs
    nbqueue.local(slots=3)
    assert not capfd.readouterr().err, "it has them already"
    assert before[0] in pids(found)
    (tmp_path / "go").touch()
    assert first.results(timeout=30) == [0, 1, 2, 3]
    wait_until(lambda: len(workers(found)) == 1, 30)
    assert found.broker.live_slots("default") == 3
    assert first.to_frame(meta=True)["attempt"].tolist() == [1, 1, 1, 1]
    os.kill(*pids(found), signal.SIGTERM)
    wait_until(lambda: not workers(found), 30)
    assert nbqueue.submit(square, 3).wait(30) == 9
    assert found.broker.live_slots("default") == 3, "the next one has as many"


def test_bad_slots_and_sizes_are_refused():
    for slots in (0, True, "2"):
        with pytest.raises(BadOption):
            nbqueue.local(slots=slots)
    with pytest.raises(BadOption, match="'500MB'"):
        nbqueue.local(memory="much")
    assert home_module.size("memory", "1.5GB") == 3 << 29
    assert home_module.size("memory", 1000) == 1000


def test_without_a_server_program_the_way_out_is_named(home, monkeypatch):
    def missing(*args, **kwargs):
        raise NoServerProgram

    with monkeypatch.context() as patch:
        patch.setattr(server, "start", missing)
        with pytest.raises(NoServerProgram, match=r"pip install 'nbqueue\[server\]'"):
            nbqueue.map(square, [1])


def test_a_login_node_is_spared(monkeypatch, tmp_path):
    program = tmp_path / "qsub"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in local._ALLOCATIONS:
        monkeypatch.delenv(name, raising=False)
    assert local.on_login_node()
    monkeypatch.setenv("PBS_JOBID", "7")
    assert not local.on_login_node()
    monkeypatch.delenv("PBS_JOBID")
    program.unlink()
    assert not local.on_login_node()


def test_two_starters_at_the_same_moment_end_with_one_worker(home):
    code = "import nbqueue; print(nbqueue.map(abs, [-1, -2]).results(timeout=30))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=40)[0].strip() for process in both] == ["[1, 2]"] * 2
    found = session_module.current()
    found.attend()
    assert len(workers(found)) == 1


def test_a_pid_that_is_another_process_by_now_is_not_believed(tmp_path):
    (tmp_path / "worker.json").write_text(f'{{"pid": {os.getpid()}, "born": "1", "at": 1e12}}')
    assert not local._starting(tmp_path)
    local._note(tmp_path, os.getpid(), 2)
    assert local._starting(tmp_path)
    (tmp_path / "worker.json").write_text('{"pid":')
    assert not local._starting(tmp_path)


def test_a_worker_killed_with_jobs_in_its_hands_is_told_of_with_the_time_until_they_run_again(home, capfd):
    batch = nbqueue.map(__import__("time").sleep, [60])
    found = session_module.current()
    wait_until(lambda: batch.tally.started, 30)
    (pid,) = pids(found)
    capfd.readouterr()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not local.alive(pid), 30)
    found._attended = 0.0
    found.attend()
    told = capfd.readouterr().err
    assert f"(process {pid}) was killed, or has died, while it ran 1 job: started another" in told
    assert "when its lease expires, in" in told
    assert "server" not in told  # it has been there all the time
    batch.cancel()


def read(names):
    return [os.environ.get(name) for name in names]


def test_jobs_see_the_environment_as_it_is_at_their_submission(home, capfd, monkeypatch):
    names = ["API_KEY", "GONE", "OMP_NUM_THREADS", "SHLVL"]
    monkeypatch.setenv("GONE", "was set")
    monkeypatch.setenv("API_KEY", "at first")
    assert nbqueue.submit(read, names[:2]).wait(30) == ["at first", "was set"]
    note = Path(session_module.current().settings.local, "worker.json")
    assert note.stat().st_mode & 0o777 == 0o600
    assert "at first" not in note.read_text()
    capfd.readouterr()
    monkeypatch.setenv("API_KEY", "then")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SHLVL", "77")  # a terminal's, which is no affair of jobs
    monkeypatch.delenv("GONE")
    for _ in range(2):
        job = nbqueue.submit(read, names)
        assert job.wait(30)[:3] == ["then", None, "3"]
        assert job.wait()[3] != "77"
    assert job.batch.spec.env == ("API_KEY", "GONE", "OMP_NUM_THREADS")
    assert capfd.readouterr().err.count("jobs see API_KEY, GONE, OMP_NUM_THREADS as in this process now") == 1
    monkeypatch.delenv("API_KEY")
    monkeypatch.delenv("OMP_NUM_THREADS")
    [again] = Batch(job.batch).retry([0], func=read)
    assert again.wait(30)[:2] == [None, None]
    monkeypatch.setenv("API_KEY", "at first")
    assert session_module.current().environment() == {"GONE": None}
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")  # as an import of scikit-learn does
    monkeypatch.setenv("LATER", "new")
    capfd.readouterr()
    assert nbqueue.submit(read, ["KMP_INIT_AT_FORK", "LATER"]).wait(30) == ["FALSE", "new"]
    assert "nbqueue: jobs see LATER as in this process now" in capfd.readouterr().err


def test_an_unchanged_environment_adds_nothing(home, capfd):
    jobs = [nbqueue.submit(square, 2), nbqueue.submit(square, 3)]
    assert [job.wait(30) for job in jobs] == [4, 9]
    assert {job.batch.spec.env for job in jobs} == {()}
    assert "jobs see" not in capfd.readouterr().err
