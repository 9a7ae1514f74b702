"""What is typed is checked; what comes from elsewhere is shown as text; what is secret is shown nowhere."""

from __future__ import annotations

import ast
import contextlib
import html
import os
import pickle
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import redis.asyncio
from click.testing import CliRunner
from helpers import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

import nbqueue
from nbqueue.checks import is_queue
from nbqueue.cli.main import cli
from nbqueue.client.spool.records import Block, RecordReader, RecordType
from nbqueue.client.spool.writer import Appender
from nbqueue.client.submit.options import OPTION_NAMES
from nbqueue.errors import BadInput, BadName, BadOption, NbqueueError, NoServer
from nbqueue.store import connection

ROOT = Path(__file__).parents[2]
NAMES = ["a/b", "a:b", "{a}", "a\0b", "a\nb", "a\n", "x" * 10_240, "", "../a", "a b ", " a", " ", "a\tb", "-a", "ä"]
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
    "namespace": lambda name: nbqueue.connect(nbqueue.client.session.session.peek().settings.url, namespace=name),
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
    queue = way in {"queue", "options queue", "Queue", "Worker queue"}  # which may be called as RQ's users do
    for name in [name for name in NAMES if not (queue and is_queue(name))]:
        expected = NbqueueError if way in IDS and ":" in name else ValueError
        with pytest.raises(expected) as why:
            API[way](name)
        assert isinstance(why.value, NbqueueError), (name, why.value)
        assert len(str(why.value)) < 1000
    if not queue and way not in {"name", "attach", "fetch"}:  # what names a batch
        with pytest.raises(BadName):
            API[way]("a b")
    assert set(session.broker.client.scan_iter(match=session.broker.keys.prefix + "*")) == keys


def test_a_batch_may_have_spaces_in_its_name(session, fleet):
    fleet.start().up()
    name = "long simulation of 2"
    assert nbqueue.map(abs, [-1, -2], name=name).results(timeout=30) == [1, 2]
    assert nbqueue.map(abs, [-1, -2, -3], name=name).results(timeout=30) == [1, 2, 3]
    assert nbqueue.map(abs, [-9], name=name, fresh=True).results(timeout=30) == [9]
    assert nbqueue.attach(f"{name}@1").results(timeout=30) == [1, 2, 3]
    assert nbqueue.attach(name).results() == [9]
    assert nbqueue.Job.fetch(f"{name}:0").wait(10) == 9
    assert {name, f"{name}@1"} <= set(nbqueue.batches()["name"])
    assert "abs" in command(session, "show", f"{name}:0")
    session.broker.client.flushall()  # and from the copy on this disk
    assert nbqueue.attach(name).results() == [9]


def said(verb, *args, **kwargs):
    """What a verb refuses its arguments with, which is an error of ours and short; None if it takes them."""
    try:
        verb(*args, **kwargs)
    except NbqueueError as why:
        told = str(why)
    else:
        return None
    assert len(told) < 500
    return told


class Rude:
    """Refuses to be shown, or compared."""

    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


ODD = [
    *(None, True, 0, -1, 10**12, 10**5000, -(10**5000), 0.5, float("nan"), float("inf"), 1j, "", " ", "x" * 5000, "\0"),
    *(
        "\ud800",
        b"x",
        [],
        [1],
        {},
        {1: 2},
        {"a": Rude()},
        (),
        {1},
        range(3),
        np.array([1, 2]),
        np.array(3),
        pd.NA,
        pd.NaT,
    ),
    *(
        pd.DataFrame({"a": [1]}),
        pd.Series([1]),
        timedelta.max,
        datetime.max.replace(tzinfo=UTC),
        object(),
        Rude(),
        print,
        int,
        lambda: 0,
    ),
]


@pytest.mark.parametrize("option", sorted(OPTION_NAMES))
def test_an_option_of_any_value_is_taken_or_refused_in_words(home, option):
    for value in ODD:
        told = said(nbqueue.options, **{option: value})
        assert not told or option.removeprefix("job_")[:4] in told.lower()


