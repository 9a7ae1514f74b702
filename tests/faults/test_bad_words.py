"""What is typed is checked; what comes from elsewhere is shown as text; what is secret is shown nowhere."""

from __future__ import annotations

import contextlib
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import wait_until

import nbqueue
from nbqueue.cli.main import cli
from nbqueue.client.spoolfile import Appender, Block, Kind, Scan
from nbqueue.errors import NbqueueError

ROOT = Path(__file__).parents[2]
NAMES = ["a/b", "a:b", "{a}", "a\0b", "a\nb", "a\n", "x" * 10_240, "", "../a", "a b", "-a", "ä"]
ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \u202eright\r over"
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PASSWORD = "hunter2-correct-horse"


def evil(text):
    print(ESCAPES + EVIL)
    raise ValueError(ESCAPES + EVIL)


def login(password):
    """Takes a password, and uses it wrongly."""
    return len(password) // 0


API = {
    "queue": lambda name: nbqueue.map(abs, [1], queue=name),
    "options queue": lambda name: nbqueue.options(queue=name),
    "name": lambda name: nbqueue.map(abs, [1], name=name),
    "job_id": lambda name: nbqueue.options(job_id=name).submit(abs, 1),
    "Queue": nbqueue.Queue,
    "enqueue": lambda name: nbqueue.Queue("q").enqueue(abs, 1, job_id=name),
    "namespace": lambda name: nbqueue.connect(nbqueue.client.session.peek().settings.url, namespace=name),
    "Queue namespace": lambda name: nbqueue.Queue("q", namespace=name).count,
    "attach": nbqueue.attach,
    "fetch": nbqueue.Job.fetch,
    "Worker queue": lambda name: nbqueue.Worker([name]),
    "depends_on": lambda name: nbqueue.options(depends_on=name).submit(abs, 1),
}
IDS = {"attach", "fetch", "depends_on"}  # in an id of a job, `:` stands before its index


@pytest.mark.parametrize("way", API)
def test_a_name_that_cannot_be_one(session, way):
    keys = set(session.broker.client.scan_iter(match=session.broker.keys.prefix + "*"))
    for name in NAMES:
        expected = NbqueueError if way in IDS and ":" in name else ValueError
        with pytest.raises(expected) as why:
            API[way](name)
        assert isinstance(why.value, NbqueueError), (name, why.value)
        assert len(str(why.value)) < 1000
    assert set(session.broker.client.scan_iter(match=session.broker.keys.prefix + "*")) == keys


COMMANDS = [
    ("worker", "{}"),
    ("worker", "--name", "{}"),
    ("show", "{}"),
    ("cancel", "{}"),
    ("stop", "{}"),
    ("empty", "{}"),
    ("requeue", "{}"),
    ("requeue", "--all", "--queue", "{}"),
    ("enqueue", "--queue", "{}", "math.sqrt", ":4"),
    ("enqueue", "--job-id", "{}", "math.sqrt", ":4"),
    ("info", "--namespace", "{}"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_refuses_such_a_name(session, words, monkeypatch):
    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    for name in ("a/b", "{a}", "a\nb", "x" * 10_240, "a b"):
        place = words.index("{}")
        done = CliRunner().invoke(cli, [*words[:place], name, *words[place + 1 :]])
        assert done.exit_code, (words, name, done.output)
        assert done.exception is None or isinstance(done.exception, (NbqueueError, SystemExit)), done.exception


# ---------------------------------------------------------------- shown as text


def command(session, *words):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nbqueue",
            *words,
            "--url",
            session.settings.url,
            "--namespace",
            session.settings.namespace,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"FORCE_COLOR": "", "TERM": "dumb"},
    )
    return done.stdout + done.stderr


def harmless(text):
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_escape_codes_reach_no_terminal(session, fleet, monkeypatch):
    worker = fleet.start().up()
    monkeypatch.setattr(evil, "__qualname__", f"evil{ESCAPES}")
    batch = nbqueue.map(evil, [EVIL], description=ESCAPES)
    assert batch.wait(30)
    broker = session.broker
    broker.client.hset(broker.keys.at("b", nbqueue.map(abs, [1], queue="other").id), "queue", ESCAPES)
    for words in (["show", f"{batch.id}:0"], ["info"], ["batches"], ["show", "no-such\x1b[31m"]):
        told = command(session, *words)
        assert harmless(told), (words, told)
    assert "\\x1b[31mred" in command(session, "show", f"{batch.id}:0")
    wait_until(lambda: batch.id in worker.log, 20)
    assert harmless(worker.log)


