"""The page "Coming from RQ": every snippet runs, every command and every test that it names exists."""

import re
import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
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
