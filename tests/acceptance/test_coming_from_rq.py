"""The page "Coming from RQ": every snippet runs, every command and every test that it names exists."""

import re
import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers import eventually
from redis import Redis

import nbqueue
from nbqueue import settings
from nbqueue.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-rq.md").read_text()
KNOWN, COMMANDS, LOSSES = (table.strip().splitlines()[2:] for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE))
TESTS = (ROOT / "tests/acceptance/test_losses.py").read_text()


def cells(row):
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def f(text):
    return len(text.split())


def g(count):
    return count + 1


def report(job, connection, *what):
    return None


@pytest.fixture
def names(session, fleet, home):
    """What the snippets take for granted: a queue and its worker, a finished job."""
    fleet.start("low").up()
    connection = Redis.from_url(session.settings.url)
    q = nbqueue.Queue("low")
    job = q.enqueue(f, "a b")
    assert job.wait(20) == 2

    @nbqueue.job("low")
    def add(x, y):
        return x + y

    known = {name: getattr(nbqueue, name) for name in nbqueue.__all__}
    known |= {"nbqueue": nbqueue, "datetime": datetime, "timedelta": timedelta, "connection": connection}
    yield known | {"q": q, "job": job, "f": f, "g": g, "add": add, "report": report}
    connection.close()


def test_every_snippet_of_the_page_runs(names):
    assert len(KNOWN) >= 25
    names["q"].enqueue(f, "kept", job_id="x0")
    for row in KNOWN:
        for snippet in re.findall(r"`([^`]*)`", cells(row)[1]):
            result = eval(snippet, names)
            if isinstance(result, nbqueue.Job) and "repeat" not in snippet:
                assert result.wait(20) is not None, snippet
            if isinstance(result, list) and result and isinstance(result[0], nbqueue.Job):
                assert all(job.wait(20) for job in result), snippet


def test_every_command_of_the_page_exists(tmp_path):
    assert len(COMMANDS) >= 9
    (tmp_path / "file").write_text("text")
    for row in COMMANDS:
        for line in re.findall(r"`(nbqueue [^`]*)`", cells(row)[1]):
            name, *words = shlex.split(line)[1:]
            command = cli.get_command(None, name)
            assert command is not None, line
            flags = {flag for option in command.params for flag in option.opts}
            assert {word for word in words if word.startswith("-")} <= flags, line


def test_the_sample_config_is_one(tmp_path):
    path = tmp_path / "nbqueue.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert settings.load(config=path).url == "redis://localhost:6379"
    assert settings.command_tables(path)["worker"]["burst"] is True


def test_every_loss_of_rqs_has_its_test():
    named = [re.search(r"`(test_\w+)`", cells(row)[2])[1] for row in LOSSES]
    assert len(set(named)) == 12
    for name in named:
        assert f"def {name}(" in TESTS


def test_the_walk_of_the_slides(session, home):
    program = [sys.executable, str(ROOT / "examples/from_rq.py"), session.settings.url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "queued, 1 in the queue, result None" in told
    assert "finished, result 6" in told
    assert "cat.png at 64, {'user': 'anna', 'width': 64}" in told
    assert "deferred until first has finished" in told
    assert "then finished: 6" in told
    assert "ZeroDivisionError" in told
    assert "1 runs again" in told
    assert "4 words" in told


# ---------------------------------------------------------------- which code runs


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Writes a module `shop` anew, as a deployment does; this process has imported the first."""
    folder = tmp_path / "release"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written = []

    def deploy(body):
        # Python takes what has the same second and size for the same: each text is longer than the one before.
        written.append(body)
        (folder / "shop.py").write_text(f"def pay(x):\n    {body}\n" + "#" * 100 * len(written))
        return __import__("shop")

    yield deploy
    sys.modules.pop("shop", None)


def test_fix_deploy_requeue(session, fleet, shop):
    worker = fleet.start("low", "other").up()
    q, other = nbqueue.Queue("low"), nbqueue.Queue("other")
    broken = shop("raise ValueError(x)")
    jobs = [q.enqueue(broken.pay, 1), q.enqueue("shop.pay", 2), *q.enqueue_many([q.prepare_data(broken.pay, (3,))])]
    jobs.append(nbqueue.job("low")(broken.pay).delay(4))
    jobs.append(other.enqueue("shop.pay", 5))
    assert all(isinstance(job.exception(20), ValueError) for job in jobs)
    shop("return x + 1")
    assert q.failed.requeue() == 4
    eventually(lambda: all(job.get_status() == "finished" for job in jobs[:4]))
    assert [job.return_value(refresh=True) for job in jobs[:4]] == [2, 3, 4, 5]
    words = [sys.executable, "-m", "nbqueue", "requeue", "--all", "--url", session.settings.url]
    subprocess.run([*words, "--namespace", session.settings.namespace], check=True, timeout=60, capture_output=True)
    eventually(lambda: jobs[4].get_status() == "finished")
    assert "has changed" in worker.log


def test_an_edit_never_runs_as_old_code(session, fleet, shop):
    fleet.start("low").up()
    q = nbqueue.Queue("low")
    for turn in range(5):
        assert q.enqueue(shop(f"return x, {turn}").pay, 1).wait(20) == (1, turn)


def test_a_broken_deployment_holds_up_nobody_once_it_is_mended(session, fleet, shop):
    fleet.start("low").up()
    q = nbqueue.Queue("low")
    pay = shop("return x").pay
    assert q.enqueue(pay, 1).wait(20) == 1
    shop("return x +")
    job = q.enqueue(pay, 1)
    assert "LoadError" in repr(job.exception(20))
    shop("return -x")
    assert job.requeue().wait(20) == -1


def test_what_runs_ends_as_it_began(session, fleet, shop, tmp_path):
    fleet.start("low").up()
    q = nbqueue.Queue("low")
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    wait = f"import time, os\n    open({str(begun)!r}, 'w').close()\n"
    wait += f"    while x and not os.path.exists({str(gate)!r}): time.sleep(0.01)\n    return"
    old = q.enqueue(shop(f"{wait} 'old'").pay, 1)
    eventually(begun.exists)
    assert q.enqueue(shop(f"{wait} 'new'").pay, 0).wait(20) == "new"
    gate.touch()
    assert old.wait(20) == "old"


def test_what_is_pinned_runs_with_its_code_or_waits(session, fleet, shop):
    worker = fleet.start("low").up()
    q = nbqueue.Queue("low")
    session.broker.suspend(None)
    old = shop("return 'old'").pay
    pinned = [q.options(pin=True).enqueue(old, 1), nbqueue.map(old, [1], queue="low")[0]]
    free = nbqueue.map(old, [1], queue="low", pin=False)[0]
    shop("return 'new'")
    session.broker.resume()
    assert free.wait(20) == "new"
    eventually(lambda: "is not the one that the function was submitted with" in worker.log)
    assert [job.get_status() for job in pinned] == ["queued", "queued"]