def test_markup_is_text_in_the_frame_and_the_panel(session, fleet):
    from nbqueue.client import details, markup
    from nbqueue.client.groups import Groups
    from nbqueue.client.pace import pace_of
    from nbqueue.client.view import look

    fleet.start().up()
    batch = nbqueue.map(evil, [EVIL], name=None)
    assert batch.wait(30)
    told = details.told(batch, 0)
    panel = markup.static(look([batch], pace_of(batch.watch), Groups(str), ()), {0: told}) + markup.told(told, EVIL)
    for shown in (batch.to_frame()._repr_html_(), panel):
        assert "<img" not in shown
        assert "<script" not in shown
    assert html.escape(EVIL) in panel


def test_a_password_among_the_arguments_is_shown_nowhere(session, fleet):
    worker = fleet.start().up()
    batch = nbqueue.map(login, [PASSWORD])
    single = nbqueue.submit(login, PASSWORD)
    assert batch.wait(30)
    wait_until(lambda: single.is_failed, 30)
    shown = [worker.log, repr(batch), repr(batch[0]), repr(single), single.description, batch.spec.label, batch.id]
    shown += [command(session, *words) for words in (["info"], ["info", "--json"], ["batches"])]
    shown += [command(session, "show", job) for job in (single.id, f"{batch.id}:0")]
    shown += command_lines()
    assert not [text for text in shown if PASSWORD in text]
    assert PASSWORD in command(session, "show", single.id, "--args")


def command_lines():
    """The process list, as anyone on the machine sees it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(path.read_bytes().decode(errors="replace"))
    return found


# ---------------------------------------------------------------- lengths, files, and who may run what


def test_nothing_is_ever_decompressed():
    text = "".join(path.read_text() for path in (ROOT / "nbqueue").rglob("*.py"))
    assert not re.search(r"decompress|import (gzip|bz2|lzma|zipfile|tarfile)", text)


def test_a_forged_file_of_the_spool_is_not_opened(session, fleet, tmp_path):
    fleet.start().up()
    batch = nbqueue.map(abs, range(3))
    assert batch.results(timeout=30) == [0, 1, 2]
    folder = session.settings.spool
    wait_until(lambda: any(record.kind == Kind.STATE for path in files(folder) for record in Scan(path)), 20)
    session.collector.stop()
    (path,) = files(folder)
    forged = Appender(path)
    forged.size = path.stat().st_size
    blob = b"F\0\1\1" + session.sealer.keyring.current + b"\0" * 40
    forged.append(Kind.OUTCOMES, Block([0], [len(blob)]), [blob])
    forged.append(Kind.OUTCOMES, Block([1], [1 << 60]), [b"F"])
    forged.close()
    assert session.broker.forget(batch.id)
    nbqueue.connect(session.settings.url, namespace=session.settings.namespace)
    again = nbqueue.attach(batch.id)
    frame = again.to_frame(timeout=30)
    assert "BadSignature" in frame["error"][0]
    assert list(frame["result"][1:]) == [1, 2]


def files(folder):
    return sorted(folder.rglob("*.spool"))


def test_a_worker_with_a_secret_that_others_may_read_says_how_to_mend_it(session, fleet, home):
    (home / "secret").chmod(0o644)
    worker = fleet.start()
    assert worker.process.wait(30) == 1
    assert f"chmod 600 {home / 'secret'}" in worker.log


def test_a_worker_of_another_python_leaves_the_batch_and_says_which(session, fleet):
    batch, good = nbqueue.map(abs, range(2)), nbqueue.map(abs, range(2))
    key = session.broker.keys.at("b", batch.id)
    session.broker.client.hset(key, mapping={"python": "3.99", "host": "elsewhere"})
    worker = fleet.start().up()
    wait_until(lambda: "1 batches wait for python 3.99" in worker.log, 20)
    assert good.results(timeout=30) == [0, 1]
    assert batch.tally.queued == 2