@pytest.mark.parametrize(
    "when",
    [
        lambda q: q.enqueue_in(timedelta.max, abs, -1),
        lambda q: q.enqueue_in(10**12, abs, -1),
        lambda q: q.enqueue_at(datetime.max.replace(tzinfo=UTC), abs, -1),
        lambda q: q.enqueue_at(datetime(2200, 1, 1, tzinfo=UTC), abs, -1),
        lambda q: q.enqueue(abs, -1, job_timeout=10**12),
        lambda q: q.enqueue(abs, -1, ttl=timedelta.max),
    ],
)
def test_a_time_beyond_the_calendar_is_refused_when_typed(session, when):
    q = nbqueue.Queue("q", connection=session.settings.url, namespace=session.settings.namespace)
    with pytest.raises(BadOption, match="too long: 100 years at most"):
        when(q)
    assert not len(q)


URLS = {
    "redis://h/0?colour=red": "unknown option 'colour'",
    "redis://h?socket_timeuot=3": "did you mean 'socket_timeout'",
    "redis://h?db=x": "db",
    "redis://h/x": "database 'x' is not a number",
    "redis://h?db=-1": "below 0",
    "redis://h?client_name=a%20b": "client_name 'a b'",
    "redis://h?socket_timeout=soon": "socket_timeout",
    "redis://h?ssl_ca_certs=x": "unknown option 'ssl_ca_certs'",
    "redis://:secret@[::1": "cannot be used",
    "redis://h:99999": "cannot be used",
    "redis://h:port": "cannot be used",
    "unix://": "names no socket",
    "http://h": "must begin with",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_used_says_what_is_wrong_before_anything_is_sent(home, url):
    for way in (nbqueue.connect, lambda url: nbqueue.Queue("q", connection=url).count):
        with pytest.raises(BadOption, match=re.escape(URLS[url])) as why:
            way(url)
        assert "secret" not in str(why.value)


@given(st.text(max_size=20), st.text("abc/:@?&=%[]# .0123456789", max_size=40))
@settings(deadline=None)
def test_no_url_raises_an_error_of_another(scheme, rest):
    for url in (f"{scheme}://{rest}", f"redis://{rest}", f"unix:///{rest}", f"redis://h/?{rest}", scheme + rest):
        said(connection.connect, url)


def test_options_of_a_url_that_would_break_us_change_nothing(session):
    url = session.settings.url
    url += "&" if "?" in url else "?"
    url += "decode_responses=True&protocol=3&encoding=latin-1&client_name=me&retry_on_timeout=1"
    found = nbqueue.connect(url, namespace=session.settings.namespace)
    q = nbqueue.Queue("q")
    q.enqueue(abs, -5, job_id="five")
    nbqueue.SimpleWorker(["q"]).work(burst=True)
    assert q.fetch_job("five").result == 5
    assert "me" in {each["name"] for each in found.broker.client.client_list()}
    found.collector.stop()
    found.disconnect()


def test_a_database_that_is_not_there_is_named_and_no_url_is_none(home, server):
    with pytest.raises(BadInput, match="empty URL"):
        nbqueue.connect(" ")
    with pytest.raises(NbqueueError, match="no such database"):
        nbqueue.connect(redis.Redis(unix_socket_path=server.url.partition("//")[2].partition("?")[0], db=99))


class Foreign:
    """As a client of another package."""

    connection_pool = None


@pytest.mark.parametrize(
    "client", [redis.asyncio.Redis(), Foreign(), redis.ConnectionPool(), b"redis://h", Path("x"), 6379, ["redis://h"]]
)
def test_what_is_no_client_of_redis_is_refused_by_its_kind(home, client):
    for way in (nbqueue.connect, lambda client: nbqueue.Queue("q", connection=client)):
        with pytest.raises(BadInput, match=f"takes a URL or a redis.Redis, not .*{type(client).__name__}"):
            way(client)


def test_a_failure_of_sentinels_names_them_and_not_localhost(home):
    from redis.sentinel import Sentinel

    client = Sentinel([("127.0.0.1", 1)], socket_timeout=0.1).master_for("mymaster")
    with pytest.raises(NoServer, match=r"redis\+sentinel://127.0.0.1:1/mymaster") as why:
        nbqueue.connect(client)
    assert "localhost" not in str(why.value)


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


OF_QUEUES = {("worker", "{}"), ("empty", "{}"), *(words for words in COMMANDS if "--queue" in words)}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_refuses_such_a_name(session, words, monkeypatch):
    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    for name in ("a/b", "{a}", "a\nb", "x" * 10_240, "a b "):
        if words in OF_QUEUES and is_queue(name):
            continue  # RQ's users have such queues
        place = words.index("{}")
        done = CliRunner().invoke(cli, [*words[:place], name, *words[place + 1 :]])
        assert done.exit_code, (words, name, done.output)
        assert done.exception is None or isinstance(done.exception, (NbqueueError, SystemExit)), done.exception


ODD_WORDS = {  # what readers stumbled over, and what is said in its place
    r"\b[Mm]end": "fix",
    r"\bone (row|call|job|argument) an? (input|item|job)\b": "one row per input",
    r"(jobs|calls) a second\b": "jobs per second",
    r"sign of life": "heartbeat",
    r"wants a person": "only warnings",
    r"for people\b": "display name",
}


@pytest.mark.parametrize("word", ODD_WORDS)
def test_what_users_read_is_in_plain_words(word):
    books = [
        path for folder in ("docs", "notebooks", "nbqueue/cli", "nbqueue/client") for path in (ROOT / folder).rglob("*")
    ]
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "nbqueue/errors.py", *books):
        if path.suffix not in {".py", ".md", ".ipynb"}:
            continue
        text = path.read_text()
        if path.suffix == ".py":  # comments and names are for others
            tree = ast.walk(ast.parse(text))
            text = "\n".join(
                each.value for each in tree if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
        found = re.search(f".*{word}.*", text)
        assert found is None, f"{path}: {found[0].strip()[:200]}: say {ODD_WORDS[word]!r}"


def test_a_fact_with_a_full_stop_of_its_own_gets_no_second_one():
    told = NoServer(url="redis://h", why="connection refused.", remedy="Start one..")
    assert str(told) == "No Redis server answers at redis://h (connection refused.). Start one."
    assert str(BadInput(message="as ... or ../a, and so on...")) == "as ... or ../a, and so on..."
    assert str(pickle.loads(pickle.dumps(told))) == str(told)


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
    from nbqueue.client.panel import html as markup
    from nbqueue.client.panel import job_details
    from nbqueue.client.panel.failures import FailureGroups
    from nbqueue.client.panel.model import snapshot
    from nbqueue.client.panel.rate import rate_of

    fleet.start().up()
    batch = nbqueue.map(evil, [EVIL], name=None)
    assert batch.wait(30)
    told = job_details.details_of(batch.ref, 0)
    seen = snapshot([batch.ref], rate_of(batch.ref.state), FailureGroups(str), ())
    panel = markup.static(seen, {0: told}) + markup.job_html(told, EVIL)
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
    shown = [worker.log, repr(batch), repr(batch[0]), repr(single), single.description, batch.ref.spec.label, batch.id]
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
    wait_until(
        lambda: any(
            record.record_type == RecordType.CHECKPOINT for path in files(folder) for record in RecordReader(path)
        ),
        20,
    )
    session.collector.stop()
    (path,) = files(folder)
    forged = Appender(path)
    forged.size = path.stat().st_size
    blob = b"F\0\1\1" + session.sealer.keyring.current + b"\0" * 40
    forged.append(RecordType.OUTCOMES, Block([0], [len(blob)]), [blob])
    forged.append(RecordType.OUTCOMES, Block([1], [1 << 60]), [b"F"])
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
    wait_until(lambda: "1 batch waits for python 3.99" in worker.log, 20)
    assert good.results(timeout=30) == [0, 1]
    assert batch.tally.queued == 2
