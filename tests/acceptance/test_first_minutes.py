"""What a newcomer runs: the demo, the example, the notebook, the commands that look."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import wait_until

import nbqueue

ROOT = Path(__file__).parents[2]


def run(*words, cwd=None, code=0):
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def command(*words, code=0):
    return run(sys.executable, "-m", "nbqueue", *words, code=code)


def test_the_demo(home):
    shown = command("demo")
    pages = int(re.search(r"on (\d+) pages", shown)[1])
    assert pages > 100
    assert f"... and {pages - 10} more rows" in shown
    assert "HTTP Error 404" in shown
    assert "missing on purpose" in shown
    assert "import nbqueue\nbatch = nbqueue.map(" in shown
    wait_until(lambda: not started_by_a_demo())
    assert list(home.iterdir()) == []


def started_by_a_demo():
    """Pids of processes that have a demo's temporary home in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"=/tmp/nbq-demo-" in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_the_demo_with_urls_of_ones_own(home, tmp_path):
    page = tmp_path / "page.txt"
    page.write_text("one two three")
    shown = command("demo", page.as_uri(), "nothing://here")
    assert "on 2 pages" in shown
    assert "3 words on 1 pages; 1 failed" in shown
    assert "on purpose" not in shown


def test_what_the_demo_says_to_paste_runs(local_home):
    from nbqueue.cli.demo import PASTE

    names = {}
    exec(PASTE, names)
    assert names["batch"].to_frame()["result"].iloc[3] == 5


def test_the_example(local_home, tmp_path):
    page = tmp_path / "page.txt"
    page.write_text("one two three")
    shown = run(sys.executable, str(ROOT / "examples/count_words.py"), page.as_uri())
    assert re.search(r"3\s+finished", shown)
    shown = run(sys.executable, str(ROOT / "examples/count_words.py"))
    assert "12 finished, 1 failed" in shown


def test_info_and_batches(session, fleet):
    fleet.start("--burst")
    nbqueue.map(abs, range(3), name="shown").wait(20)
    names = ["--url", session.settings.url, "--namespace", session.settings.namespace]
    shown = command("info", *names)
    assert "default" in shown
    listed = command("batches", *names)
    assert re.search(r"shown\s+abs\s+default\s+3\s+0\s+0\s+3\s", listed)


def test_info_changes_nothing(session):
    nbqueue.map(abs, range(3))
    client = session.broker.client

    def content(key):  # a dump tells of the order of fields too, which changes by itself
        return client.hgetall(key) if client.type(key) == b"hash" else client.dump(key)

    def everything():
        keys = sorted(client.scan_iter(match=session.broker.keys.prefix + "*"))
        return [(key, content(key), client.pexpiretime(key) if client.pttl(key) > 0 else None) for key in keys]

    before = everything()
    command("info", "--url", session.settings.url, "--namespace", session.settings.namespace)
    assert everything() == before


@pytest.mark.parametrize("words", [[], ["worker"], ["info"], ["batches"], ["demo"], ["server"], ["server", "start"]])
def test_help_reads_well(words):
    shown = command(*words, "--help")
    assert "Usage: nbqueue" in shown
    assert "\b" not in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    _usage, *lines = shown.splitlines()
    assert not [line for line in lines if line.endswith("...")]  # cut in the middle of a sentence


def test_a_private_server_by_hand(home):
    assert "No private server runs" in command("server", "status", code=1)
    assert "no server is configured" in command("info", code=1)
    assert "The server is up" in command("server", "start", "--bind", "127.0.0.1")
    try:
        assert (home / "connection.toml").stat().st_mode & 0o777 == 0o600
        assert "The server runs" in command("server", "status")
        assert "No worker is up" in command("info")
        assert "redis://" in command("worker", "--burst")
    finally:
        assert "is stopped" in command("server", "stop")
    assert "No private server runs" in command("server", "status", code=1)
    assert not (home / "connection.toml").exists()


def test_what_is_typed_wrong_is_said_plainly(home):
    assert "redis://" in command("worker", "--url", "http://nowhere", code=1)
    assert "cannot be used" in command("worker", "a*", code=1)
    assert "is not a duration" in command("worker", "--max-idle", "soon", code=1)
    assert "No Redis server answers" in command("info", "--url", "redis://127.0.0.1:1", code=1)
    assert "not a dotted function name" in command("enqueue", "count", code=1)
    assert "not both" in command(
        "enqueue", "os.getcwd", "--schedule-in", "5s", "--schedule-at", "2030-12-24T18:00:00", code=1
    )
    assert not (home / "local").exists()  # nothing was started for them
    assert "There is no config file" in command("info", "--config", "/nowhere.toml", code=1)
